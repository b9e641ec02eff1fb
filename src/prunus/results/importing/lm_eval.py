"""Logs of lm-evaluation-harness: `samples_TASK_DATE.jsonl`, which `--log_samples` writes beside `results_DATE.json`.

A line is one document under one filter, so a metric is named `METRIC,FILTER`, as in the results. The log has no token
counts and no reason for the end of an output. Checked against lm-eval 0.4.13.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.errors import PrunusError
from prunus.results.importing import files
from prunus.results.importing.files import (
    Data,
    ImportedLog,
    LogGrade,
    LogObject,
    LogRecord,
    json_lines,
    score,
    text_of,
)

TOOL, READS, FILES = "lm-eval", "0.4.", "samples_*.jsonl"
LONGEST_ANSWER = 1000  # characters of an extracted answer that are kept
QUESTION, CHOICES = ("question", "problem", "Question", "Problem"), ("choices", "options")
CONTEXT = ("passage", "context", "story", "article", "premise")  # a question about one of these is not alone


class FilterLine(LogObject):
    """A line of the log, whose metrics are further keys. resps: the outputs of each request."""

    doc_id: int | str
    filter: str
    resps: list[Any]
    metrics: list[Any]
    filtered_resps: list[Any]
    doc: Any = None
    target: Any = None


class TaskConfig(LogObject):
    """Settings of a task."""

    generation_kwargs: Any = None
    num_fewshot: Any = None
    doc_to_text: Any = None


class HarnessResults(LogObject):
    """The file of results. configs: by task."""

    lm_eval_version: Any = None
    model_name: Any = None
    chat_template_sha: Any = None
    system_instruction_sha: Any = None
    configs: Data = field(default_factory=dict)


@dataclass(frozen=True)
class GradedDocument:
    """A document under all filters. first: its first line. grades: of all, by `METRIC,FILTER`."""

    first: FilterLine
    grades: dict[str, LogGrade]


def detect(path: Path, head: bytes) -> bool:
    """Whether the file is a log of samples, or the file of results, which `read` explains."""
    return all(sign in head for sign in (b'"doc_id"', b'"resps"', b'"filter"')) or _is_results(path)


def read(path: Path) -> ImportedLog:
    """The log with the records of a task, and what the results beside it say of model and settings."""
    if _is_results(path):
        raise PrunusError(f"'{path}' has averages only: name the samples_*.jsonl beside it (from --log_samples)")
    task, results = _task_of(path), _results(path)
    version = files.check_version(path, TOOL, results.lm_eval_version, READS)
    documents: dict[str, GradedDocument] = {}
    for where, line in json_lines(path):
        _add(documents, line, where)
    config = TaskConfig.of(results.configs.get(task))
    return ImportedLog(
        TOOL,
        version,
        text_of(results.model_name),
        [_record(task, document) for document in documents.values()],
        {
            "generation": config.generation_kwargs,
            "fewshot": config.num_fewshot,
            "prompt": config.doc_to_text,
            "chat_template": results.chat_template_sha,
            "system": results.system_instruction_sha,
        },
    )


def _add(documents: dict[str, GradedDocument], data: Data, where: str) -> None:
    """Merge a line into its document: the same document under another filter has other metrics."""
    line = FilterLine.of(data, where)
    grades = documents.setdefault(str(line.doc_id), GradedDocument(line, {})).grades
    for metric in line.metrics:
        name = f"{metric},{line.filter}"
        if name in grades:
            raise PrunusError(
                f"{where} repeats document {line.doc_id} under the filter '{line.filter}': the log is of two runs"
            )
        grades[name] = LogGrade(score(data.get(str(metric))), _answer(line.filtered_resps))


def _record(task: str, document: GradedDocument) -> LogRecord:
    line = document.first
    question, choices = _question(line.doc)
    text = "\n\n".join(text for request in line.resps for text in _texts(request))
    return LogRecord(task, question, str(line.doc_id), 0, document.grades, text_of(line.target), text, choices=choices)


def _question(doc: object) -> tuple[str, tuple[str, ...]]:
    """The question and choices of a document; the whole document where it names neither."""
    if isinstance(doc, dict) and not any(doc.get(name) for name in CONTEXT):
        question = next((doc[name] for name in QUESTION if isinstance(doc.get(name), str)), None)
        if question is not None:
            offered = next((doc[name] for name in CHOICES if doc.get(name)), [])
            offered = offered.get("text", []) if isinstance(offered, dict) else offered
            return question, tuple(map(text_of, offered)) if isinstance(offered, list) else ()
    return text_of(doc), ()


def _answer(responses: list[Any]) -> str | None:
    """The answer that the filter extracted, or the number of the likeliest choice."""
    pairs = [response for response in responses if isinstance(response, list) and len(response) == 2]
    if len(responses) > 1 and len(pairs) == len(responses):
        try:
            return str(max(range(len(pairs)), key=lambda index: float(pairs[index][0])))
        except (TypeError, ValueError):
            return None
    first = responses[0] if len(responses) == 1 else None
    return first[:LONGEST_ANSWER] if isinstance(first, str) and first not in ("", "[invalid]") else None


def _texts(request: object) -> list[str]:
    """The texts that were generated for a request; none for likelihoods."""
    return [text for text in request if isinstance(text, str)] if isinstance(request, list) else []


def _is_results(path: Path) -> bool:
    return re.fullmatch(r"results_.*\.json", path.name) is not None and b'"results"' in files.beginning(path, 64)


def _task_of(path: Path) -> str:
    """The task in the file's name; its date begins with a year."""
    match = re.fullmatch(r"samples_(.+)_\d{4}-\d\d-\d\dT[\d.-]+", path.stem)
    return match[1] if match else path.stem


def _results(path: Path) -> HarnessResults:
    """The results of the same run, which lie beside the samples; empty if they were not copied along."""
    match = re.search(r"_(\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl$", path.name)
    beside = path.with_name(f"results_{match[1]}.json") if match else None
    return HarnessResults.of(files.json_file(beside) if beside is not None and beside.is_file() else {})
