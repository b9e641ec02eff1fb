"""Thirteen forgeries of a search that a review made: store and certificate always fit each other, and verify sees them.

Eleven are found without any model. The other two, rows of another model, are found by drawing chains anew.
"""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forged_engine import ENGINE
from scripted_backend import ScriptedBackend
from small_search import DOES, PLAN, fill, replay, script
from tiny_chains import TOKENIZER

import prunus
from prunus.cli import main
from prunus.evaluation import backends
from prunus.evaluation.profiles import PROFILES
from prunus.plain_data import content_hash
from prunus.recipes import PruneRecipe
from prunus.results.certificate import Declaration, write_certificate
from prunus.store.rows import Sample
from prunus.store.store import Store
from prunus.store.stored import StoredPlan
from prunus.studies.find.certificate import certificate, files_of
from prunus.studies.find.verify import Verification
from prunus.studies.looks.row_check import COUNTS, Counts, about_text

FOLDERS = {"model": "dense", "wrong": "magnitude-30"}  # what a checkpoint in a folder of this name writes
Change = Callable[[sqlite3.Connection, dict[str, str]], object]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of two searches: 30 % is refused, and then 20 % is certified and 45 % is not."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedBackend, "description", ENGINE)
        patch.chdir(folder)
        fill(folder)
        script(patch)
        rule: dict[str, Any] = {
            "methods": ["magnitude"],
            "margin": 0.1,
            "stop_margin": 0.1,
            "store": "rows.db",
            "look": 50,
        }
        prunus.find("model", "refused", PLAN, "0.3", **rule)
        prunus.find("model", "out", PLAN, "0.2,0.45", **rule)
        prunus.prune("model", "wrong", PruneRecipe(method="magnitude", sparsity=0.3))
        patch.setitem(DOES, "dense", (0.5, 0))  # as an engine of fewer bits would do
        prunus.find("model", "fp8", PLAN, "0.2", **(rule | {"store": "fp8.db", "margin": 0.3}))
    return folder


@pytest.fixture
def folder(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which a test works, and where models at hand write what they should."""
    shutil.copytree(searched, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(ScriptedBackend, "description", ENGINE)

    @contextmanager
    def opened(_: str, folder: Path, *__: Any) -> Iterator[ScriptedBackend]:
        yield ScriptedBackend(partial(replay, FOLDERS.get(folder.name, folder.name)))

    monkeypatch.setattr(backends, "opened", opened)
    return tmp_path / "copy"


def certify(store: str, number: int, beside: str | None) -> Path:
    """A certificate of a search of a store, as it is now. beside: the folder of its checkpoint."""
    with Store(store) as opened:
        declared = Declaration.of(opened.searches()[number - 1].declared)
        runs = {run.run_id: run.model.checksum for run in opened.runs()}
        checksum = None if beside is None else runs[declared.rungs[0].run]
        data = certificate(opened, declared, checksum, None if beside is None else files_of(Path(beside)))
    file = Path(beside or ".", "certificate.json")
    write_certificate(data, file)
    return file


def forge(number: int, change: Change, beside: str | None = None) -> Verification:
    """What verify says after a change of the store, with a certificate that was written for the changed store."""
    with Store("rows.db") as opened:
        rungs = {run.model.name.rpartition("/")[2]: run.run_id for run in opened.runs()}
    with sqlite3.connect("rows.db") as connection:
        change(connection, rungs)
    connection.close()
    return prunus.verify(certify("rows.db", number, beside), "rows.db")


def margin(connection: sqlite3.Connection, _: object) -> None:
    """The log and the certificate then declare a margin of 50 points."""
    for number, text in connection.execute("SELECT number, declared FROM search WHERE number = 2").fetchall():
        declared = json.loads(text) | {"margin": 0.5}
        values = json.dumps(declared), content_hash(declared), number
        connection.execute("UPDATE search SET declared = ?, search_id = ? WHERE number = ?", values)


def deleted(connection: sqlite3.Connection, _: object) -> None:
    """The refused search never was."""
    connection.execute("DELETE FROM search WHERE number = 1")
    connection.execute("UPDATE search SET number = 1 WHERE number = 2")


def golds(connection: sqlite3.Connection, rungs: dict[str, str]) -> None:
    """The wrong answers are right."""
    connection.execute("UPDATE problem SET gold = '8'")
    connection.execute("UPDATE sample SET correct = answer = '8'")


def sql(text: str, **more: str) -> Change:
    """A change of the rows of one rung, or of anything."""
    return lambda connection, rungs: connection.execute(
        text.format(**{k.replace("-", ""): v for k, v in rungs.items()})
    )


FORGERIES: dict[str, tuple[int, Change, str]] = {
    "correct": (
        1,
        sql("UPDATE sample SET correct = 1 WHERE run_id = '{magnitude30}'"),
        "other grades than their texts",
    ),
    "dense": (
        2,
        sql("UPDATE sample SET correct = 0, answer = '9' WHERE run_id = '{model}' AND problem_id LIKE '%3'"),
        "other grades than their texts",
    ),
    "checksum": (
        2,
        sql("UPDATE run SET model = json_set(model, '$.checksum', 'e') WHERE run_id = '{magnitude20}'"),
        "is of other weights in the log",
    ),
    "dense checksum": (
        2,
        sql("UPDATE run SET model = json_set(model, '$.checksum', 'e') WHERE run_id = '{model}'"),
        "has another id than one of its weights under its plan",
    ),
    "margin": (2, margin, "is not in the log of the store"),
    "deleted": (1, deleted, "its record was deleted or changed"),
    "had": (2, sql("UPDATE search SET had = '{{}}' WHERE number = 2"), "is not as the log of the store has it"),
    "dates": (2, sql("UPDATE search SET at = '2020-01-01T00:00:00+00:00' WHERE number = 2"), "is not as the log"),
    "modes": (
        2,
        sql("UPDATE run SET plan = json_set(plan, '$.mode', 'legacy')"),
        "has another id than one of its weights under its plan",
    ),
    "answer": (
        1,
        sql("UPDATE sample SET answer = '7', correct = 1 WHERE run_id = '{magnitude30}'"),
        "other grades than their texts",
    ),
    "ended": (2, sql("UPDATE sample SET ended = 'natural' WHERE run_id = '{magnitude45}'"), "are of other chains"),
    "golds": (1, golds, "are not those of its digest"),
    "tokens": (
        2,
        sql("UPDATE sample SET thinking_tokens = 2 WHERE run_id = '{magnitude45}'"),
        "end otherwise than their numbers of tokens say",
    ),
}


@pytest.mark.slow
@pytest.mark.thorough
def test_what_is_true_is_verified_even_drawn_again(folder, capsys):
    checked = prunus.verify("out", "rows.db", again=12, seed=1)
    assert "numbers and names" not in capsys.readouterr().err, "that was said when the search was declared"
    assert checked.claims and checked.differences == []
    assert checked.notes == [f"12 chains of {name} were drawn again (seed 1), and all came out the same"
                                for name in ("model", "magnitude-20")]  # fmt: skip
    assert "a store of which rows, texts, log and certificate were all made up together" in checked.unseen


@pytest.mark.slow
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_store_contradicts_itself(folder, name):
    number, change, told = FORGERIES[name]
    checked = forge(number, change)
    assert checked.claims == [] and any(told in line for line in checked.differences), checked


@pytest.mark.slow
def test_rows_of_the_dense_model_under_a_rung_are_found_by_drawing_chains_again(folder):
    columns = "task, problem_id, budget, draw, thinking_tokens, answer_tokens, forced_tokens, ended, answer_truncated"
    columns += ", reopened_think, answer, status, correct, logprob, self_certainty, repetition, answer_cap, loops"
    columns += ", thinking, text"

    def copied(connection: sqlite3.Connection, rungs: dict[str, str]) -> None:
        connection.execute(f"DELETE FROM sample WHERE run_id = '{rungs['magnitude-30']}'")
        connection.execute(
            f"INSERT INTO sample (run_id, start, {columns}) SELECT '{rungs['magnitude-30']}', start, {columns}"
            f" FROM sample WHERE run_id = '{rungs['model']}'"
        )

    checked = forge(1, copied, "wrong")
    assert checked.claims and checked.differences == [], "the store itself contradicts nothing"
    checked = prunus.verify("wrong/certificate.json", "rows.db", again=5, seed=0)
    (line,) = checked.differences
    assert line.startswith("5 chains of magnitude-30 were drawn again (seed 0), and 5 came out otherwise (")
    assert checked.notes[0] == "5 chains of model were drawn again (seed 0), and all came out the same"


@pytest.mark.slow
def test_dense_rows_of_another_engine_are_found_by_drawing_chains_again(folder, capsys):
    assert prunus.verify("fp8/certificate.json", "fp8.db").differences == []
    with pytest.raises(SystemExit) as ended:
        main(["verify", "fp8/certificate.json", "--store", "fp8.db", "--again", "20", "--seed", "3"])
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert told.out.startswith("differs: 20 chains of model were drawn again (seed 3), and ")
    assert "20 chains of magnitude-20 were drawn again (seed 3), and all came out the same" in told.err


@pytest.mark.slow
def test_where_rounding_may_part_chains_they_are_no_difference(folder, monkeypatch):
    monkeypatch.setattr(ScriptedBackend, "description", {"device": "cuda:0", "dtype": "bfloat16"})
    checked = prunus.verify("fp8/certificate.json", "fp8.db", again=20, seed=3)
    assert checked.differences == [] and "device and dtype of the stored rows differ from here" in checked.notes[0]


@pytest.mark.slow
def test_what_is_not_at_hand_is_said(folder):
    shutil.rmtree("model")
    Path("alone").mkdir()
    shutil.copy("out/certificate.json", "alone")
    notes = prunus.verify("alone/certificate.json", "rows.db", again=2).notes
    assert "no tokenizer is at hand, so token counts were not compared with texts" in notes
    assert [line for line in notes if line.endswith("is not at hand, so none of its chains was drawn again")]


def test_token_counts_have_to_fit_their_texts():
    """Halved and doubled counts are found, and a token or two that was sampled otherwise is not."""
    text = "3 + 4 = 7\n" * 10
    number = len(TOKENIZER.encode(text, add_special_tokens=False))
    plan = StoredPlan.of({"strings": PROFILES["tiny"].strings(), "profile": "tiny", "mode": "strict"})
    counts = Counts(TOKENIZER, plan)

    def told(thinking_tokens: int) -> list[str]:
        row = Sample("a", "a-1", 256, 0, thinking_tokens, 0, 0, "natural", False, False, None, "ok", True, text)
        return [what for what in about_text(row, plan, counts) if what == COUNTS]

    assert told(number) == told(number - 2) == told(number + 2) == []
    assert told(number // 2) == told(2 * number) == [COUNTS]


@pytest.mark.parametrize("name", PROFILES)
def test_the_markers_of_every_profile_are_those_of_its_plan(name):
    """Also of s1, whose stop is a part of its start, which is why its markers are single tokens."""
    profile = PROFILES[name]
    plan = json.loads(json.dumps({"profile": name, "strings": profile.strings()}))
    assert Counts(TOKENIZER, StoredPlan.of(plan)).profile.strings() == profile.strings()
