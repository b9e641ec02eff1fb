"""The tables of the store's SQLite file."""

import sqlite3
from pathlib import Path

from prunus import formats
from prunus.errors import PrunusError
from prunus.formats import FORMATS
from prunus.version import __version__

APPLICATION_ID = 0x5072756E  # "Prun", in the header of the file: other programs' SQLite files have another

# The long texts come last, so that reading the columns before them does not touch their
# overflow pages.
TABLES = {
    "meta": "(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "run": """(
        run_id TEXT PRIMARY KEY,  -- hash of model files and plan: same work, same id
        model TEXT NOT NULL, plan TEXT NOT NULL, versions TEXT NOT NULL  -- JSON
    )""",
    "problem": """(
        problem_id TEXT PRIMARY KEY, task TEXT NOT NULL, gold TEXT NOT NULL, kind TEXT NOT NULL,
        choices TEXT NOT NULL,  -- JSON list
        digest TEXT NOT NULL    -- of question, gold and choices
    ) WITHOUT ROWID""",
    "sample": """(
        run_id TEXT NOT NULL REFERENCES run,
        task TEXT NOT NULL,
        problem_id TEXT NOT NULL REFERENCES problem,  -- pairs models
        budget INTEGER NOT NULL,                      -- thinking tokens allowed; -1: thinking switched off
        draw INTEGER NOT NULL,                        -- 0, 1, ... the seed follows from the key, never from the order
        thinking_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL, forced_tokens INTEGER NOT NULL,
        ended TEXT NOT NULL CHECK (ended IN ('natural', 'forced')),
        answer_truncated INTEGER NOT NULL, reopened_think INTEGER NOT NULL,
        answer TEXT,                                  -- normalised; NULL: none found; votes count answers, not verdicts
        status TEXT NOT NULL,                         -- of the grader
        correct INTEGER NOT NULL,
        logprob REAL, self_certainty REAL, repetition REAL,  -- of sampled tokens, and of their text
        answer_cap INTEGER,                                  -- answer tokens allowed
        loops INTEGER,                                       -- see prunus.store.looping
        thinking TEXT NOT NULL, text TEXT NOT NULL,   -- text: the answer phase
        start INTEGER NOT NULL,                       -- number of the start that computed it; 0: the first
        PRIMARY KEY (run_id, problem_id, budget, draw)
    ) WITHOUT ROWID""",
    # The form of answer that a question asks for.
    "asks": """(
        problem_id TEXT PRIMARY KEY REFERENCES problem,
        wishes TEXT NOT NULL  -- JSON list, see prunus.evaluation.grading
    ) WITHOUT ROWID""",
    # A hash of each problem's question, by which imported logs find problems.
    "question": """(
        problem_id TEXT PRIMARY KEY REFERENCES problem,
        digest TEXT NOT NULL  -- see prunus.questions.question_key
    ) WITHOUT ROWID""",
    # The questions themselves, but for those of gated sets, by the digest in `question`.
    "asked": """(
        digest TEXT PRIMARY KEY,
        text TEXT NOT NULL
    ) WITHOUT ROWID""",
    # Runs whose number of problems depended on their rows (rows.Run.adaptive).
    "adaptive": """(
        run_id TEXT PRIMARY KEY REFERENCES run,
        how TEXT NOT NULL  -- JSON: {"by": "find", "seed": of the order of problems}
    ) WITHOUT ROWID""",
    # Searches by `find`, in the order in which they were declared (rows.DeclaredSearch).
    "search": """(
        number INTEGER PRIMARY KEY,
        search_id TEXT NOT NULL UNIQUE,  -- hash of `declared`
        declared TEXT NOT NULL,          -- JSON, the part `declared` of its certificate
        at TEXT NOT NULL,                -- UTC
        had TEXT NOT NULL                -- JSON: {run: [problems, rows]} that its runs had then
    )""",
    # What happened in the store, in its order (prunus.store.log).
    "log": """(
        number INTEGER PRIMARY KEY,
        at TEXT NOT NULL,     -- UTC
        event TEXT NOT NULL,  -- JSON
        link TEXT NOT NULL    -- hash of the entry and of the link before it
    )""",
    # The problems of a plan in their order, by the digest that the plan has of them.
    "planned": """(
        digest TEXT PRIMARY KEY,
        problems TEXT NOT NULL  -- JSON: {task: [problem ids]}
    ) WITHOUT ROWID""",
    # When the last evaluation of each run began that lacked rows of it, and what could be seen of other runs of the
    # same model then.
    "begun": """(
        run_id TEXT PRIMARY KEY REFERENCES run,
        at TEXT NOT NULL,      -- UTC
        earlier TEXT NOT NULL  -- JSON: {run id: complete problems} of plans with another limit or number of draws
    ) WITHOUT ROWID""",
    # Starts of a run after its first, where one recorded something else than the start before (rows.Start).
    "start": """(
        number INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL REFERENCES run,
        at TEXT NOT NULL,       -- UTC
        content TEXT,           -- digest of the model's configuration, tokenizer and template
        versions TEXT NOT NULL, -- JSON, as of the run
        mixed INTEGER NOT NULL  -- whether something that changes numbers was not as before
    )""",
    # Runs that were removed with their rows, which somebody may have seen (rows.Removed).
    "removed": """(
        number INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL,
        model TEXT NOT NULL, plan TEXT NOT NULL,  -- JSON, as of the run
        begun TEXT NOT NULL,                      -- as of the run
        at TEXT NOT NULL,                         -- UTC: when it was removed
        complete INTEGER NOT NULL,                -- problems with all of their rows
        problems INTEGER NOT NULL, samples INTEGER NOT NULL  -- problems with rows, and rows
    )""",
    # Problems that count as one observation with others (rows.ProblemRow.group).
    "belongs": """(
        problem_id TEXT PRIMARY KEY REFERENCES problem,
        first TEXT NOT NULL  -- id of the first problem of its group; problems that are first or alone are not listed
    ) WITHOUT ROWID""",
    # The thinking of chains under the largest budget of their run, from which further budgets are answered.
    "thought": """(
        run_id TEXT NOT NULL REFERENCES run,
        problem_id TEXT NOT NULL REFERENCES problem,
        draw INTEGER NOT NULL,
        ids BLOB NOT NULL,  -- token ids, as prunus.store.thought packs them
        scores BLOB,        -- likewise; NULL where the engine returns none
        PRIMARY KEY (run_id, problem_id, draw)
    ) WITHOUT ROWID""",
}
# Draws at budgets that the plan of their run does not have (prunus.evaluation.refine).
TABLES["finer"] = TABLES["sample"]


def damaged(path: Path, what: str) -> PrunusError:
    """The error for a store whose content prunus cannot have written."""
    return PrunusError(f"the store '{path}' is damaged ({what}): restore a copy or name another --store")


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether the file has neither a table nor a version."""
    tables, version = _number(connection, "SELECT count(*) FROM sqlite_master"), _version(connection)
    return tables == 0 and version == 0


def make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of a new store, inside a transaction.

    Statements are executed in turn: executescript would commit first, and the file must turn from empty to complete
    in one step.
    """
    for name, columns in TABLES.items():
        connection.execute(f"CREATE TABLE {name} {columns}")
    connection.execute("INSERT INTO meta VALUES ('prunus', ?)", (__version__,))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMATS['store']}")


def check_format(connection: sqlite3.Connection, path: Path) -> None:
    """Raise PrunusError unless the file at path is a store of today's format."""
    if _number(connection, "PRAGMA application_id") != APPLICATION_ID:
        raise PrunusError(f"'{path}' is an SQLite file but not a store of Prunus: name another --store")
    instead = "use that prunus, or name another --store"
    formats.check_format("store", path, _version(connection), instead, _writer(connection))
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if lacking := [name for name in TABLES if name not in there]:
        raise damaged(path, f"it lacks the table {lacking[0]}")


def _version(connection: sqlite3.Connection) -> int:
    return _number(connection, "PRAGMA user_version")


def _number(connection: sqlite3.Connection, query: str) -> int:
    ((value,),) = connection.execute(query).fetchall()
    return value


def _writer(connection: sqlite3.Connection) -> str:
    """The version of Prunus that made the file, such as `prunus 0.1.0`."""
    try:
        stored = connection.execute("SELECT value FROM meta WHERE name = 'prunus'").fetchone()
    except sqlite3.Error:  # a format that stores the version elsewhere
        stored = None
    return f"prunus {stored[0]}" if stored else "another prunus"
