"""Runs of a store: those without answers stand in nobody's way, messages say what differs, and one can be removed."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from fake_store import make_store
from stored_rows import PROBLEM, RUN, SAMPLE

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation import pipeline
from prunus.recipes import EvalPlan
from prunus.store.rows import ProblemRow, Run
from prunus.store.store import Store, claim
from prunus.store.stored import Adaptive


@pytest.fixture
def interrupted(tmp_path, monkeypatch) -> Path:
    """A store with a finished run of `tiny` and one that was stopped before its first batch."""
    path = tmp_path / "i.db"
    prunus.evaluate("tiny", EvalPlan(tasks=("tiny",), budgets=(16,), limit=3), path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "fill", stop)
        with pytest.raises(KeyboardInterrupt):
            prunus.evaluate("tiny", EvalPlan(tasks=("tiny",), budgets=(16, 1024), batch_size=630), path)
    return path


@pytest.mark.slow
def test_a_run_without_answers_blocks_nothing(interrupted, tmp_path):
    full, empty = prunus.runs(interrupted)
    assert (full.rows, empty.rows) == (3, 0)
    with Store(interrupted) as store:
        assert [run.run_id for run in store.runs_with_rows()] == [full.run]
        assert store.find_run("tiny").run_id == full.run
        assert store.find_run(empty.run).run_id == empty.run  # by its id it can still be named
    with pytest.raises(PrunusError, match="nothing to compare with tiny"):
        prunus.compare(interrupted, "tiny")
    prunus.report(interrupted, tmp_path / "r.html")
    assert full.run in (tmp_path / "r.html").read_text()


def test_a_store_with_no_answers_at_all_says_so(tmp_path):
    path = tmp_path / "s.db"
    with Store(path, create=True) as store:
        store.add_run(RUN)
    with pytest.raises(PrunusError, match="no problem of run 0123456789ab is finished"):
        prunus.report(path, tmp_path / "r.html")


def test_what_an_ambiguous_name_means_is_told_apart(tmp_path):
    path = make_store(tmp_path / "s.db", names=("tiny",), problems=6, budgets=(16,))
    make_store(path, names=("tiny",), problems=6, budgets=(16, 32))
    first, second = (one.run for one in prunus.runs(path))
    wanted = f"{first} (tiny; budgets 16), {second} (tiny; budgets 16, 32)"
    with pytest.raises(PrunusError) as named:
        prunus.compare(path, "tiny")
    with pytest.raises(PrunusError) as default:
        prunus.report(path, tmp_path / "r.html")
    for error in (named, default):
        assert wanted in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command_lists_runs_and_their_plans(interrupted, capsys):
    main(["runs", str(interrupted), "--json"])
    full, empty = json.loads(capsys.readouterr().out)
    assert full == {
        "run": full["run"],
        "model": "tiny",
        "label": "dense",
        "plan": "tiny, first 3 problems; budgets 16; 1 draw; strict; profile tiny; temperature 0.0; seed 0",
        "rows": 3,
        "adaptive": False,
    }
    assert empty["plan"].startswith("tiny; budgets 16, 1024;")
    main(["runs", str(interrupted)])
    printed = capsys.readouterr().out
    assert full["run"] in printed and empty["run"] in printed and "first 3" in printed and "seed 0" in printed


def test_a_removed_run_is_gone_with_all_that_was_stored_about_it(tmp_path):
    path = tmp_path / "s.db"
    other = Run.of("ff0000000000", {"name": "other"}, {"tasks": ["kept"]}, {})
    kept = ProblemRow("kept", "k-0", "7", "exact", (), "d2", answer_formats=(), question="q2")
    with Store(path, create=True) as store:
        for run in (RUN, other):
            store.add_run(run)
        gone = ProblemRow("tiny", "t-1", "7", "exact", (), "d3", answer_formats=("x",), question="q3")
        store.add_problems([PROBLEM, kept, gone])
        store.add_samples(RUN.run_id, [SAMPLE])
        of_earlier_versions = "CREATE TABLE timing (run_id TEXT NOT NULL REFERENCES run, machine TEXT, speed TEXT)"
        store._connection.execute(of_earlier_versions)
        store._connection.execute("INSERT INTO timing VALUES (?, 'machine', '{}')", (RUN.run_id,))
        store.mark_adaptive(RUN.run_id, Adaptive.of({"by": "find", "seed": 0}))
    (left,) = prunus.runs(path, remove="tiny")
    assert left.run == other.run_id
    connection = sqlite3.connect(path)
    left_over = {
        table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in ("run", "sample", "timing", "adaptive", "problem", "asks", "question")
    }
    connection.close()
    # Of the problems, that of a task which the other run has stays.
    assert left_over == {"run": 1, "sample": 0, "timing": 0, "adaptive": 0, "problem": 1, "asks": 1, "question": 1}
    with Store(path) as store:
        assert store.problems() == {"k-0": kept}


@pytest.mark.slow
def test_removing_is_refused_where_it_is_not_clear_or_the_run_is_being_evaluated(interrupted):
    full, empty = (one.run for one in prunus.runs(interrupted))
    with pytest.raises(PrunusError, match=r"fits 2 runs .*no limit"):  # a run without answers counts here
        prunus.runs(interrupted, remove="tiny")
    with pytest.raises(PrunusError, match="no run of 'none'"):
        prunus.runs(interrupted, remove="none")
    with claim(interrupted, full), pytest.raises(PrunusError, match=r"another prunus process .*wait for it"):
        prunus.runs(interrupted, remove=full)
    assert [one.run for one in prunus.runs(interrupted)] == [full, empty]
    assert [one.run for one in prunus.runs(interrupted, remove=empty)] == [full]


@pytest.mark.slow
def test_a_renamed_run_keeps_its_id_and_rows(interrupted):
    full, empty = prunus.runs(interrupted)
    told = prunus.runs(interrupted, rename=(full.run, "reasoner é"))
    assert told == [replace(full, model="reasoner é"), empty]
    prunus.evaluate("tiny", EvalPlan(tasks=("tiny",), budgets=(16,), limit=3), interrupted)  # goes on in the same run
    with Store(interrupted) as store:
        assert store.find_run("reasoner é").run_id == full.run and len(store.runs()) == 2
    line = "a name is one line of at most 80 characters"
    for name, message in (("tiny", "'tiny' names another run"), (" ", line), ("bad\udcff", line), ("a\x1b[31mb", line)):
        with pytest.raises(PrunusError, match=message):
            prunus.runs(interrupted, rename=(full.run, name))
    assert prunus.runs(interrupted) == told


@pytest.mark.slow
def test_the_command_asks_before_it_removes(interrupted, capsys, monkeypatch):
    runs = prunus.runs(interrupted)
    command = ["runs", str(interrupted), "--remove", runs[1].run]
    with pytest.raises(SystemExit) as failed:
        main(command)
    assert failed.value.code == 2 and "add --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, left in ((False, 2), (True, 1)):
        monkeypatch.setattr("click.confirm", lambda *_, answer=answer, **__: answer)
        main(command)
        assert len(prunus.runs(interrupted)) == left
    main([*command[:3], runs[0].run, "--yes"])
    assert prunus.runs(interrupted) == []
