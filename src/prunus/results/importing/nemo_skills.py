"""Outputs of NeMo-Skills and sgl-eval: `eval-results/BENCHMARK/output-rsN.jsonl` for each seed N, or `output.jsonl`.

A line has the fields of the problem, `generation`, and what graders add: `symbolic_correct` (`is_correct` in older
logs), and the text `judgement` of a judge. N is the draw. Files name no model, no version and no reason for the end of
an output.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunus.errors import PrunusError
from prunus.results.importing import files
from prunus.results.importing.files import ImportedLog, LogGrade, LogObject, LogRecord, json_lines, text_of

TOOL, FILES = "NeMo-Skills", "output-rs*.jsonl"
NAME = re.compile(r"output(?:-rs(\d+))?(?:_chunk_\d+)?")
JUDGED = re.compile(r"judge?ment:?\W*(yes|no)\b|\[(correct|incorrect)\]", re.IGNORECASE)


class GenerationLine(LogObject):
    """A line of the log."""

    generation: str
    problem: Any = None
    question: Any = None
    id: Any = None
    expected_answer: Any = None
    predicted_answer: Any = None
    reasoning_content: Any = None
    num_generated_tokens: Any = None
    judgement: Any = None
    symbolic_correct: bool | None = None
    is_correct: bool | None = None


def detect(path: Path, head: bytes) -> bool:
    """Whether the file has outputs with the fields of this tool."""
    return head.startswith(b"{") and b'"generation"' in head and b'"expected_answer"' in head


def read(path: Path) -> ImportedLog:
    """The log with a record per line; its task is the name of the folder."""
    found = NAME.fullmatch(path.stem)
    draw, task = int(found[1] or 0) if found else 0, path.absolute().parent.name
    records = [
        _record(task, draw, number, GenerationLine.of(line, where), where)
        for number, (where, line) in enumerate(json_lines(path))
    ]
    return ImportedLog(TOOL, None, "", records)


def _record(task: str, draw: int, number: int, line: GenerationLine, where: str) -> LogRecord:
    question = line.problem or line.question
    if not isinstance(question, str):
        raise PrunusError(f"{where} has no usable 'problem' or 'question': its format is not known to this prunus")
    return LogRecord(
        task=task,
        question=question,
        place=str(line.id or number),
        draw=draw,
        grades=_grades(line),
        target=text_of(line.expected_answer),
        text=line.generation,
        thinking=text_of(line.reasoning_content),
        output_tokens=files.count(line.num_generated_tokens),
    )


def _grades(line: GenerationLine) -> Mapping[str, LogGrade]:
    """The grades by metric; a judge's text that says neither yes nor no counts as no."""
    answer = files.answer_of(line.predicted_answer)
    marks = {"symbolic_correct": line.symbolic_correct, "is_correct": line.is_correct}
    grades = {name: LogGrade(float(mark), answer) for name, mark in marks.items() if mark is not None}
    if isinstance(line.judgement, str):
        found = JUDGED.search(line.judgement)
        word = "" if found is None else (found[1] or found[2]).casefold()
        grades["judgement"] = LogGrade(float(word in ("yes", "correct")), answer)
    return grades
