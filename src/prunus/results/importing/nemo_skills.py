"""Outputs of NeMo-Skills and sgl-eval: `eval-results/BENCHMARK/output-rsN.jsonl` for each seed N, or `output.jsonl`.

A line has the fields of the problem, `generation`, and what graders add: `symbolic_correct` (`is_correct` in older
logs), and the text `judgement` of a judge. N is the draw. Files name no model, no version and no reason for the end of
an output.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from prunus.errors import PrunusError
from prunus.results.importing import files
from prunus.results.importing.files import Data, ImportedLog, LogGrade, LogRecord, json_lines, need, text_of

TOOL, FILES = "NeMo-Skills", "output-rs*.jsonl"
NAME = re.compile(r"output(?:-rs(\d+))?(?:_chunk_\d+)?")
# What a line may have, besides the output and its grades.
FIELDS = (
    "problem", "question", "id", "expected_answer", "predicted_answer", "reasoning_content", "num_generated_tokens",
    "judgement",
)  # fmt: skip
GRADES = ("symbolic_correct", "is_correct")
JUDGED = re.compile(r"judge?ment:?\W*(yes|no)\b|\[(correct|incorrect)\]", re.IGNORECASE)


def detect(path: Path, head: bytes) -> bool:
    """Whether the file has outputs with the fields of this tool."""
    return head.startswith(b"{") and b'"generation"' in head and b'"expected_answer"' in head


def read(path: Path) -> ImportedLog:
    """The log with a record per line; its task is the name of the folder."""
    found = NAME.fullmatch(path.stem)
    draw, task = int(found[1] or 0) if found else 0, path.absolute().parent.name
    records = [_record(task, draw, number, line, where) for number, (where, line) in enumerate(json_lines(path))]
    return ImportedLog(TOOL, None, "", records)


def _record(task: str, draw: int, number: int, line: Data, where: str) -> LogRecord:
    there = {name: line.get(name) for name in FIELDS}
    question = there["problem"] or there["question"]
    if not isinstance(question, str):
        raise PrunusError(f"{where} has no usable 'problem' or 'question': its format is not known to this prunus")
    tokens = there["num_generated_tokens"]
    return LogRecord(
        task=task,
        question=question,
        place=str(there["id"] or number),
        draw=draw,
        grades=_grades(line, there["judgement"], files.answer_of(there["predicted_answer"])),
        target=text_of(there["expected_answer"]),
        text=need(line, "generation", str, where),
        thinking=text_of(there["reasoning_content"]),
        output_tokens=tokens if isinstance(tokens, int) and 0 <= tokens < files.MOST_TOKENS else None,
    )


def _grades(line: Data, judgement: object, answer: str | None) -> Mapping[str, LogGrade]:
    """The grades by metric; of a judge's text that says neither yes nor no, that it says no."""
    grades = {name: LogGrade(float(line[name]), answer) for name in GRADES if isinstance(line.get(name), bool)}
    if isinstance(judgement, str):
        found = JUDGED.search(judgement)
        word = "" if found is None else (found[1] or found[2]).casefold()
        grades["judgement"] = LogGrade(float(word in ("yes", "correct")), answer)
    return grades
