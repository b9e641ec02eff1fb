"""Records of NeMo Evaluator: `results.jsonl`, as its `nel compare` and `nel gate` read them.

A line has `problem_idx`, `reward` and possibly `repeat`, `expected_answer`, `model_response` and `extracted_answer`. It
has no question: a problem is known by its number and its expected answer.
"""

from pathlib import Path
from typing import Any

from prunus.results.importing import files
from prunus.results.importing.files import ImportedLog, LogGrade, LogObject, LogRecord, json_lines, score, text_of

TOOL, FILES = "NeMo Evaluator", "results.jsonl"


class RewardLine(LogObject):
    """A line of the log."""

    problem_idx: int
    reward: Any = None
    repeat: Any = None
    expected_answer: Any = None
    model_response: Any = None
    extracted_answer: Any = None


def detect(path: Path, head: bytes) -> bool:
    """Whether the file has records with the two fields that each has."""
    return head.startswith(b"{") and b'"problem_idx"' in head and b'"reward"' in head


def read(path: Path) -> ImportedLog:
    """The log with a record per line."""
    return ImportedLog(TOOL, None, "", [_record(RewardLine.of(line, where)) for where, line in json_lines(path)])


def _record(line: RewardLine) -> LogRecord:
    repeat, target = line.repeat, text_of(line.expected_answer)
    return LogRecord(
        task="results",
        question=f"problem {line.problem_idx}: {target}",
        place=str(line.problem_idx),
        draw=repeat if isinstance(repeat, int) and repeat >= 0 else 0,
        grades={"reward": LogGrade(score(line.reward), files.answer_of(line.extracted_answer))},
        target=target,
        text=text_of(line.model_response) or text_of(line.extracted_answer),
    )
