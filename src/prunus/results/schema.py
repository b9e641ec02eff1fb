"""The tables of the store's SQLite file, its format version, and the upgrade of older formats."""

SCHEMA_VERSION = 3
APPLICATION_ID = 0x5072756E  # "Prun": tells our files from other programs' SQLite files

# The speed of a run's model on a machine. Readers of older formats ignore the table, and older stores get it when it is
# first needed, so it does not need a new format version.
TIMING_DDL = """
    CREATE TABLE IF NOT EXISTS timing (
        run_id TEXT NOT NULL REFERENCES run, machine TEXT NOT NULL,
        speed TEXT NOT NULL,  -- JSON, see prunus.results.latency
        PRIMARY KEY (run_id, machine)
    ) WITHOUT ROWID"""

# The form of answer that a question asks for, as questions are not kept. Like timing, it needs no new format version.
ASKS_DDL = """
    CREATE TABLE IF NOT EXISTS asks (
        problem_id TEXT PRIMARY KEY REFERENCES problem,
        wishes TEXT NOT NULL  -- JSON list, see prunus.evaluation.grading
    ) WITHOUT ROWID"""

# The long texts come last, so that reading the columns before them does not touch their overflow pages.
DDL = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """
    CREATE TABLE run (
        run_id TEXT PRIMARY KEY,  -- hash of model files and plan: same work, same id
        model TEXT NOT NULL, plan TEXT NOT NULL, versions TEXT NOT NULL  -- JSON
    )""",
    """
    CREATE TABLE problem (
        problem_id TEXT PRIMARY KEY, task TEXT NOT NULL, gold TEXT NOT NULL, kind TEXT NOT NULL,
        choices TEXT NOT NULL,  -- JSON list
        digest TEXT NOT NULL    -- of question, gold and choices; the question itself is not kept
    ) WITHOUT ROWID""",
    """
    CREATE TABLE sample (
        run_id TEXT NOT NULL REFERENCES run,
        task TEXT NOT NULL,
        problem_id TEXT NOT NULL REFERENCES problem,  -- pairs models
        budget INTEGER NOT NULL,                      -- thinking tokens allowed
        draw INTEGER NOT NULL,                        -- 0, 1, ... the seed follows from the key, never from the order
        thinking_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL, forced_tokens INTEGER NOT NULL,
        ended TEXT NOT NULL CHECK (ended IN ('natural', 'forced')),
        answer_truncated INTEGER NOT NULL, reopened_think INTEGER NOT NULL,
        answer TEXT,                                  -- normalised; NULL: none found; votes count answers, not verdicts
        status TEXT NOT NULL,                         -- of the grader
        correct INTEGER NOT NULL,
        logprob REAL, self_certainty REAL, repetition REAL,  -- of sampled tokens, and of their text; since format 2
        answer_cap INTEGER,                                  -- answer tokens allowed; since format 3
        thinking TEXT NOT NULL, text TEXT NOT NULL,   -- text: the answer phase
        PRIMARY KEY (run_id, problem_id, budget, draw)
    ) WITHOUT ROWID""",
    TIMING_DDL,
)

ADDED = {  # columns that older formats lack: the format that brought them, and their type
    "logprob": (2, "REAL"),
    "self_certainty": (2, "REAL"),
    "repetition": (2, "REAL"),
    "answer_cap": (3, "INTEGER"),
}
