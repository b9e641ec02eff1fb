"""Logs of evalscope: `reviews/MODEL/BENCHMARK_SUBSET.jsonl`.

Token counts and reasons for the end of an output are in the file of the same name under `predictions`, the version and
the prompt template in `configs/task_config.yaml`. Both are read if they are there. Checked against evalscope 1.14.1.
"""

import json
from collections.abc import Mapping
from pathlib import Path

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

TOOL, READS, FILES = "evalscope", "1.", "reviews/*/*.jsonl"


def detect(path: Path, head: bytes) -> bool:
    """Whether the file has reviews, or the predictions, which `read` explains."""
    return head.startswith(b"{") and b'"index"' in head and (b'"sample_score"' in head or b'"model_output"' in head)


def read(path: Path) -> ImportedLog:
    """The log with a record per review."""
    outputs = path.absolute().parent.parent.parent  # OUTPUTS/reviews/MODEL/FILE
    config = _config(outputs / "configs" / "task_config.yaml")
    version = files.check_version(path, TOOL, config.get("evalscope_version"), READS)
    predictions = _predictions(outputs / "predictions" / path.parent.name / path.name)
    name = path.stem
    benchmarks = part(config, "resolved_benchmarks")
    benchmark = max((benchmark for benchmark in benchmarks if name.startswith(f"{benchmark}_")), key=len, default=name)
    subset = name.removeprefix(f"{benchmark}_")
    task = benchmark if subset in ("default", "main", benchmark) else name
    template = text_of(part(benchmarks, benchmark).get("prompt_template"))
    draws: dict[str, int] = {}
    records = [_record(task, template, line, where, predictions, draws) for where, line in json_lines(path)]
    return ImportedLog(
        TOOL,
        version,
        text_of(config.get("model_id")) or path.parent.name,
        records,
        {
            "generation": files.sampling(part(config, "generation_config")),
            "prompt": template or None,
            "fewshot": part(benchmarks, benchmark).get("few_shot_num"),
        },
    )


def _record(
    task: str, template: str, line: Data, where: str, predictions: Mapping[int, Data], draws: dict[str, int]
) -> LogRecord:
    index = need(line, "index", int, where)
    if "sample_score" not in line:
        raise PrunusError(f"{where} has predictions without grades: name the file of the same name under reviews/")
    reviewed = need(line, "sample_score", dict, where)
    graded = need(reviewed, "score", dict, where)
    group = str(reviewed.get("group_id", index))
    draw = draws[group] = draws.get(group, -1) + 1
    messages = line.get("messages") or line.get("input")
    replies = (
        [message for message in messages if isinstance(message, dict) and message.get("role") == "assistant"]
        if messages
        else []
    )
    thinking, text = (
        files.message_texts(replies[-1].get("content")) if replies else ("", text_of(graded.get("prediction")))
    )
    answer = files.answer_of(graded.get("extracted_prediction"))
    _, outcome = files.outcome(part(predictions.get(index, {}), "model_output"))
    return LogRecord(
        task=task,
        question=_asked(files.question_of(messages), template),
        place=group,
        draw=draw,
        grades={name: LogGrade(score(value), answer) for name, value in part(graded, "value").items()},
        target=text_of(line.get("target")),
        text=text,
        thinking=thinking,
        **outcome,
    )


def _asked(prompt: str, template: str) -> str:
    """The question in a prompt, if the template has no other field; else the prompt."""
    before, field, after = template.partition("{question}")
    before, after = (text.replace("{{", "{").replace("}}", "}") for text in (before, after))
    fits = field and prompt.startswith(before) and prompt.endswith(after) and len(prompt) > len(before) + len(after)
    return prompt[len(before) : len(prompt) - len(after)] if fits else prompt


def _predictions(path: Path) -> dict[int, Data]:
    """The predictions by index; empty if the file is not there."""
    return {need(line, "index", int, where): line for where, line in (json_lines(path) if path.is_file() else ())}


def _config(path: Path) -> Data:
    """The settings of the run; empty if the file is not there."""
    if not path.is_file():
        return {}
    import yaml  # of huggingface_hub

    files.check_size(path, path.stat().st_size * 1000)  # a page or two
    try:
        config: object = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise PrunusError(f"'{path}' is not readable YAML: move it away to import without it") from error
    return json.loads(json.dumps(config, default=str)) if isinstance(config, dict) else {}
