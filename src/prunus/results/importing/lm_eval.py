"""Logs of lm-evaluation-harness: `samples_TASK_DATE.jsonl`, which `--log_samples` writes beside `results_DATE.json`.

A line is one document under one filter, so a metric is named `METRIC,FILTER`, as in the results. The log has no token
counts and no reason for the end of an output. Checked against lm-eval 0.4.13.
"""

import re
from pathlib import Path
from typing import Any

from prunus.errors import PrunusError
from prunus.results.importing import files
from prunus.results.importing.files import (
    Data,
    ImportedLog,
    LogGrade,
    LogRecord,
    json_lines,
    need,
    part,
    score,
    text_of,
)

TOOL, READS, FILES = "lm-eval", "0.4.", "samples_*.jsonl"
LONGEST_ANSWER = 1000  # characters of an extracted answer that are kept
QUESTION, CHOICES = ("question", "problem", "Question", "Problem"), ("choices", "options")
CONTEXT = ("passage", "context", "story", "article", "premise")  # a question about one of these is not alone


def detect(path: Path, head: bytes) -> bool:
    """Whether the file is a log of samples, or the file of results, which `read` explains."""
    return all(sign in head for sign in (b'"doc_id"', b'"resps"', b'"filter"')) or _is_results(path)


def read(path: Path) -> ImportedLog:
    """The log with the records of a task, and what the results beside it say of model and settings."""
    if _is_results(path):
        raise PrunusError(f"'{path}' has averages only: name the samples_*.jsonl beside it (from --log_samples)")
    task, results = _task_of(path), _results(path)
    version = files.check_version(path, TOOL, results.get("lm_eval_version"), READS)
    documents: dict[str, Data] = {}
    for where, line in json_lines(path):
        _add(documents, line, where)
    config = part(results, "configs", task)
    return ImportedLog(
        TOOL,
        version,
        text_of(results.get("model_name")),
        [_record(task, document) for document in documents.values()],
        {
            "generation": config.get("generation_kwargs"),
            "fewshot": config.get("num_fewshot"),
            "prompt": config.get("doc_to_text"),
            "chat_template": results.get("chat_template_sha"),
            "system": results.get("system_instruction_sha"),
        },
    )


def _add(documents: dict[str, Data], line: Data, where: str) -> None:
    """Merge a line into its document: the same document under another filter has other metrics."""
    place, filtered = str(need(line, "doc_id", (int, str), where)), need(line, "filter", str, where)
    need(line, "resps", list, where)
    entry = documents.setdefault(place, line | {"grades": {}})
    for metric in need(line, "metrics", list, where):
        name = f"{metric},{filtered}"
        if name in entry["grades"]:
            raise PrunusError(f"{where} repeats document {place} under the filter '{filtered}': the log is of two runs")
        entry["grades"][name] = LogGrade(
            score(line.get(str(metric))), _answer(need(line, "filtered_resps", list, where))
        )


def _record(task: str, entry: Data) -> LogRecord:
    question, choices = _question(entry["doc"])
    texts = [text for request in entry["resps"] for text in _texts(request)]
    target = text_of(entry.get("target"))
    return LogRecord(
        task, question, str(entry["doc_id"]), 0, entry["grades"], target, "\n\n".join(texts), choices=choices
    )


def _question(doc: object) -> tuple[str, tuple[str, ...]]:
    """The question and choices of a document; the whole document where it names neither."""
    if isinstance(doc, dict) and not any(doc.get(name) for name in CONTEXT):
        asked = next((doc[name] for name in QUESTION if isinstance(doc.get(name), str)), None)
        if asked is not None:
            offered = next((doc[name] for name in CHOICES if doc.get(name)), [])
            offered = offered.get("text", []) if isinstance(offered, dict) else offered
            return asked, tuple(map(text_of, offered)) if isinstance(offered, list) else ()
    return text_of(doc), ()


def _answer(responses: list[Any]) -> str | None:
    """What the filter extracted, or the number of the likeliest choice."""
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


def _results(path: Path) -> Data:
    """The results of the same run, which lie beside the samples; empty if they were not copied along."""
    match = re.search(r"_(\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl$", path.name)
    beside = path.with_name(f"results_{match[1]}.json") if match else None
    return files.json_file(beside) if beside is not None and beside.is_file() else {}
