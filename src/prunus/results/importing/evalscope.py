"""Logs of evalscope: `reviews/MODEL/BENCHMARK_SUBSET.jsonl`.

Token counts and reasons for the end of an output are in the file of the same name under `predictions`, the version and
the prompt template in `configs/task_config.yaml`. Both are read if they are there. Checked against evalscope 1.14.1.
"""

import json
from collections.abc import Mapping
from dataclasses import field
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
    Message,
    Output,
    json_lines,
    score,
    text_of,
)

TOOL, READS, FILES = "evalscope", "1.", "reviews/*/*.jsonl"


class GradedOutput(LogObject):
    """Values of metrics, and what was graded."""

    value: Data = field(default_factory=dict)
    prediction: Any = None
    extracted_prediction: Any = None


class OutputScore(LogObject):
    """The grade of an output. group_id: of the outputs for a problem."""

    score: GradedOutput
    group_id: Any = None


class Review(LogObject):
    """A line of the log."""

    index: int
    sample_score: OutputScore
    messages: Any = None
    input: Any = None
    target: Any = None


class Prediction(LogObject):
    """A line of the file of predictions."""

    index: int
    model_output: Output = Output()


class Benchmark(LogObject):
    """Settings of a benchmark."""

    prompt_template: Any = None
    few_shot_num: Any = None


class Settings(LogObject):
    """Settings of the run."""

    evalscope_version: Any = None
    model_id: Any = None
    generation_config: Data = field(default_factory=dict)
    resolved_benchmarks: Data = field(default_factory=dict)


def detect(path: Path, head: bytes) -> bool:
    """Whether the file has reviews, or the predictions, which `read` explains."""
    return head.startswith(b"{") and b'"index"' in head and (b'"sample_score"' in head or b'"model_output"' in head)


def read(path: Path) -> ImportedLog:
    """The log with a record per review. path: OUTPUTS/reviews/MODEL/FILE; other files of OUTPUTS are read, too."""
    folder = path.absolute().parent.parent.parent  # OUTPUTS/reviews/MODEL/FILE
    config = _settings(folder / "configs" / "task_config.yaml")
    version = files.check_version(path, TOOL, config.evalscope_version, READS)
    outputs = _outputs(folder / "predictions" / path.parent.name / path.name)
    name = path.stem
    known = config.resolved_benchmarks
    benchmark = max((benchmark for benchmark in known if name.startswith(f"{benchmark}_")), key=len, default=name)
    subset, settings = name.removeprefix(f"{benchmark}_"), Benchmark.of(known.get(benchmark))
    task = benchmark if subset in ("default", "main", benchmark) else name
    template = text_of(settings.prompt_template)
    draws: dict[str, int] = {}
    records = [_record(task, template, line, where, outputs, draws) for where, line in json_lines(path)]
    return ImportedLog(
        TOOL,
        version,
        text_of(config.model_id) or path.parent.name,
        records,
        {
            "generation": files.sampling(config.generation_config),
            "prompt": template or None,
            "fewshot": settings.few_shot_num,
        },
    )


def _record(
    task: str, template: str, line: Data, where: str, outputs: Mapping[int, Output], draws: dict[str, int]
) -> LogRecord:
    if "sample_score" not in line:
        raise PrunusError(f"{where} has predictions without grades: name the file of the same name under reviews/")
    review = Review.of(line, where)
    graded, group = review.sample_score.score, review.sample_score.group_id
    group = str(review.index if group is None else group)
    draw = draws[group] = draws.get(group, -1) + 1
    messages = review.messages or review.input
    spoken = [Message.of(message) for message in messages] if isinstance(messages, list) else []
    replies = [message for message in spoken if message.role == "assistant"]
    thinking, text = files.message_texts(replies[-1].content) if replies else ("", text_of(graded.prediction))
    answer = files.answer_of(graded.extracted_prediction)
    return LogRecord(
        task=task,
        question=_asked(files.question_of(messages), template),
        place=group,
        draw=draw,
        grades={name: LogGrade(score(value), answer) for name, value in graded.value.items()},
        target=text_of(review.target),
        text=text,
        thinking=thinking,
        **outputs.get(review.index, Output()).outcome,
    )


def _asked(prompt: str, template: str) -> str:
    """The question in a prompt, if the template has no other field; else the prompt."""
    before, field, after = template.partition("{question}")
    before, after = (text.replace("{{", "{").replace("}}", "}") for text in (before, after))
    fits = field and prompt.startswith(before) and prompt.endswith(after) and len(prompt) > len(before) + len(after)
    return prompt[len(before) : len(prompt) - len(after)] if fits else prompt


def _outputs(path: Path) -> dict[int, Output]:
    """The outputs by the index of their predictions; empty if the file is not there."""
    lines = json_lines(path) if path.is_file() else ()
    predictions = [Prediction.of(line, where) for where, line in lines]
    return {prediction.index: prediction.model_output for prediction in predictions}


def _settings(path: Path) -> Settings:
    """The settings of the run; without any if the file is not there."""
    if not path.is_file():
        return Settings()
    import yaml  # of huggingface_hub

    files.check_size(path, path.stat().st_size * 1000)  # a page or two
    try:
        config: object = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise PrunusError(f"'{path}' is not readable YAML: move it away to import without it") from error
    return Settings.of(json.loads(json.dumps(config, default=str)))
