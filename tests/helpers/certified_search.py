"""A search that ended, with its store, certificate and rows, made without an engine."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from comparable_runs import fill, row

from prunus.results.certificate import Declaration, write_certificate
from prunus.results.ladder import Rule
from prunus.settings.margins import Margin
from prunus.statistics.anytime import interleaved
from prunus.store.store import Store
from prunus.studies.find import certificate as certificates
from prunus.studies.find.trace import declare_in

BUDGETS, PROBLEMS, SEED = (16, 64), 150, 3

IDS = {"a": [f"a-{p}" for p in range(PROBLEMS)]}

RUNGS = ("dense", "gentle", "harsh")

UNGRADED: dict[str, str] = {}  # versions of runs whose made rows have neither texts nor grades


def run_of(place: int) -> str:
    return f"{place:x}{'f' * 11}"


def rows_of(name: str, keep=None):
    """The dense model is right in three of four cases; gentle changes little, harsh loses a third and does not end."""
    found = []
    for p in range(PROBLEMS):
        if keep is not None and f"a-{p}" not in keep:
            continue
        rng = np.random.default_rng(p)
        right, ends = rng.random() < 0.75, rng.random() < 0.9
        if name == "gentle" and p % 80 == 7:
            right = not right
        if name == "harsh":
            right, ends = right and p % 3 > 0, ends and p % 2 > 0
        for budget in BUDGETS:
            ended = "natural" if ends and budget == 64 else "forced"
            found.append(row("a", p, budget, 0, right, ended=ended, thinking_tokens=budget - 4))
    return found


def make(folder: Path, max_tokens=None):
    """A store and the certificate of a search over its runs, made once for all tests: (store, file)."""
    made = made_once(max_tokens)
    return tuple(Path(shutil.copy(made / name, folder / name)) for name in ("results.db", "certificate.json"))


def declaration(rungs, rule: Rule, max_tokens=None):
    """What is declared of a search for these rungs."""
    model = {"name": "dense", "source": "dense", "checksum": None}
    margins = {name: Margin.of(getattr(rule, name)).to_json() for name in ("margin", "stop_margin")}
    return Declaration.of({
        "model": model, "dense": run_of(0), "problems": IDS, "seed": SEED, "budgets": list(BUDGETS), "samples": 1,
        "reuse": True, "ladders": [{"name": "made", "rungs": rungs}], **margins, "alpha": 0.05,
        "endpoints": ["accuracy", "ends"], "look": 8, "max_tokens": max_tokens,
    })  # fmt: skip


@cache
def made_once(max_tokens) -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    taken = {name for _, name in interleaved(IDS, SEED)[:120]}  # the walk ends before the last problems
    runs = {name: rows_of(name, taken) for name in RUNGS}
    rungs = [{"name": RUNGS[k], "run": run_of(k), "removed": 0.1 * k} for k in (1, 2)]
    rungs.append({"name": "harsher", "run": "e" * 12, "removed": 0.3})
    search = declaration(rungs, Rule(0.1, 0.1), max_tokens)
    store = folder / "results.db"
    with Store(store, create=True) as opened:
        declare_in(opened, search)
    fill(store, runs, {name: {"budgets": list(BUDGETS), "seed": SEED} for name in RUNGS}, UNGRADED)
    with Store(store) as opened:
        data = certificates.certificate(opened, search, None)
    write_certificate(data, folder / "certificate.json")
    return folder


def changed(file: Path, change) -> Path:
    """A certificate with a change, and with a content hash that fits it."""
    data = json.loads(file.read_text())
    change(data)
    data["content"] = certificates.content_of(data)
    other = file.with_name("other.json")
    other.write_text(json.dumps(data))
    return other
