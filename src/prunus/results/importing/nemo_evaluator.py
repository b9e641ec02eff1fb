"""Records of NeMo Evaluator: `results.jsonl`, as its `nel compare` and `nel gate` read them.

A line has `problem_idx`, `reward` and possibly `repeat`, `expected_answer`, `model_response` and `extracted_answer`. It
has no question: a problem is known by its number and its expected answer.
"""

from pathlib import Path

from prunus.results.importing import files
from prunus.results.importing.files import Data, ImportedLog, LogGrade, LogRecord, json_lines, need, score, text_of

TOOL, FILES = "NeMo Evaluator", "results.jsonl"
FIELDS = ("reward", "repeat", "expected_answer", "model_response", "extracted_answer")


def detect(path: Path, head: bytes) -> bool:
    """Whether the file has records with the two fields that each has."""
    return head.startswith(b"{") and b'"problem_idx"' in head and b'"reward"' in head


def read(path: Path) -> ImportedLog:
    """The log with a record per line."""
    return ImportedLog(TOOL, None, "", [_record(line, where) for where, line in json_lines(path)])


def _record(line: Data, where: str) -> LogRecord:
    number, there = need(line, "problem_idx", int, where), {name: line.get(name) for name in FIELDS}
    repeat, target = there["repeat"], text_of(there["expected_answer"])
    return LogRecord(
        task="results",
        question=f"problem {number}: {target}",
        place=str(number),
        draw=repeat if isinstance(repeat, int) and repeat >= 0 else 0,
        grades={"reward": LogGrade(score(there["reward"]), files.answer_of(there["extracted_answer"]))},
        target=target,
        text=text_of(there["model_response"]) or text_of(there["extracted_answer"]),
    )
