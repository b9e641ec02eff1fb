"""The store: one SQLite file with one row per draw, keyed so that runs resume; no statistic is kept in it.

The layout is that of `DDL`; the first write to a store of an older format adds the columns that it lacks. The rollback
journal with full synchronisation (SQLite's default) is used rather than a write-ahead log, so that a store stays one
file that can be copied; after `kill -9` the transaction in flight is rolled back by the next opener, and everything
before it is there.
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

from prunus import __version__
from prunus.disk import locked
from prunus.errors import PrunusError
from prunus.results.labels import is_called
from prunus.results.rows import Key, ProblemRow, Run, Sample
from prunus.results.schema import ADDED, APPLICATION_ID, ASKS_DDL, DDL, SCHEMA_VERSION, TIMING_DDL

BUSY_SECONDS = 30.0

COLUMNS = tuple(field.name for field in fields(Sample))
TEXT_COLUMNS = ("thinking", "text")
FLAGS = ("answer_truncated", "reopened_think", "correct")  # SQLite knows no truth values
_values = attrgetter(*COLUMNS)
_INSERT = (
    f"INSERT INTO sample (run_id, {', '.join(COLUMNS)}) VALUES ({', '.join('?' * (len(COLUMNS) + 1))}) "  # noqa: S608  names above
    "ON CONFLICT (run_id, problem_id, budget, draw) DO NOTHING"
)


def check_folder(path: Path) -> None:
    """PrunusError unless the folder in which a store is to be made is there."""
    if not path.absolute().parent.is_dir():
        raise PrunusError(f"the folder of the store '{path}' does not exist: create it or name another store")


def claim(path: Path, run_id: str) -> AbstractContextManager[None]:
    """Lock a run of the store at path, which need not be there yet; PrunusError if another process holds it."""
    store = path.resolve()  # a link to the store is the same store
    lock = store.with_name(f"{store.name}.{run_id}.lock")
    return locked(lock, f"is evaluating this run into {store}; wait for it")


class Store:
    """An open store: `with Store(path) as store: ...`; one process may write while others read.

    create: make the file if it is missing, or empty after an interruption. timeout: seconds to wait for another writer.
    Raises PrunusError if the file is missing, not a store, or of a newer format.
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
        """Lock a run while adding to it: `with store.claim(run_id): ...`; PrunusError if another process holds it."""
        return claim(self.path, run_id)

    def add_run(self, run: Run) -> None:
        """Add the run unless one with its id is there, which stays as it is.

        If another version of the grader is going to add rows, the stored run names both ("1 and 2") until it is
        regraded.
        """
        values = (run.run_id, _json(run.model), _json(run.plan), _json(run.versions))
        with self._transaction():
            self._connection.execute("INSERT INTO run VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", values)
        graders = str(self.run(run.run_id).versions.get("grader", "")).split(" and ")
        if (grader := run.versions.get("grader")) and graders != [""] and grader not in graders:
            self.update_versions(run.run_id, {"grader": " and ".join([*graders, grader])})

    def update_versions(self, run_id: str, changes: Mapping[str, Any]) -> None:
        """Merge changes into the run's versions, such as the grader's after regrading."""
        versions = self.run(run_id).versions | dict(changes)
        with self._transaction():
            self._connection.execute("UPDATE run SET versions = ? WHERE run_id = ?", (_json(versions), run_id))

    def set_timing(self, run_id: str, machine: str, speed: Mapping[str, Any]) -> None:
        """Store the speed of a run's model on a machine, replacing an older measurement."""
        with self._transaction():
            self._connection.execute(TIMING_DDL)
            self._connection.execute(
                "INSERT OR REPLACE INTO timing VALUES (?, ?, ?)", (run_id, machine, _json(dict(speed)))
            )

    def timings(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Machine to speed, for the machines on which the run's model was timed."""
        if not self._read("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'timing'"):
            return {}
        rows = self._read("SELECT machine, speed FROM timing WHERE run_id = ? ORDER BY machine", (run_id,))
        return {machine: json.loads(speed) for machine, speed in rows}

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        rows = self._read("SELECT run_id, model, plan, versions FROM run ORDER BY rowid")
        return [Run(run_id, *(json.loads(text) for text in texts)) for run_id, *texts in rows]

    def run(self, run_id: str) -> Run:
        """The run with this full id; PrunusError if there is none."""
        for run in self.runs():
            if run.run_id == run_id:
                return run
        raise PrunusError(f"no run '{run_id}' in {self.path}; {self._what_there_is()}")

    def find_runs(self, text: str) -> list[Run]:
        """Runs that text names, oldest first: by id, else by model name or source, else by label (as tables print it),
        else by the start of the id."""
        runs = self.runs()
        meant = (
            lambda run: run.run_id == text,
            lambda run: text in (run.model.get("name"), run.model.get("source")),
            lambda run: is_called(run, text),
            lambda run: bool(text) and run.run_id.startswith(text),
        )
        return next((found for test in meant if (found := [run for run in runs if test(run)])), [])

    def find_run(self, text: str) -> Run:
        """The one run that text names, as in find_runs; PrunusError listing the choices unless there is exactly one."""
        found = self.find_runs(text)
        if not found:
            raise PrunusError(f"no run of '{text}' in {self.path}; {self._what_there_is()}")
        if len(found) > 1:
            raise PrunusError(f"'{text}' fits {len(found)} runs in {self.path}, give an id: {_names(found)}")
        return found[0]

    def add_problems(self, rows: Iterable[ProblemRow]) -> None:
        """Add problems; PrunusError, and none is added, if one differs from the stored one of the same id."""
        rows = list(rows)
        values = [(r.problem_id, r.task, r.gold, r.kind, _json(list(r.choices)), r.digest) for r in rows]
        with self._transaction():
            self._connection.executemany("INSERT INTO problem VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", values)
            stored = dict(self._connection.execute("SELECT problem_id, digest FROM problem"))
            for row in rows:
                if stored[row.problem_id] != row.digest:
                    raise PrunusError(
                        f"problem '{row.problem_id}' of task '{row.task}' is not the one that {self.path} holds results"
                        " for (its text or answer changed): name another --store"
                    )
            if asks := [(row.problem_id, _json(list(row.asks))) for row in rows if row.asks is not None]:
                self._connection.execute(ASKS_DDL)
                self._connection.executemany("INSERT OR REPLACE INTO asks VALUES (?, ?)", asks)

    def problems(self) -> dict[str, ProblemRow]:
        """All problems by id."""
        rows = self._read("SELECT task, problem_id, gold, kind, choices, digest FROM problem")
        asks: dict[str, tuple[str, ...]] = {}
        if self._read("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'asks'"):
            asks = {key: tuple(json.loads(wishes)) for key, wishes in self._read("SELECT problem_id, wishes FROM asks")}
        return {
            problem_id: ProblemRow(
                task, problem_id, gold, kind, tuple(json.loads(choices)), digest, asks.get(problem_id)
            )
            for task, problem_id, gold, kind, choices, digest in rows
        }

    def add_samples(self, run_id: str, samples: Iterable[Sample]) -> int:
        """Add draws in one transaction, all or none, and return how many are new; draws that are there already stay.

        The run and the problems must have been added before.
        """
        rows = [(run_id, *_values(sample)) for sample in samples]
        with self._transaction():
            before = self._connection.total_changes
            self._connection.executemany(_INSERT, rows)
            return self._connection.total_changes - before

    def keys(self, run_id: str) -> set[Key]:
        """(problem_id, budget, draw) of every draw the run has."""
        return set(self._read("SELECT problem_id, budget, draw FROM sample WHERE run_id = ?", (run_id,)))

    def samples(self, run_id: str, texts: bool = False) -> list[Sample]:
        """The run's draws, ordered by problem_id, budget, draw; without texts `thinking` and `text` are empty."""
        columns = COLUMNS if texts else tuple(name for name in COLUMNS if name not in TEXT_COLUMNS)
        there = {name for _, name, *_ in self._read("PRAGMA table_info(sample)")}
        shown = ", ".join(name if name in there else f"NULL AS {name}" for name in columns)
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

    def _check_format(self, create: bool) -> None:
        if self._is_empty():
            if not create:
                raise PrunusError(f"the store '{self.path}' is empty: run `prunus eval` with --store {self.path} first")
            with self._transaction():  # the one that came second finds the tables made
                if self._is_empty():
                    self._make_tables()
        (application,), (version,) = self._read("PRAGMA application_id") + self._read("PRAGMA user_version")
        if application != APPLICATION_ID:
            raise PrunusError(f"'{self.path}' is an SQLite file but not a store of Prunus: name another --store")
        if not 1 <= version <= SCHEMA_VERSION:
            raise PrunusError(
                f"the store '{self.path}' has format {version}, written by {self._writer()}; this is prunus"
                f" {__version__}, which reads formats up to {SCHEMA_VERSION}: use that prunus, or name another --store"
            )

    def _is_empty(self) -> bool:
        """Whether the file has neither a table nor a version."""
        (tables,), (version,) = self._read("SELECT count(*) FROM sqlite_master") + self._read("PRAGMA user_version")
        return tables == 0 and version == 0

    def _make_tables(self) -> None:
        # One by one: executescript would commit first, and the file must turn from empty to complete in one step.
        for statement in DDL:
            self._connection.execute(statement)
        self._connection.execute("INSERT INTO meta VALUES ('prunus', ?)", (__version__,))
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _upgrade(self) -> None:
        """Upgrade an older format inside a transaction; new columns of existing rows are NULL."""
        ((version,),) = self._connection.execute("PRAGMA user_version").fetchall()
        if version in (0, SCHEMA_VERSION):  # a file that is just being made, or the present one
            return
        for name, (since, kind) in ADDED.items():
            if version < since:
                self._connection.execute(f"ALTER TABLE sample ADD COLUMN {name} {kind}")
        self._connection.execute("UPDATE meta SET value = ? WHERE name = 'prunus'", (__version__,))
        self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _writer(self) -> str:
        try:
            rows = self._connection.execute("SELECT value FROM meta WHERE name = 'prunus'").fetchall()
        except sqlite3.Error:  # a format that keeps this elsewhere
            rows = []
        return f"prunus {rows[0][0]}" if rows else "another prunus"

    def _what_there_is(self) -> str:
        runs = self.runs()
        return f"it has {_names(runs)}" if runs else "it has no runs yet"

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._errors(), closing(self._connection.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A transaction that takes the write lock at once, so that only its start waits for another writer."""
        with self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._upgrade()
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk rolls back by itself
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors that the user can fix into one line; others pass."""
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
    return Sample(**values)


def _json(data: Any) -> str:
    return json.dumps(data, sort_keys=True, ensure_ascii=False)


def _names(runs: Sequence[Run]) -> str:
    """Ids and model names, with the mode where it tells runs apart."""
    modes = {run.plan.get("mode") for run in runs}
    apart = {run.run_id: f", {run.plan.get('mode')}" if len(modes) > 1 else "" for run in runs}
    return ", ".join(f"{run.run_id} ({run.model.get('name')}{apart[run.run_id]})" for run in runs)
