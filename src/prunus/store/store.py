"""The store: one SQLite file with a row per draw, keyed so that runs resume. It holds no statistics.

The tables are described in schema.py. The store uses the rollback journal with full synchronisation (SQLite's default)
rather than a write-ahead log, so that it stays one file that can be copied. After `kill -9` the next process that opens
the store rolls back the unfinished transaction, and everything before it is there.
"""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

from prunus.disk import as_path, locked
from prunus.errors import PrunusError, no_file, unreadable
from prunus.plain_data import Listing, Record, content_hash, parse_json
from prunus.settings import hints_of
from prunus.settings.budgets import budget_of
from prunus.store import schema
from prunus.store.labels import checked_name, is_called, label_of, listed, plan_in_short
from prunus.store.log import Event, Log, LogEntry, link_of, search_event
from prunus.store.rows import (
    IMPORTED,
    DeclaredSearch,
    Key,
    PlannedProblems,
    ProblemRow,
    Removed,
    Run,
    Sample,
    Start,
)
from prunus.store.stages import series_of, stages_of
from prunus.store.starts import contradiction
from prunus.store.stored import Adaptive, Environment
from prunus.store.thought import Thought

BUSY_SECONDS = 30.0

COLUMNS = tuple(field.name for field in fields(Sample))
TEXT_COLUMNS = ("thinking", "text")
FLAGS = ("answer_truncated", "reopened_think", "correct", "loops")  # SQLite has no Booleans
# The types that SQLite returns for each column.
KINDS = {
    name: {str} if get_origin(hint) is Literal else {int if kind is bool else kind for kind in get_args(hint) or [hint]}
    for name, hint in hints_of(Sample).items()
}
_values = attrgetter(*COLUMNS)
PLANNED = ("tasks", "budgets", "samples", "mode")  # a plan of ours has all
Kept = Literal["sample", "finer"]  # tables of draws: at the budgets of a run's plan, and at further ones
_RUN = "SELECT run_id, model, plan, versions, how FROM run LEFT JOIN adaptive USING (run_id)"
_INSERT = {
    table: f"INSERT INTO {table} (run_id, start, {', '.join(COLUMNS)}) "  # noqa: S608  names above
    f"VALUES ({', '.join('?' * (len(COLUMNS) + 2))}) "
    "ON CONFLICT (run_id, problem_id, budget, draw) DO NOTHING"
    for table in get_args(Kept)
}


def is_begun(path: Path) -> bool:
    """Whether there is a file at path that is not empty; an interrupted creation leaves an empty one."""
    return path.is_file() and path.stat().st_size > 0


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
    read_only: every attempt to write is an error.
    Raises PrunusError if the file is missing, is not a store, or has another format.
    """

    def __init__(
        self, path: str | Path, create: bool = False, timeout: float = BUSY_SECONDS, read_only: bool = False
    ) -> None:
        self.path, self.timeout = as_path(path, "store"), timeout
        if not create and not self.path.is_file():
            raise unreadable(
                f"the store '{self.path}'", f"{no_file(self.path)}; `prunus eval --store {self.path}` writes one"
            )
        if create:
            check_folder(self.path)
        # rw falls back to reading only where the file is write-protected.
        mode = "rwc" if create else "ro" if read_only else "rw"
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def add_run(self, run: Run, mixed: bool = False) -> None:
        """Add the run; if the store has a run with its id and rows, that run stays, and a new start of it is added.

        If the stored run names another version of the grader, it then names both ("1 and 2") until it is regraded; if
        it names another version of the protocol, it names both for good.
        mixed: accept a start in which settings that change numbers differ from earlier starts; the run then is a mixed
        one. Without it such a start raises PrunusError, and nothing is added.
        """
        with self._transaction():
            self._insert_start(run, mixed)
            self._insert_run(run)
        known = self.run(run.run_id).environment.rules
        for name, new in run.environment.rules.items():
            if name in known and new not in known[name].split(" and "):
                self.update_environment(run.run_id, {name: f"{known[name]} and {new}"})

    def add_complete_run(self, run: Run, problems: Sequence[ProblemRow], samples: Iterable[Sample]) -> int:
        """Add a run with all its problems and draws in a transaction; return the number of new draws.

        Raises PrunusError, and adds nothing, if a problem differs from the stored problem of its id.
        """
        with self._transaction():
            self._insert_run(run)
            self._insert_problems(problems)
            return self._insert_samples(run.run_id, samples)

    def update_environment(self, run_id: str, changes: Mapping[str, str]) -> None:
        """Merge changes into the run's environment, for example the grader's version after regrading."""
        environment = self.run(run_id).environment | changes
        with self._transaction():
            values = _json(environment.data), run_id
            self._connection.execute("UPDATE run SET versions = ? WHERE run_id = ?", values)

    def mark_adaptive(self, run_id: str, how: Adaptive) -> None:
        """Store that the number of a run's problems depends on its rows. An older mark stays."""
        with self._transaction():
            self._connection.execute("INSERT OR IGNORE INTO adaptive VALUES (?, ?)", (run_id, _json(how.data)))

    def add_search(self, declared: Mapping[str, Any], runs: Sequence[str]) -> None:
        """Store the declaration of a search, and how many rows its runs have now, or had before they were removed.

        An earlier declaration of the same search stays.
        """
        at, had = _now("seconds"), dict[str, tuple[int, int]]()
        query = "SELECT count(DISTINCT problem_id), count(*) FROM sample WHERE run_id = ?"
        with self._transaction():
            removed = self.removed()
            for run in runs:
                stored = self._connection.execute(query, (run,)).fetchone()
                gone = [(lost.problems, lost.samples) for lost in removed if lost.run.run_id == run]
                problems, rows = max([stored, *gone])
                if rows:
                    had[run] = problems, rows
            new = self._connection.execute(
                "INSERT OR IGNORE INTO search (search_id, declared, at, had) VALUES (?, ?, ?, ?)",
                (content_hash(declared), json.dumps(dict(declared), ensure_ascii=False), at, _json(had)),
            ).rowcount
            if new:
                self._add_to_log(search_event(self.searches()[-1]))

    def add_to_log(self, event: Event) -> None:
        """Add the declaration of a choice, or its result, to the log, unless it has this very event."""
        with self._transaction():
            if not any(entry.event == event for entry in self.log().entries):
                self._add_to_log(event)

    def searches(self) -> list[DeclaredSearch]:
        """All searches that were declared, oldest first."""
        query, declared_searches = "SELECT number, search_id, at, declared, had FROM search ORDER BY number", []
        for number, name, at, *texts in self._read(query):
            declared, had = (self._parsed(text, dict) for text in texts)
            had = {run: (problems, rows) for run, (problems, rows) in had.items()}
            declared_searches.append(DeclaredSearch(number, name, declared, at, had))
        return declared_searches

    def log(self) -> Log:
        """The log of what happened in the store."""
        rows = self._read("SELECT number, at, event, link FROM log ORDER BY number")
        entries = list[LogEntry]()
        for number, at, text, link in rows:
            try:
                entries.append(LogEntry(number, at, Event.of(self._parsed(text, dict)), link))
            except ValueError as error:
                raise schema.damaged(self.path, f"in entry {number} of its log, {error}") from error
        return Log(entries)

    def _add_to_log(self, event: Event) -> None:
        """Add an event that happens now to the log, within the transaction of the change that it describes."""
        ((last, before),) = self._read("SELECT count(*), (SELECT link FROM log ORDER BY number DESC LIMIT 1) FROM log")
        number, at = last + 1, _now()
        values = number, at, _json(event.data), link_of(before or "", number, at, event)
        self._connection.execute("INSERT INTO log VALUES (?, ?, ?, ?)", values)

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        runs = [self._run(*row) for row in self._read(f"{_RUN} ORDER BY run.rowid")]
        started = self._started()
        unseen = {run_id for _, earlier in started.values() for run_id, complete in earlier.items() if complete == 0}
        with_rows = {run.run_id for run in self.runs_with_rows([run for run in runs if run.run_id in unseen])}
        orders = self._orders()
        stages = stages_of(runs, started, with_rows, self.removed(), orders, self._regrouped())
        starts = self._starts()
        return [replace(_planned(run, orders, starts), stages=stages[run.run_id]) for run in runs]

    def removed(self) -> list[Removed]:
        """The runs that had rows and were removed, oldest removal first."""
        query = "SELECT run_id, model, plan, begun, at, complete, problems, samples FROM removed ORDER BY number"
        return [Removed(self._run(run_id, model, plan), *rest) for run_id, model, plan, *rest in self._read(query)]

    def _regrouped(self) -> list[tuple[str, Sequence[str]]]:
        """(UTC time, ids of runs that had rows of these problems) of each change of groups of problems, by the log."""
        return [(entry.at, entry.event.regrouped) for entry in self.log().entries if entry.event.regrouped is not None]

    def _started(self) -> dict[str, tuple[str, dict[str, int]]]:
        """The table `begun`: {run id: (time, {id of an earlier run: its complete problems then})}."""
        rows = self._read("SELECT run_id, at, earlier FROM begun")
        return {run_id: (at, self._parsed(earlier, dict)) for run_id, at, earlier in rows}

    def runs_with_rows(self, runs: Sequence[Run] | None = None) -> list[Run]:
        """The given runs (None: all runs) that have rows; an evaluation that was stopped early may leave none."""
        with_rows = "SELECT run_id FROM run WHERE EXISTS (SELECT 1 FROM sample WHERE sample.run_id = run.run_id)"
        started = {run_id for (run_id,) in self._read(with_rows)}
        return [run for run in (self.runs() if runs is None else runs) if run.run_id in started]

    def counts(self) -> dict[str, int]:
        """The number of rows of each run that has any."""
        return dict(self._read("SELECT run_id, count(*) FROM sample GROUP BY run_id"))

    def run(self, run_id: str) -> Run:
        """The run with this full id, without its stages, which depend on other runs. Raises PrunusError without one."""
        if (run := self._stored(run_id)) is None:
            raise PrunusError(f"no run '{run_id}' in {self.path}; {self._what_there_is()}")
        return run

    def _stored(self, run_id: str) -> Run | None:
        """The run with this full id, without its stages; None if there is none."""
        runs = [self._run(*row) for row in self._read(f"{_RUN} WHERE run_id = ?", (run_id,))]
        return _planned(runs[0], self._orders(runs[0].plan.problems), self._starts(run_id)) if runs else None

    def find_runs(self, text: str) -> list[Run]:
        """The runs that text names, oldest first.

        Text is compared with the run ids, else with model names and sources, else with the labels that tables print,
        else with the beginnings of run ids. Controls (Run.is_control) are meant only if no other run is.
        """
        runs = self.runs()
        meant = (
            lambda run: run.run_id == text,
            lambda run: text in (run.model.name, run.model.source),
            lambda run: is_called(run, text),
            lambda run: bool(text) and run.run_id.startswith(text),
        )
        matching = next((matching for test in meant if (matching := [run for run in runs if test(run)])), [])
        return [run for run in matching if not run.is_control] or matching

    def find_run(self, text: str) -> Run:
        """The run that text names, as in find_runs; a run without rows only if no run with rows is named so.

        Raises PrunusError with the choices, and what differs between them, unless it is one run.
        """
        matching = self.find_runs(text)
        if len(matching) > 1:
            matching = self.runs_with_rows(matching) or matching
        return self._the_only(text, matching)

    def remove_run(self, text: str) -> None:
        """Remove the run that text names, with its rows and everything else that is stored about it.

        If it has rows, which somebody may have seen, its plan and its times stay (`removed`). Text is as for
        find_runs. Problems of tasks that no other run has are removed, too. Raises PrunusError, and removes nothing,
        unless text fits one run, with or without rows, or while a process is evaluating the run.
        """
        run = self._the_only(text, self.find_runs(text))
        with claim(self.path, run.run_id), self._transaction():
            self._note_removal(run)
            self._delete("run", [run.run_id])
            self._add_to_log(Event.of({"removed": run.run_id}))
            kept = {task for other in self.runs() for task in other.plan.tasks}
            unused = "SELECT problem_id, task FROM problem WHERE problem_id NOT IN (SELECT problem_id FROM sample)"
            self._delete("problem", [key for key, task in self._read(unused) if task not in kept])
            self._connection.execute("DELETE FROM asked WHERE digest NOT IN (SELECT digest FROM question)")

    def rename_run(self, text: str, name: str) -> None:
        """Rename the model of the run that text names (see find_runs); pages and tables show the new name.

        Its id and its rows stay. Raises PrunusError, and changes nothing, unless text fits one run, or for a name that
        is no printable line or already that of another run's model.
        """
        run, name = self._the_only(text, self.find_runs(text)), checked_name(name)
        if any(run.run_id != other.run_id for other in self.find_runs(name)):
            raise PrunusError(f"'{name}' names another run of {self.path}: choose another name")
        self._describe(run, name=name)

    def name_serving(self, run_id: str, name: str) -> None:
        """Set the name of a run's serving in labels; an empty name, or a run that is not stored, changes nothing."""
        if name and (run := self._stored(run_id)) is not None and run.model.served_as != name:
            self._describe(run, served_as=name)

    def _describe(self, run: Run, **changes: str) -> None:
        """Change the description of a run's model."""
        with self._transaction():
            values = _json({**run.model.data, **changes}), run.run_id
            self._connection.execute("UPDATE run SET model = ? WHERE run_id = ?", values)

    def _note_removal(self, run: Run) -> None:
        """Add a run that is about to be removed to the table `removed`, if it has rows; verdicts need that."""
        query = "SELECT count(DISTINCT problem_id), count(*) FROM sample WHERE run_id = ?"
        ((problems, rows),) = self._read(query, (run.run_id,))
        if not rows:
            return
        started, _ = self._started()[run.run_id]
        described = run.run_id, _json(run.model.data), _json(run.plan.data)
        values = *described, started, _now(), self._complete(run), problems, rows
        self._connection.execute("INSERT INTO removed VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def _delete(self, table: str, keys: Sequence[str]) -> None:
        """Delete runs or problems by id, and before them the rows of other tables that refer to them."""
        tables = [name for (name,) in self._read("SELECT name FROM sqlite_master WHERE type = 'table'")]
        referring = [
            (name, column)
            for name in tables
            for _, _, to, column, *_ in self._read(f"PRAGMA foreign_key_list({name})")
            if to == table
        ]
        for name, column in [*referring, (table, f"{table}_id")]:
            self._connection.executemany(f"DELETE FROM {name} WHERE {column} = ?", [(key,) for key in keys])  # noqa: S608

    def _the_only(self, text: str, matching: Sequence[Run]) -> Run:
        if not matching:
            raise PrunusError(f"no run of '{text}' in {self.path}; {self._what_there_is()}")
        if len(matching) > 1:
            raise PrunusError(f"'{text}' fits {len(matching)} runs in {self.path}, give an id: {listed(matching)}")
        return matching[0]

    def add_problems(self, rows: Iterable[ProblemRow]) -> None:
        """Add problems, and store their groups.

        Raises PrunusError, and adds none, if a problem differs from the stored problem of its id.
        """
        with self._transaction():
            self._insert_problems(list(rows))

    def problem_ids(self) -> set[str]:
        """The ids of all problems."""
        return {problem for (problem,) in self._read("SELECT problem_id FROM problem")}

    def groups(self) -> dict[str, str]:
        """{problem id: id of the first problem of its group}, without problems that are first or alone."""
        return dict(self._read("SELECT problem_id, first FROM belongs"))

    def questions(self) -> dict[str, str]:
        """{problem id: question_key of its question}, of those whose question is known."""
        return dict(self._read("SELECT problem_id, digest FROM question"))

    def problems(self, ids: Collection[str] | None = None) -> dict[str, ProblemRow]:
        """All problems by id, or those of some ids."""
        which = "" if ids is None else f" WHERE problem_id IN ({', '.join('?' * len(ids))})"
        later = " ".join(f"LEFT JOIN {table} USING (problem_id)" for table in ("asks", "question", "belongs"))
        columns = "task, problem_id, gold, kind, choices, problem.digest, wishes, question.digest, first"
        rows = self._read(f"SELECT {columns} FROM problem {later}{which}", tuple(ids or ()))  # noqa: S608

        def texts(column: str) -> tuple[str, ...]:
            return tuple(self._parsed(column, list))

        return {
            key: ProblemRow(
                task, key, gold, kind, texts(choices), digest, None if asks is None else texts(asks), question, group
            )
            for task, key, gold, kind, choices, digest, asks, question, group in rows
        }

    def question(self, problem_id: str) -> str | None:
        """The text of a problem's question; None where the store does not keep it, as for gated sets."""
        query = "SELECT text FROM asked JOIN question USING (digest) WHERE problem_id = ?"
        return next((text for (text,) in self._read(query, (problem_id,))), None)

    def version(self) -> int:
        """A number that changes when somebody else has written to the store."""
        ((version,),) = self._read("PRAGMA data_version")
        return version

    def add_samples(
        self, run_id: str, samples: Iterable[Sample], thoughts: Iterable[Thought] = (), table: Kept = "sample"
    ) -> int:
        """Add draws in a transaction, all or none, and return the number of new ones; stored draws stay as they are.

        thoughts: of their chains, to be kept with them. The run and the problems must have been added before.
        """
        kept = [(run_id, thought.problem_id, thought.draw, *thought.packed()) for thought in thoughts]
        with self._transaction():
            self._connection.executemany("INSERT INTO thought VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", kept)
            return self._insert_samples(run_id, samples, table)

    def thoughts(self, run_id: str, chains: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Thought]:
        """{(problem, draw): thinking} of those of the given chains whose thinking the run keeps."""
        query = "SELECT problem_id, draw, ids, scores FROM thought WHERE run_id = ? AND problem_id = ? AND draw = ?"
        try:
            return {chain: Thought.unpacked(*row) for chain in chains for row in self._read(query, (run_id, *chain))}
        except ValueError as error:
            raise schema.damaged(self.path, f"the thinking of a chain: {error}") from error

    def chains_kept(self, run_id: str) -> set[tuple[str, int]]:
        """(problem_id, draw) of the chains whose thinking the run keeps."""
        return set(self._read("SELECT problem_id, draw FROM thought WHERE run_id = ?", (run_id,)))

    def copy_samples(self, source: str, run_id: str, keys: Iterable[Key], table: Kept = "sample") -> None:
        """Copy the draws with these keys from a table of the run source to another stored run, in one transaction."""
        names = ", ".join(COLUMNS)
        query = (
            f"INSERT INTO sample (run_id, start, {names}) SELECT ?, ?, {names} FROM {table}"  # noqa: S608  names of columns
            " WHERE run_id = ? AND problem_id = ? AND budget = ? AND draw = ? ON CONFLICT DO NOTHING"
        )
        with self._transaction():
            start = self._last_start(run_id)
            self._connection.executemany(query, [(run_id, start, source, *key) for key in keys])

    def copy_natural(self, source: str, run_id: str, keys: Iterable[Key], table: Kept = "sample") -> None:
        """Add draws with these keys whose chain ended naturally within the budget, by any draw of it in source."""
        names, values = ", ".join(COLUMNS), ", ".join("?2" if name == "budget" else name for name in COLUMNS)
        query = (
            f"INSERT INTO {table} (run_id, start, {names}) SELECT ?1, ?6, {values} FROM sample"  # noqa: S608  names of columns
            " WHERE run_id = ?3 AND problem_id = ?4 AND draw = ?5 AND ended = 'natural' AND budget > 0"
            " AND thinking_tokens <= ?2 AND ?2 > 0 LIMIT 1 ON CONFLICT DO NOTHING"
        )
        with self._transaction():
            start = self._last_start(run_id)
            rows = [(run_id, budget, source, problem, draw, start) for problem, budget, draw in keys]
            self._connection.executemany(query, rows)

    def keys(self, run_id: str, table: Kept = "sample") -> set[Key]:
        """(problem_id, budget, draw) of every draw of the run."""
        return set(self._read(f"SELECT problem_id, budget, draw FROM {table} WHERE run_id = ?", (run_id,)))  # noqa: S608

    def samples(
        self, run_id: str, texts: bool = False, chain: tuple[str, int] | None = None, table: Kept = "sample"
    ) -> list[Sample]:
        """The run's draws by problem_id, budget, draw; without texts `thinking` and `text` are empty.

        chain: only those of this problem and number of the draw.
        """
        columns = COLUMNS if texts else tuple(name for name in COLUMNS if name not in TEXT_COLUMNS)
        return [_sample(columns, row) for row in zip(*self.columns(run_id, columns, chain, table), strict=True)]

    def has_budget(self, run_id: str, budget: int) -> bool:
        """Whether every draw of the run has a row at this budget, which its plan need not have."""
        keys = self.keys(run_id)
        chains = {(problem, draw) for problem, _, draw in keys}
        return chains == {(problem, draw) for problem, at, draw in keys | self.keys(run_id, "finer") if at == budget}

    def finer_samples(self, run_id: str) -> list[Sample]:
        """The rows at budgets that the run's plan does not have, only where every draw of the run has a row.

        `prunus.evaluation.refine` adds them.
        """
        finer = self.samples(run_id, table="finer")
        whole = {budget for budget in {sample.budget for sample in finer} if self.has_budget(run_id, budget)}
        return [sample for sample in finer if sample.budget in whole]

    def columns(
        self, run_id: str, names: Sequence[str], chain: tuple[str, int] | None = None, table: Kept = "sample"
    ) -> list[tuple[Any, ...]]:
        """The values of each named field in the draws that `samples` returns, as SQLite returns them."""
        which, values = "run_id = ?", (run_id, *(chain or ()))
        which += " AND problem_id = ? AND draw = ?" if chain else ""
        query = f"SELECT {', '.join(names)} FROM {table} WHERE {which} ORDER BY problem_id, budget, draw"  # noqa: S608
        columns = list(zip(*self._read(query, values), strict=True)) or [() for _ in names]
        for name, column in zip(names, columns, strict=True):
            if not set(map(type, column)) <= KINDS[name]:  # SQLite stores any type in any column
                raise schema.damaged(self.path, f"{name} of a draw is of a wrong type")
            if name == "problem_id" and (unknown := set(column) - self.problem_ids()):
                raise schema.damaged(self.path, f"it lacks the problem {min(unknown)[:80]!r} of a draw")
        return columns

    def row_starts(self, run_id: str) -> dict[tuple[str, int], frozenset[int]]:
        """{(problem, draw): numbers of the starts that computed its rows}, but for draws of the first start alone."""
        query = (
            "SELECT problem_id, draw, json_group_array(DISTINCT start) FROM sample WHERE run_id = ?"
            " GROUP BY problem_id, draw HAVING max(start) > 0"
        )
        rows = self._read(query, (run_id,))
        return {(problem, draw): frozenset(self._parsed(starts, list)) for problem, draw, starts in rows}

    def answers(self, run_id: str, keys: Iterable[Key]) -> dict[Key, str | None]:
        """The answers of the draws with these keys; draws that the run lacks are left out."""
        query = "SELECT answer FROM sample WHERE run_id = ? AND problem_id = ? AND budget = ? AND draw = ?"
        return {key: answer for key in keys for (answer,) in self._read(query, (run_id, *key))}

    def texts(self, run_id: str, keys: Iterable[Key]) -> dict[Key, tuple[str, str]]:
        """(thinking, text) of these draws only, so that a few texts can be shown from a store of any size."""
        query = "SELECT thinking, text FROM sample WHERE run_id = ? AND problem_id = ? AND budget = ? AND draw = ?"
        return {key: row for key in keys for row in self._read(query, (run_id, *key))}

    def update_grades(
        self, run_id: str, grades: Iterable[tuple[str, int, int, str | None, str, bool]], table: Kept = "sample"
    ) -> None:
        """Replace grades in a transaction; each is (problem_id, budget, draw, answer, status, correct)."""
        rows = [(answer, status, correct, run_id, *key) for *key, answer, status, correct in grades]
        with self._transaction():
            self._connection.executemany(
                f"UPDATE {table} SET answer = ?, status = ?, correct = ?"  # noqa: S608
                " WHERE run_id = ? AND problem_id = ? AND budget = ? AND draw = ?",
                rows,
            )

    def _insert_start(self, run: Run, mixed: bool) -> None:
        """Add the record of a later start if it differs from the start before; describe a run without rows anew."""
        if (stored := self._stored(run.run_id)) is None:
            return
        if not self._read("SELECT 1 FROM sample WHERE run_id = ? LIMIT 1", (run.run_id,)):  # so no row is of it
            self._connection.execute("DELETE FROM start WHERE run_id = ?", (run.run_id,))
            now = run.environment.without_rules | stored.environment.rules
            values = (_json(run.model.data), _json(now.data), run.run_id)
            self._connection.execute("UPDATE run SET model = ?, versions = ? WHERE run_id = ?", values)
            return
        differing, content = contradiction(stored, run.environment), run.model.content
        if differing and not mixed:
            raise PrunusError(
                f"run {run.run_id} of {self.path} was started differently ({'; '.join(differing)}): take another"
                " --store, name the setting by --serving NAME (of a study: `serving` under [engine]), or go on with"
                " --mixed of eval and study, which leaves a verdict only where the base goes on likewise"
            )
        last = stored.starts[-1] if stored.starts else None
        known = (last.content, last.environment) if last else (stored.model.content, stored.environment)
        if (known[0], known[1].without_rules) != (content, run.environment.without_rules):
            values = (run.run_id, _now(), content, _json(run.environment.data), bool(differing))
            self._connection.execute(
                "INSERT INTO start (run_id, at, content, versions, mixed) VALUES (?, ?, ?, ?, ?)", values
            )

    def _last_start(self, run_id: str) -> int:
        """The number of the last start of a run, which computes what is added now; 0 for the first."""
        ((number,),) = self._read("SELECT coalesce(max(number), 0) FROM start WHERE run_id = ?", (run_id,))
        return number

    def _starts(self, only: str | None = None) -> dict[str, list[Start]]:
        """The table `start`, by run id. only: of this run."""
        by_run: dict[str, list[Start]] = {}
        query = "SELECT number, run_id, at, content, versions, mixed FROM start WHERE run_id = coalesce(?, run_id)"
        for number, run_id, at, content, versions, mixed in self._read(f"{query} ORDER BY number", (only,)):
            try:
                environment = Environment.of(self._parsed(versions, dict))
            except ValueError as error:
                raise schema.damaged(self.path, f"in a start of run {run_id}, {error}") from error
            by_run.setdefault(run_id, []).append(Start(number, at, content, environment, bool(mixed)))
        return by_run

    def _insert_run(self, run: Run) -> None:
        values = (run.run_id, _json(run.model.data), _json(run.plan.data), _json(run.environment.data))
        series = series_of(run)
        earlier = [other for other in self.runs() if other.run_id != run.run_id and series_of(other) == series]
        new = self._connection.execute("INSERT INTO run VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", values).rowcount
        if new:
            began = {"run": run.run_id, "checksum": run.model.checksum, "grader": run.environment.grader}
            self._add_to_log(Event.of(began))
        lacking = run.planned is not None and self._complete(run) < run.planned.count
        if new or lacking:  # its last rows come after what can be seen of other runs now
            seen = {other.run_id: self._complete(other) for other in earlier}
            self._connection.execute("INSERT OR REPLACE INTO begun VALUES (?, ?, ?)", (run.run_id, _now(), _json(seen)))
        if run.planned is not None:
            order = json.dumps({task: list(ids) for task, ids in run.planned.order.items()}, ensure_ascii=False)
            self._connection.execute("INSERT OR IGNORE INTO planned VALUES (?, ?)", (run.plan.problems, order))

    def _complete(self, run: Run) -> int:
        """The number of problems of which the run has all draws at all budgets."""
        wanted = len(run.plan.budgets) * run.plan.samples
        counts = self._read("SELECT count(*) FROM sample WHERE run_id = ? GROUP BY problem_id", (run.run_id,))
        return sum(count >= wanted for (count,) in counts)

    def _orders(self, only: str | None = None) -> dict[str, PlannedProblems]:
        """The table `planned`: the problems of plans, by their hash. only: those of this hash."""
        query = "SELECT * FROM planned WHERE digest = coalesce(?, digest)"
        rows = [(digest, self._parsed(order, dict)) for digest, order in self._read(query, (only,))]
        if not all(
            isinstance(ids, list) and all(isinstance(name, str) for name in ids)
            for _, order in rows
            for ids in order.values()
        ):
            raise schema.damaged(self.path, "the problems of a plan are no list of names")
        return {digest: PlannedProblems(sum(map(len, order.values())), order) for digest, order in rows}

    def _insert_problems(self, rows: Sequence[ProblemRow]) -> None:
        values = [(r.problem_id, r.task, r.gold, r.kind, _json(list(r.choices)), r.digest) for r in rows]
        self._connection.executemany("INSERT INTO problem VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", values)
        stored = {problem_id: rest for problem_id, *rest in self._read("SELECT problem_id, task, digest FROM problem")}
        for row in rows:
            task, digest = stored[row.problem_id]
            if digest != row.digest:
                raise PrunusError(
                    f"problem '{row.problem_id}' of task '{row.task}' is not the one of task '{task}' in {self.path}"
                    " (its text or answer changed, or both tasks use this id): name another --store, or change the id"
                )
        if answer_formats := [
            (row.problem_id, _json(list(row.answer_formats))) for row in rows if row.answer_formats is not None
        ]:
            self._connection.executemany("INSERT OR REPLACE INTO asks VALUES (?, ?)", answer_formats)
        if keys := [(row.problem_id, row.question) for row in rows if row.question is not None]:
            self._connection.executemany("INSERT OR REPLACE INTO question VALUES (?, ?)", keys)
            self._adopt([row for row in rows if row.question is not None and row.kind != IMPORTED])
        if texts := [(row.question, row.text) for row in rows if row.question is not None and row.text is not None]:
            self._connection.executemany("INSERT OR REPLACE INTO asked VALUES (?, ?)", texts)
        self._insert_groups({row.problem_id: row.group for row in rows if row.group is not None})

    def _insert_groups(self, first_of: Mapping[str, str]) -> None:
        """Store these groups of problems, unless they are the stored groups under other names.

        If runs have rows of problems whose groups change, which somebody may have seen, the log keeps that.
        """
        stored = self.groups()
        before = {problem: stored.get(problem, problem) for problem in first_of}
        if same_groups(first_of, before):
            return
        members, members_before = (_members(of) for of in (first_of, before))
        moved = json.dumps([problem for problem in first_of if members[problem] != members_before[problem]])
        rows = (
            "SELECT 1 FROM sample WHERE sample.run_id = run.run_id AND problem_id IN (SELECT value FROM json_each(?))"
        )
        if runs := self._read(f"SELECT run_id FROM run WHERE EXISTS ({rows})", (moved,)):  # noqa: S608  text above
            self._add_to_log(Event.of({"regrouped": [run_id for (run_id,) in runs]}))
        self._connection.executemany(
            "DELETE FROM belongs WHERE problem_id = ?", [(problem_id,) for problem_id in first_of]
        )
        apart = [(problem, first) for problem, first in first_of.items() if problem != first]
        self._connection.executemany("INSERT INTO belongs VALUES (?, ?)", apart)

    def _adopt(self, rows: Sequence[ProblemRow]) -> None:
        """Give imported draws the ids of these problems where the questions are equal, so that runs are comparable."""
        query = "SELECT question.digest, problem_id FROM question JOIN problem USING (problem_id) WHERE kind = ?"
        named: dict[str, str] = dict(self._read(query, (IMPORTED,)))
        moved = {named[row.question]: row for row in reversed(rows) if row.question in named}
        if not moved:
            return
        self._connection.executemany(  # by run, as the index of samples begins with it
            "UPDATE sample SET problem_id = ?, task = ? WHERE run_id IN (SELECT run_id FROM run) AND problem_id = ?",
            [(row.problem_id, row.task, old) for old, row in moved.items()],
        )
        renamed = [(row.problem_id, old) for old, row in moved.items()]
        self._connection.executemany("UPDATE belongs SET first = ? WHERE first = ?", renamed)
        for query in (
            "DELETE FROM question WHERE problem_id = ?",
            "DELETE FROM belongs WHERE problem_id = ?",
            "DELETE FROM problem WHERE problem_id = ?",
        ):
            self._connection.executemany(query, [(old,) for old in moved])

    def _insert_samples(self, run_id: str, samples: Iterable[Sample], table: Kept = "sample") -> int:
        before, start = self._connection.total_changes, self._last_start(run_id)
        self._connection.executemany(_INSERT[table], [(run_id, start, *_values(sample)) for sample in samples])
        return self._connection.total_changes - before

    def _check_format(self, create: bool) -> None:
        if schema.is_empty(self._connection):
            if not create:
                raise PrunusError(f"the store '{self.path}' is empty: run `prunus eval` with --store {self.path} first")
            with self._transaction():
                if schema.is_empty(self._connection):  # else another process has made the tables meanwhile
                    schema.make_tables(self._connection)
        schema.check_format(self._connection, self.path)

    def _parsed(self, text: str, kind: type) -> Any:
        """The value of a column that holds JSON."""
        try:
            value = parse_json(text)
            if "\\ud" in text.lower():  # half of a pair, which no file can have
                json.dumps(value, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise schema.damaged(self.path, f"a text is not JSON: {str(error)[:100]}") from error
        if not isinstance(value, kind):
            raise schema.damaged(self.path, f"a text is JSON of another kind than a {kind.__name__}")
        return value

    def _run(self, run_id: str, model: str, plan: str, versions: str = "{}", how: str | None = None) -> Run:
        """The run of these columns. Raises PrunusError where these are not what Prunus writes."""
        if not isinstance(run_id, str):
            raise schema.damaged(self.path, "a run has no id")
        texts = (self._parsed(text, dict) for text in (model, plan, versions))
        try:
            adaptive = None if how is None else Adaptive.of(self._parsed(how, dict))
            run = Run.of(run_id, *texts, adaptive=adaptive)
        except ValueError as error:
            raise schema.damaged(self.path, str(error)) from error
        there = run.plan.data
        lacking = [name for name in PLANNED if not there.get(name) and (name in there or run.environment.prunus)]
        if lacking:  # the version is named in every run that Prunus computed
            raise schema.damaged(self.path, f"the plan of run {run_id} has no {lacking[0]}")
        return run

    def _what_there_is(self) -> str:
        runs = self.runs()
        return f"it has {listed(runs)}" if runs else "it has no runs yet"

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._errors(), closing(self._connection.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run the block in a transaction that takes the write lock at once: only its start waits for another writer."""
        with self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
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
            if isinstance(error, sqlite3.ProgrammingError):  # of prunus itself
                raise
            raise self._explanation(error) from error

    def _explanation(self, error: sqlite3.DatabaseError) -> PrunusError:
        path, signs = f"the store '{self.path}'", f"{error} {getattr(error, 'sqlite_errorname', '')}"
        known = {
            "is locked": f"{path} is locked by another process (waited {self.timeout:g} s): try again when it is done",
            "READONLY_ROLLBACK": f"{path} was being written when a process was killed: repair it by `prunus runs`",
            "is full": f"the disk is full: {path} kept all finished batches; free some space and run the same command",
            "readonly": f"{path} is write-protected: change its permissions or name another --store",
            "unable to open": f"{path} cannot be opened: check that it is a file you may read and write",
            "disk I/O error": f"{path} cannot be read or written (disk error): check the disk and its free space",
            "not a database": f"'{self.path}' is not a store (not an SQLite file): name another --store",
        }
        message = next((message for sign, message in known.items() if sign in signs), None)
        return schema.damaged(self.path, str(error)) if message is None else PrunusError(message)


def _planned(run: Run, orders: Mapping[str, PlannedProblems], starts: Mapping[str, Sequence[Start]]) -> Run:
    """The run with its planned problems and its later starts."""
    # An imported log, or a task of lm-evaluation-harness, is stored as a whole in one transaction.
    planned = None if run.imported or run.plan.lm_eval else orders.get(run.plan.problems or "")
    return replace(run, planned=planned, starts=tuple(starts.get(run.run_id, ())))


def same_groups(groups: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two partitions of the same problems into groups are equal; the names of groups do not matter."""
    pairs = {(groups[problem], other[problem]) for problem in groups}
    return len(pairs) == len(set(groups.values())) == len(set(other.values()))


def _members(first_of: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """The problems of each problem's group."""
    groups: dict[str, list[str]] = {}
    for problem, first in first_of.items():
        groups.setdefault(first, []).append(problem)
    return {problem: frozen for names in groups.values() for frozen in [frozenset(names)] for problem in names}


def _sample(columns: Sequence[str], row: Sequence[Any]) -> Sample:
    values = dict(zip(columns, row, strict=True))
    for flag in FLAGS:
        values[flag] = bool(values[flag])
    values["budget"] = budget_of(values["budget"])
    return Sample(**values)


def _now(precision: str = "microseconds") -> str:
    """The time, in UTC. Runs are put in order by it, for which seconds are too coarse."""
    return datetime.now(UTC).isoformat(timespec=precision)


def _json(data: object) -> str:
    return json.dumps(data, sort_keys=True, ensure_ascii=False)


class StoredRun(Record):
    """A run of a store, in short.

    run: its id, which is also its text.
    model: the name.
    label: what was done to the model.
    plan: in words.
    rows: number of stored answers; 0 if the evaluation was stopped before its first batch was complete.
    adaptive: whether `find` decided how many problems the run has.
    """

    run: str
    model: str | None
    label: str
    plan: str
    rows: int
    adaptive: bool

    def __str__(self) -> str:
        return self.run


def runs(store: str | Path, remove: str | None = None, rename: tuple[str, str] | None = None) -> Listing[StoredRun]:
    """The runs of a store, oldest first.

        for run in prunus.runs("results.db"):
            print(run, run.model, run.label, run.rows)

    store: SQLite file of the results.
    remove: first remove the run with this id, start of an id, model name or label, with all its rows; there is no way
        back, and only its plan and its times are kept.
    rename: (run, name): first give the model of this run, named likewise, a name that no other run has.

    Raises PrunusError, and removes nothing, if what is to be removed is no run or several, or while a process is
    evaluating it.
    """
    with Store(store) as opened:
        if remove is not None:
            opened.remove_run(remove)
        if rename is not None:
            opened.rename_run(*rename)
        counts = opened.counts()
        return Listing(
            StoredRun(
                run=run.run_id,
                model=run.model.name,
                label=label_of(run),
                plan=plan_in_short(run.plan),
                rows=counts.get(run.run_id, 0),
                adaptive=run.adaptive is not None,
            )
            for run in opened.runs()
        )
