"""The store keeps what it was given, survives kill -9, and refuses in one line what it cannot read."""

import os
import signal
import sqlite3
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import warm_processes
from stored_rows import PROBLEM, RUN, SAMPLE

from prunus.errors import PrunusError
from prunus.recipes import DropRecipe, PruneRecipe
from prunus.store import schema
from prunus.store.labels import identity, unique_labels
from prunus.store.rows import PlannedProblems, Run
from prunus.store.store import Store, claim
from prunus.store.stored import Environment


def is_one_line(error: pytest.ExceptionInfo[PrunusError]) -> bool:
    return "\n" not in str(error.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a #1?.db"  # characters that mean something in a file URI
    with Store(path, create=True) as store:
        store.add_run(RUN)
        store.add_problems([PROBLEM])
    return path


def test_rows_come_back_as_they_went_in(path):
    other = replace(SAMPLE, budget=64, ended="natural", answer_truncated=False, reopened_think=True, answer="7",
                    status="ok", correct=True, self_certainty=None)  # fmt: skip
    with Store(path) as store:
        assert store.add_samples(RUN.run_id, [other, SAMPLE]) == 2
    with Store(path) as store:
        assert store.runs() == [RUN] and store.run(RUN.run_id) == RUN
        assert store.problems() == {"chain-0": PROBLEM}
        assert store.samples(RUN.run_id, texts=True) == [SAMPLE, other]
        assert store.samples(RUN.run_id) == [replace(s, thinking="", text="") for s in (SAMPLE, other)]
        assert store.keys(RUN.run_id) == {("chain-0", 16, 0), ("chain-0", 64, 0)}
        assert store.keys("another") == set()
        keys = [("chain-0", 64, 0), ("chain-0", 64, 1)]
        assert store.texts(RUN.run_id, keys) == {keys[0]: ("1 + 1\n", "é 😀")}
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # one file, nothing beside it


def test_a_draw_that_is_there_stays(path):
    with Store(path) as store:
        store.add_samples(RUN.run_id, [SAMPLE])
        assert store.add_samples(RUN.run_id, [replace(SAMPLE, text="other"), replace(SAMPLE, draw=1)]) == 1
        assert [s.text for s in store.samples(RUN.run_id, texts=True)] == [SAMPLE.text, SAMPLE.text]


def test_adding_samples_is_all_or_nothing(path):
    with Store(path) as store:
        with pytest.raises(sqlite3.IntegrityError):
            store.add_samples(RUN.run_id, [SAMPLE, replace(SAMPLE, problem_id="unknown")])
        with pytest.raises(sqlite3.IntegrityError):
            store.add_samples("unknown run", [SAMPLE])
        assert store.keys(RUN.run_id) == set()


def test_grades_are_replaced_and_nothing_else(path):
    with Store(path) as store:
        store.add_samples(RUN.run_id, [SAMPLE, replace(SAMPLE, draw=1)])
        store.update_grades(RUN.run_id, [("chain-0", 16, 1, "7", "ok", True)])
        assert store.samples(RUN.run_id, texts=True) == [
            SAMPLE,
            replace(SAMPLE, draw=1, answer="7", status="ok", correct=True),
        ]


def test_a_run_is_read_alone(path):
    """Its planned problems and later starts are its own; damage to another run or plan is not seen."""
    planned = PlannedProblems(1, {"t": ["chain-0"]})
    with Store(path) as store:
        for name in ("a", "b"):
            run = Run.of(name, {"name": name}, {"problems": name}, {"torch": "2"}, planned=planned)
            store.add_run(run)
            store.add_samples(name, [SAMPLE])
            store.add_run(replace(run, environment=run.environment | {"prunus": "9"}))
        every = {run.run_id: run for run in store.runs()}
        for name in ("a", "b"):
            alone = store.run(name)
            assert (alone, alone.planned, len(alone.starts)) == (every[name], planned, 1)
            assert (alone.starts, alone.stages) == (every[name].starts, ()) and every[name].stages
        for damage in ("UPDATE start SET versions = '['", "UPDATE run SET model = '['"):
            store._connection.execute(f"{damage} WHERE run_id = 'b'")
            assert store.run("a") == every["a"]
            with pytest.raises(PrunusError, match="damaged"):
                store.run("b")
        store._connection.execute("UPDATE planned SET problems = '[' WHERE digest = 'b'")
        assert store.run("a").planned == planned


def test_environments_are_merged(path):
    with Store(path) as store:
        store.update_environment(RUN.run_id, {"grader": "2"})
        assert store.run(RUN.run_id) == replace(RUN, environment=Environment.of({"torch": "2", "grader": "2"}))


def test_a_run_continued_under_another_protocol_names_both(path):
    with Store(path) as store:
        for protocol, named in (("1", "1"), ("2", "1 and 2"), ("2", "1 and 2")):
            store.add_run(replace(RUN, run_id="e" * 12, environment=Environment.of({"protocol": protocol})))
            assert store.run("e" * 12).environment.data == {"protocol": named}


def test_a_problem_that_changed_is_refused(path):
    with Store(path) as store:
        store.add_problems([PROBLEM])
        says = f"'chain-0' of task 'mine' is not the one of task '{PROBLEM.task}' in"
        with pytest.raises(PrunusError, match=says) as error:
            store.add_problems([replace(PROBLEM, problem_id="new"), replace(PROBLEM, digest="d2", task="mine")])
        assert is_one_line(error)
        assert store.problems() == {"chain-0": PROBLEM}


def test_runs_are_found_by_the_labels_that_tables_print(path):
    def made(run_id: str, name: str, *recipes: PruneRecipe | DropRecipe, mode: str = "strict") -> Run:
        steps = [{"action": "drop" if isinstance(r, DropRecipe) else "prune", "recipe": r.to_json()} for r in recipes]
        return Run.of(run_id, {"name": name, "manifest": {"history": steps}}, {"mode": mode}, {})

    wanda, drop = PruneRecipe(sparsity=0.2), DropRecipe(blocks="2")
    runs = [
        made("a1" + 10 * "0", "w20", wanda),
        made("b2" + 10 * "0", "d2", drop),
        made("c3" + 10 * "0", "both", wanda, drop),
    ]
    with Store(path) as store:
        for run in runs:
            store.add_run(run)
        printed = unique_labels(map(identity, (RUN, *runs)))
        assert printed == [
            "dense",
            "Wanda 20\u00a0%",
            "ShortGPT \u22122\u00a0blocks",
            " + ".join(reversed(printed[2:0:-1])),
        ]
        assert [store.find_run(text) for text in printed] == [RUN, *runs]
        assert [store.find_run(text).run_id[:2] for text in ("wanda 20 %", "ShortGPT -2 blocks")] == ["a1", "b2"]
        assert store.find_run("tiny: dense") == store.find_run("dense (01234567)") == RUN
        for again in (made("d4" + 10 * "0", "tiny", mode="legacy"), made("e5" + 10 * "0", "w20", wanda)):
            store.add_run(again)
        for text, choices in (
            ("dense", r"'dense' fits 2 runs .*: 0123456789ab \(tiny; .*no mode\), d40{10} \(tiny; .*mode legacy\)"),
            ("Wanda 20 %", r"fits 2 runs .*a10{10} \(w20\), e50{10} \(w20\)$"),
        ):
            with pytest.raises(PrunusError, match=choices) as error:
                store.find_run(text)
            assert is_one_line(error)
        assert store.find_run("Wanda 20 % (e5000000)").run_id.startswith("e5")


def test_runs_are_found_by_id_name_source_and_start_of_id(path):
    wanda = Run.of("01aa00000000", {"name": "wanda-20", "source": "out/wanda-20"}, {}, {})
    again = Run.of("ff0000000000", {"name": "wanda-20", "source": "elsewhere/wanda-20"}, {}, {})
    with Store(path) as store:
        for run in (wanda, again):
            store.add_run(run)
        assert store.find_runs("01") == [RUN, wanda]
        assert store.find_runs("wanda-20") == [wanda, again]
        assert store.find_runs("") == []
        assert (
            store.find_run("012") == RUN and store.find_run("tiny") == RUN and store.find_run("out/wanda-20") == wanda
        )
        with pytest.raises(PrunusError, match=r"01aa00000000 \(wanda-20\), ff0000000000 \(wanda-20\)"):
            store.find_run("wanda-20")
        for missing in (store.find_run, store.run):
            with pytest.raises(PrunusError, match=r"no-such.*0123456789ab"):
                missing("no-such")


def make(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize("create", [False, True])
def test_what_is_no_store_is_refused_and_left_alone(tmp_path, create):
    text, database = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_bytes(b"these are my notes, and they are longer than the header of a database file is" * 20)
    make(database, "CREATE TABLE mine (x)")
    before = {p: p.read_bytes() for p in (text, database)}
    for file, message in ((text, "not an SQLite file"), (database, "not a store of Prunus")):
        with pytest.raises(PrunusError, match=message) as error:
            Store(file, create=create)
        assert is_one_line(error)
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(
    ("name", "create", "message"),
    [
        ("none.db", False, "the store .* cannot be read"),
        ("", False, "the store .* cannot be read"),
        ("none/new.db", True, r"folder .* does not exist"),
        ("", True, "cannot be opened"),
    ],
)
def test_missing_store_and_missing_folder(tmp_path, name, create, message):
    with pytest.raises(PrunusError, match=message):
        Store(tmp_path / name, create=create)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_creation_is_taken_up(tmp_path, monkeypatch):
    path, make_tables = tmp_path / "new.db", schema.make_tables

    def make_then_stop(connection) -> None:
        make_tables(connection)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(schema, "make_tables", make_then_stop)
        with pytest.raises(KeyboardInterrupt):
            Store(path, create=True)
    with pytest.raises(PrunusError, match="is empty"):
        Store(path)
    with Store(path, create=True) as store:
        store.add_run(RUN)
        assert store.runs() == [RUN]


def test_second_writer_is_told_after_waiting(path):
    with Store(path) as first, Store(path, timeout=0.1) as second:
        first._connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(PrunusError, match=r"locked by another process \(waited 0\.1 s\)") as error:
            second.add_run(RUN)
        assert is_one_line(error)
        assert second.runs() == [RUN]  # reading goes on
        first._connection.execute("ROLLBACK")
        second.add_samples(RUN.run_id, [SAMPLE])


def test_full_disk_is_one_line_and_keeps_the_finished_batches(path):
    with Store(path) as store:
        store.add_samples(RUN.run_id, [SAMPLE])
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then reports a full disk
        with pytest.raises(PrunusError, match="disk is full") as error:
            store.add_samples(RUN.run_id, [replace(SAMPLE, draw=1, text="x" * 100_000)])
        assert is_one_line(error)
        assert store.keys(RUN.run_id) == {("chain-0", 16, 0)}


def with_nothing_done(context: AbstractContextManager[None]) -> None:
    with context:
        pass


def test_a_run_is_claimed_once_and_others_go_on(path):
    link = path.with_name("link.db")
    link.symlink_to(path)
    with Store(path) as store, Store(link) as other:
        with claim(store.path, "a"), claim(other.path, "b"):
            assert path.with_name(f"{path.name}.a.lock").read_text() == str(os.getpid())
            with pytest.raises(PrunusError, match=rf"\(pid {os.getpid()}\) is evaluating this run into") as error:
                with_nothing_done(claim(other.path, "a"))
            assert is_one_line(error)
        with claim(other.path, "a"):
            pass
    assert {found.name for found in path.parent.iterdir()} == {path.name, link.name}


WRITER = """
import os, sys
from dataclasses import replace
from prunus.store import store as module
from stored_rows import RUN, SAMPLE

def batch(first):
    return [replace(SAMPLE, draw=draw, text="x" * 5000) for draw in range(first, first + 50)]

with module.Store(sys.argv[1]) as store:
    store._connection.execute("PRAGMA cache_size = 1")  # pages reach the file before the transaction ends
    store.add_samples(RUN.run_id, batch(0))
    with store._transaction():
        rows = [(RUN.run_id, 0, *module._values(sample)) for sample in batch(50)]
        store._connection.executemany(module._INSERT["sample"], rows)
        os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@warm_processes.in_one_worker
def test_kill_9_loses_only_the_transaction_in_flight(path):
    assert warm_processes.run(WRITER, path) == (-signal.SIGKILL, "")
    journal = path.with_name(path.name + "-journal")
    assert journal.stat().st_size > 0  # the file was caught half-written
    with Store(path) as store:
        assert store.keys(RUN.run_id) == {("chain-0", 16, draw) for draw in range(50)}
        assert store.add_samples(RUN.run_id, [replace(SAMPLE, draw=99)]) == 1
