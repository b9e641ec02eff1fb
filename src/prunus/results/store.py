"""The store: one SQLite file with one row per draw, keyed so that runs resume. It holds no statistics.

The tables are described in schema.py; the first write to a store of an older format adds the columns that it lacks. The
store uses the rollback journal with full synchronisation (SQLite's default) rather than a write-ahead log, so that it
stays one file that can be copied. After `kill -9` the next process that opens the store rolls back the unfinished
transaction, and everything before it is there.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prunus.budgets import budget_of
from prunus.disk import locked
from prunus.errors import PrunusError
from prunus.results import schema
from prunus.results.labels import is_called
from prunus.results.looping import loops
from prunus.results.rows import IMPORTED, Key, ProblemRow, Run, Sample

BUSY_SECONDS = 30.0

COLUMNS = tuple(field.name for field in fields(Sample))
TEXT_COLUMNS = ("thinking", "text")
FLAGS = ("answer_truncated", "reopened_think", "correct", "loops")  # SQLite has no Booleans
_values = attrgetter(*COLUMNS)
_INSERT = (
    f"INSERT INTO sample (run_id, {', '.join(COLUMNS)}) VALUES ({', '.join('?' * (len(COLUMNS) + 1))}) "  # noqa: S608  names above
    "ON CONFLICT (run_id, problem_id, budget, draw) DO NOTHING"
)


def check_folder(path: Path) -> None:
    """Raise PrunusError unless the folder of a new store exists."""
    if not path.absolute().parent.is_dir():
        raise PrunusError(f"the folder of the store '{path}' does not exist: create it or name another store")


def claim(path: Path, run_id: str) -> AbstractContextManager[None]:
    """A context manager that locks a run of the store at path, which need not exist yet.

    Entering it raises PrunusError if another process holds the lock.
    """
    store = path.resolve()  # a link to the store is the same store
    lock = store.with_name(f"{store.name}.{run_id}.lock")
    return locked(lock, f"is evaluating this run into {store}; wait for it")


class Store:
    """An open store: `with Store(path) as store: ...`. One process may write while others read.

    create: make the file if it is missing, or empty after an interruption. timeout: seconds to wait for another writer.
    Raises PrunusError if the file is missing, is not a store, or has a newer format.
    """

    def __init__(self, path: str | Path, create: bool = False, timeout: float = BUSY_SECONDS) -> None:
        self.path, self.timeout = Path(path), timeout
        if not create and not self.path.is_file():
            raise PrunusError(f"no store at '{self.path}': run `prunus eval` with --store {self.path} first")
        if create:
            check_folder(self.path)
        mode = "rwc" if create else "rw"  # rw falls back to reading only where the file is write-protected
        with self._errors():
            self._connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=timeout, isolation_level=None
            )
        try:
            with self._errors():
                self._connection.execute("PRAGMA foreign_keys = ON")
                self._connection.create_function("prunus_loops", 3, loops, deterministic=True)
                self._check_format(create)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def claim(self, run_id: str) -> AbstractContextManager[None]:
        """A context manager that locks a run: `with store.claim(run_id): ...`; see the function `claim`."""
        return claim(self.path, run_id)

    def add_run(self, run: Run) -> None:
        """Add the run unless the store has one with its id, which stays as it is.

        If the stored run was graded by another version of the grader, it names both ("1 and 2") until it is regraded.
        """
        with self._transaction():
            self._insert_run(run)
        graders = str(self.run(run.run_id).versions.get("grader", "")).split(" and ")
        if (grader := run.versions.get("grader")) and graders != [""] and grader not in graders:
            self.update_versions(run.run_id, {"grader": " and ".join([*graders, grader])})

    def add_complete_run(self, run: Run, problems: Sequence[ProblemRow], samples: Iterable[Sample]) -> int:
        """Add a run with all its problems and draws in one transaction; return the number of new draws.

        Raises PrunusError, and adds nothing, if a problem differs from the stored one with the same id.
        """
        with self._transaction():
            self._insert_run(run)
            self._insert_problems(problems)
            return self._insert_samples(run.run_id, samples)

    def update_versions(self, run_id: str, changes: Mapping[str, Any]) -> None:
        """Merge changes into the run's versions, for example the grader's version after regrading."""
        versions = self.run(run_id).versions | dict(changes)
        with self._transaction():
            self._connection.execute("UPDATE run SET versions = ? WHERE run_id = ?", (_json(versions), run_id))

    def set_timing(self, run_id: str, machine: str, speed: Mapping[str, Any]) -> None:
        """Store the speed of a run's model on a machine; it replaces an older measurement."""
        with self._transaction():
            self._connection.execute(schema.TIMING_DDL)
            self._connection.execute(
                "INSERT OR REPLACE INTO timing VALUES (?, ?, ?)", (run_id, machine, _json(dict(speed)))
            )

    def timings(self, run_id: str) -> dict[str, dict[str, Any]]:
        """The speed of the run's model by machine, for each machine on which it was measured."""
        if not self._has_table("timing"):
            return {}
        rows = self._read("SELECT machine, speed FROM timing WHERE run_id = ? ORDER BY machine", (run_id,))
        return {machine: json.loads(speed) for machine, speed in rows}

    def mark_adaptive(self, run_id: str, how: Mapping[str, Any]) -> None:
        """Store that the number of a run's problems depends on its rows; `how` is Run.adaptive. An older mark stays."""
        with self._transaction():
            self._connection.execute(schema.ADAPTIVE_DDL)
            self._connection.execute("INSERT OR IGNORE INTO adaptive VALUES (?, ?)", (run_id, _json(dict(how))))

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        rows = self._read("SELECT run_id, model, plan, versions FROM run ORDER BY rowid")
        marks: dict[str, str] = {}
        if self._has_table("adaptive"):
            marks = dict(self._read("SELECT run_id, how FROM adaptive"))
        return [
            Run(run_id, *(json.loads(text) for text in (*texts, marks.get(run_id, "null")))) for run_id, *texts in rows
        ]

    def run(self, run_id: str) -> Run:
        """The run with this full id. Raises PrunusError if there is none."""
        for run in self.runs():
            if run.run_id == run_id:
                return run
        raise PrunusError(f"no run '{run_id}' in {self.path}; {self._what_there_is()}")

    def find_runs(self, text: str) -> list[Run]:
        """The runs that text names, oldest first.

        Text is compared with the run ids, else with model names and sources, else with the labels that tables print,
        else with the beginnings of run ids. Controls (Run.is_control) are meant only if no other run is.
        """
        runs = self.runs()
        meant = (
            lambda run: run.run_id == text,
            lambda run: text in (run.model.get("name"), run.model.get("source")),
            lambda run: is_called(run, text),
            lambda run: bool(text) and run.run_id.startswith(text),
        )
        found = next((found for test in meant if (found := [run for run in runs if test(run)])), [])
        return [run for run in found if not run.is_control] or found

    def find_run(self, text: str) -> Run:
        """The run that text names, as in find_runs. Raises PrunusError with the choices unless it is one run."""
        found = self.find_runs(text)
        if not found:
            raise PrunusError(f"no run of '{text}' in {self.path}; {self._what_there_is()}")
        if len(found) > 1:
            raise PrunusError(f"'{text}' fits {len(found)} runs in {self.path}, give an id: {_names(found)}")
        return found[0]

    def add_problems(self, rows: Iterable[ProblemRow]) -> None:
        """Add problems.

        Raises PrunusError, and adds none, if a problem differs from the stored one with the same id.
        """
        with self._transaction():
            self._insert_problems(list(rows))

    def problems(self) -> dict[str, ProblemRow]:
        """All problems by id."""
        rows = self._read("SELECT task, problem_id, gold, kind, choices, digest FROM problem")
        asks: dict[str, tuple[str, ...]] = {}
        if self._has_table("asks"):
            asks = {key: tuple(json.loads(wishes)) for key, wishes in self._read("SELECT problem_id, wishes FROM asks")}
        questions: dict[str, str] = {}
        if self._has_table("question"):
            questions = dict(self._read("SELECT problem_id, digest FROM question"))
        return {
            problem_id: ProblemRow(
                task,
                problem_id,
                gold,
                kind,
                tuple(json.loads(choices)),
                digest,
                asks.get(problem_id),
                questions.get(problem_id),
            )
            for task, problem_id, gold, kind, choices, digest in rows
        }

    def add_samples(self, run_id: str, samples: Iterable[Sample]) -> int:
        """Add draws in one transaction, all or none, and return the number of new ones; stored draws stay as they are.

        The run and the problems must have been added before.
        """
        with self._transaction():
            return self._insert_samples(run_id, samples)

    def keys(self, run_id: str) -> set[Key]:
        """(problem_id, budget, draw) of every draw of the run."""
        return set(self._read("SELECT problem_id, budget, draw FROM sample WHERE run_id = ?", (run_id,)))

    def samples(self, run_id: str, texts: bool = False) -> list[Sample]:
        """The run's draws by problem_id, budget, draw; without texts `thinking` and `text` are empty."""
        columns = COLUMNS if texts else tuple(name for name in COLUMNS if name not in TEXT_COLUMNS)
        there = {name for _, name, *_ in self._read("PRAGMA table_info(sample)")}
        stored = {name: name if name in there else "NULL" for name in COLUMNS}
        # Rows of older formats lack it.
        stored["loops"] = f"COALESCE({stored['loops']}, prunus_loops(thinking, text, {stored['repetition']}))"
        shown = ", ".join(f"{stored[name]} AS {name}" for name in columns)
        query = f"SELECT {shown} FROM sample WHERE run_id = ? ORDER BY problem_id, budget, draw"  # noqa: S608
        return [_sample(columns, row) for row in self._read(query, (run_id,))]

    def texts(self, run_id: str, keys: Iterable[Key]) -> dict[Key, tuple[str, str]]:
        """(thinking, text) of these draws only, so that a few texts can be shown from a store of any size."""
        query = "SELECT thinking, text FROM sample WHERE run_id = ? AND problem_id = ? AND budget = ? AND draw = ?"
        return {key: row for key in keys for row in self._read(query, (run_id, *key))}

    def update_grades(self, run_id: str, grades: Iterable[tuple[str, int, int, str | None, str, bool]]) -> None:
        """Replace grades in one transaction; each is (problem_id, budget, draw, answer, status, correct)."""
        rows = [(answer, status, correct, run_id, *key) for *key, answer, status, correct in grades]
        with self._transaction():
            self._connection.executemany(
                "UPDATE sample SET answer = ?, status = ?, correct = ?"
                " WHERE run_id = ? AND problem_id = ? AND budget = ? AND draw = ?",
                rows,
            )

    def _insert_run(self, run: Run) -> None:
        values = (run.run_id, _json(run.model), _json(run.plan), _json(run.versions))
        self._connection.execute("INSERT INTO run VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", values)

    def _insert_problems(self, rows: Sequence[ProblemRow]) -> None:
        values = [(r.problem_id, r.task, r.gold, r.kind, _json(list(r.choices)), r.digest) for r in rows]
        self._connection.executemany("INSERT INTO problem VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", values)
        stored = dict(self._connection.execute("SELECT problem_id, digest FROM problem"))
        for row in rows:
            if stored[row.problem_id] != row.digest:
                raise PrunusError(
                    f"problem '{row.problem_id}' of task '{row.task}' is not the one that {self.path} holds results"
                    " for (its text or answer changed): name another --store"
                )
        if asks := [(row.problem_id, _json(list(row.asks))) for row in rows if row.asks is not None]:
            self._connection.execute(schema.ASKS_DDL)
            self._connection.executemany("INSERT OR REPLACE INTO asks VALUES (?, ?)", asks)
        if keys := [(row.problem_id, row.question) for row in rows if row.question is not None]:
            self._connection.execute(schema.QUESTION_DDL)
            self._connection.executemany("INSERT OR REPLACE INTO question VALUES (?, ?)", keys)
            self._adopt([row for row in rows if row.question is not None and row.kind != IMPORTED])

    def _adopt(self, rows: Sequence[ProblemRow]) -> None:
        """Give imported draws the ids of these problems where the questions are equal, so that runs are comparable."""
        named = {
            question: problem_id
            for problem_id, question in self._connection.execute(
                "SELECT problem_id, question.digest FROM question JOIN problem USING (problem_id) WHERE kind = ?",
                (IMPORTED,),
            )
        }
        moved = {named[row.question]: row for row in reversed(rows) if row.question in named}
        if not moved:
            return
        runs = [run for (run,) in self._connection.execute("SELECT run_id FROM run")]
        self._connection.executemany(
            "UPDATE sample SET problem_id = ?, task = ? WHERE run_id = ? AND problem_id = ?",
            [(row.problem_id, row.task, run, old) for old, row in moved.items() for run in runs],
        )
        gone = [(old,) for old in moved]
        self._connection.executemany("DELETE FROM question WHERE problem_id = ?", gone)
        self._connection.executemany("DELETE FROM problem WHERE problem_id = ?", gone)

    def _insert_samples(self, run_id: str, samples: Iterable[Sample]) -> int:
        before = self._connection.total_changes
        self._connection.executemany(_INSERT, [(run_id, *_values(sample)) for sample in samples])
        return self._connection.total_changes - before

    def _check_format(self, create: bool) -> None:
        if schema.is_empty(self._connection):
            if not create:
                raise PrunusError(f"the store '{self.path}' is empty: run `prunus eval` with --store {self.path} first")
            with self._transaction():
                if schema.is_empty(self._connection):  # else another process has made the tables meanwhile
                    schema.make_tables(self._connection)
        schema.check_format(self._connection, self.path)

    def _has_table(self, name: str) -> bool:
        return bool(self._read("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)))

    def _what_there_is(self) -> str:
        runs = self.runs()
        return f"it has {_names(runs)}" if runs else "it has no runs yet"

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._errors(), closing(self._connection.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run the block in a transaction that takes the write lock at once: only its start waits for another writer."""
        with self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                schema.upgrade(self._connection)
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk rolls back by itself
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of SQLite that the user can fix into a PrunusError of one line; others pass."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            message = self._explanation(str(error))
            if message is None:
                raise
            raise PrunusError(message) from error

    def _explanation(self, error: str) -> str | None:
        path = f"the store '{self.path}'"
        known = {
            "is locked": f"{path} is locked by another process (waited {self.timeout:g} s): try again when it is done",
            "is full": f"the disk is full: {path} kept all finished batches; free some space and run the same command",
            "readonly": f"{path} is write-protected: change its permissions or name another --store",
            "unable to open": f"{path} cannot be opened: check that it is a file you may read and write",
            "disk I/O error": f"{path} cannot be read or written (disk error): check the disk and its free space",
            "not a database": f"'{self.path}' is not a store (not an SQLite file): name another --store",
            "malformed": f"{path} is damaged: restore a copy or name another --store",
        }
        return next((message for sign, message in known.items() if sign in error), None)


def _sample(columns: Sequence[str], row: Sequence[Any]) -> Sample:
    values: dict[str, Any] = dict(zip(columns, row, strict=True))
    for flag in FLAGS:
        values[flag] = bool(values[flag])
    values["budget"] = budget_of(values["budget"])
    return Sample(**values)


def _json(data: Any) -> str:
    return json.dumps(data, sort_keys=True, ensure_ascii=False)


def _names(runs: Sequence[Run]) -> str:
    """Ids and model names, with the mode where the runs differ in it."""
    modes = {run.plan.get("mode") for run in runs}
    apart = {run.run_id: f", {run.plan.get('mode')}" if len(modes) > 1 else "" for run in runs}
    return ", ".join(f"{run.run_id} ({run.model.get('name')}{apart[run.run_id]})" for run in runs)
