"""`find` walks a ladder and certifies what holds; rows, order and marks that it leaves in the store."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_chains import TOKENIZER
from tiny_models import make_model

import prunus
from prunus.evaluation.backends.scripted import ScriptedBackend
from prunus.recipes import EvalPlan, PruneRecipe
from prunus.results.order import interleaved, seeded_order
from prunus.results.rows import Run
from prunus.results.store import Store
from prunus.study.engine import Engine

PROBLEMS = 200
PLAN = EvalPlan(tasks=("sums.jsonl",), budgets=(8, 16), answer_tokens=8, profile="tiny", batch_size=20)
RULE: dict[str, Any] = {"margin": 0.1, "stop_margin": 0.1}
SOLVED = TOKENIZER.encode("</think>\n\n7<|im_end|>", add_special_tokens=False)
WRONG = TOKENIZER.encode("</think>\n\n8<|im_end|>", add_special_tokens=False)
ENDLESS = TOKENIZER.encode("1\n", add_special_tokens=False) * 99
# What each variant does: the share of chains that are wrong, and the share that never end.
CLIFF = {
    "dense": (0, 0),
    "magnitude-10": (0, 0),
    "magnitude-20": (0, 0),
    "magnitude-30": (1, 0),
    "magnitude-40": (0, 0),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a random model and a task of 200 problems, all of which have the answer 7."""
    make_model(tmp_path / "model", family="qwen2")
    lines = ({"id": f"p{n}", "problem": f"{n} + 1 =", "answer": "7"} for n in range(PROBLEMS))
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Rungs answer as CLIFF says instead of running their models; counts the chains of each."""
    asked: Counter[str] = Counter()

    def replay(name: str, _prompt: Sequence[int], seed: int) -> list[int]:
        asked[name] += 1
        wrong, endless = CLIFF[name]
        drawn = random.Random(seed).random()
        return ENDLESS if drawn < endless else WRONG + ENDLESS if drawn < endless + wrong else SOLVED + ENDLESS

    @contextmanager
    def holding(_engine: Engine, _model: object, variant: Any, _folder: Path) -> Iterator[ScriptedBackend]:
        yield ScriptedBackend(partial(replay, variant.name))

    monkeypatch.setattr(Engine, "holding", holding)
    return asked


def search(ladder: Any = "0.1:0.4:0.1", out: str = "out", **settings: Any) -> dict[str, Any]:
    return prunus.find("model", out, PLAN, ladder, **{"methods": ["magnitude"], **RULE, **settings})


def words(found: dict[str, Any]) -> dict[str, list[str]]:
    return {name: [rung["word"] for rung in rungs] for name, rungs in found["ladders"].items()}


def test_the_last_rung_before_the_cliff_is_written_and_later_ones_are_not_evaluated(here, script):
    found = search(store="rows.db")
    assert words(found) == {"magnitude": ["certified", "certified", "refused"]}
    assert (found["found"], found["removed"], found["out"]) == ("magnitude-20", 0.2, "out")
    assert script.keys() == {"dense", "magnitude-10", "magnitude-20", "magnitude-30"}
    assert max(script.values()) < 2 * PROBLEMS, "the dense rows are computed once, and none beyond what is looked at"
    prunus.prune("model", "same", PruneRecipe(method="magnitude", sparsity=0.2))
    for name in ("model.safetensors", "prunus.json", "README.md"):
        assert Path("out", name).read_bytes() == Path("same", name).read_bytes()
    assert {path.name for path in here.iterdir()} == {"model", "sums.jsonl", "out", "same", "rows.db"}
    with Store("rows.db") as store:
        assert [run.adaptive for run in store.runs()] == [{"by": "find", "seed": 0}] * 4
        runs = {run.model["name"]: store.keys(run.run_id) for run in store.runs()}
    order = seeded_order([f"p{n}" for n in range(PROBLEMS)], 0)
    for keys in runs.values():
        looked = {problem for problem, _, _ in keys}
        assert looked == set(order[: len(looked)]) and len(keys) == 2 * len(looked)


def test_the_order_of_problems_is_that_of_any_part_of_them():
    ids = [f"p{number}" for number in range(200)]
    whole = seeded_order(ids, 3)
    assert sorted(whole) == sorted(ids) and whole != seeded_order(ids, 4)
    assert seeded_order(reversed(ids[50:]), 3) == [problem for problem in whole if problem in ids[50:]]


def test_tasks_are_interleaved_so_that_every_part_has_the_same_share_of_each():
    tasks = {"small": [f"s{n}" for n in range(20)], "large": [f"l{n}" for n in range(60)]}
    order = interleaved(tasks, 0)
    assert {problem for _, problem in order} == {*tasks["small"], *tasks["large"]}
    small = np.cumsum([task == "small" for task, _ in order])
    assert np.abs(small - np.arange(1, 81) / 4).max() <= 1
    for task, ids in tasks.items():
        assert [problem for name, problem in order if name == task] == seeded_order(ids, 0)


def test_a_run_is_marked_as_adaptively_collected_once_and_other_runs_are_not(tmp_path: Path):
    runs = [Run(name, {}, {}, {}) for name in ("a", "b")]
    with Store(tmp_path / "r.db", create=True) as store:
        for run in runs:
            store.add_run(run)
        assert store.runs() == runs  # also without the table
        store.mark_adaptive("b", {"by": "find", "seed": 1})
        store.mark_adaptive("b", {"by": "find", "seed": 2})
        assert [run.adaptive for run in store.runs()] == [None, {"by": "find", "seed": 1}]
