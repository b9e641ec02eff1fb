"""Read files of other programs, which are untrusted: sizes are bounded, and every fault becomes one line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.errors import PrunusError, unreadable
from prunus.plain_data import parse_json, storable
from prunus.settings.budgets import AS_RUN


@dataclass(frozen=True)
class LogGrade:
    """What one metric says of an output: its score (None if the tool gave none), and the answer that it extracted."""

    score: float | None
    answer: str | None = None


@dataclass(frozen=True)
class LogRecord:
    """One output of a model for one problem.

    question, choices: as the log has them, without few-shot examples and templates where it has them apart; they
    identify the problem. place: the problem's place or id in its data set, which tells equal questions apart. draw: 0,
    1, ... for the outputs for a problem. grades: by metric. thinking: the reasoning, where the log keeps it apart
    from the text. output_tokens: all tokens that the model generated, with reasoning_tokens of reasoning among them;
    stopped: whether it ended by itself (True) or was cut at a limit (False). None: the log does not say.
    budget: thinking tokens that were allowed, which the user knows; AS_RUN: nobody does.
    """

    task: str
    question: str
    place: str
    draw: int
    grades: Mapping[str, LogGrade]
    target: str
    text: str
    thinking: str = ""
    choices: tuple[str, ...] = ()
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    stopped: bool | None = None
    budget: int = AS_RUN


@dataclass(frozen=True)
class ImportedLog:
    """A log that has been read. version: the tool's, or that of its format; None if the log does not say.

    model: the tool's name for the model. settings: plain data on which the outputs depend (sampling, prompts), for
    comparing runs.
    """

    tool: str
    version: str | None
    model: str
    records: Sequence[LogRecord]
    settings: Mapping[str, Any] = field(default_factory=dict)


LONGEST_LINE = 64 << 20  # bytes of one line of JSON
LARGEST = 2 << 30  # bytes of a log, unpacked
MOST_TOKENS = 1 << 40

# Settings on which no output depends.
OPERATIONAL = {
    "adaptive_connections", "attempt_timeout", "batch", "batch_size", "cache", "max_connections", "max_retries",
    "retries", "retry_interval", "stream", "timeout",
}  # fmt: skip

Data = dict[str, Any]


def first_line(path: Path) -> bytes:
    """The first line of a file, at most LONGEST_LINE bytes. Raises PrunusError if path is not a file to be read."""
    try:
        with path.open("rb") as stream:
            return stream.readline(LONGEST_LINE)
    except OSError as error:
        raise unreadable(f"'{path}'", error) from error


def beginning(path: Path, size: int) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as stream:
        return stream.read(size)


def json_lines(path: Path) -> Iterator[tuple[str, Data]]:
    """(where, object) of every line of a .jsonl file. where: `line 3 of FILE`, for messages.

    Raises PrunusError for a line that is too long or is not an object; the last line may be cut off in a file whose
    writer was stopped.
    """
    check_size(path, path.stat().st_size)
    number = 0
    with path.open("rb") as stream:
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            where = f"line {number} of '{path}'"
            if len(line) > LONGEST_LINE:
                raise PrunusError(f"{where} is longer than {LONGEST_LINE >> 20} MiB: not a log")
            if not line.strip():
                continue
            try:
                value = parsed(line, where)
            except PrunusError as error:
                if not line.endswith(b"\n"):
                    raise PrunusError(
                        f"{where} is cut off: the log is only half written; run its tool again"
                    ) from error
                raise
            yield where, as_object(value, where)


def json_file(path: Path) -> Data:
    """The object in a .json file. Raises PrunusError if it is too large, incomplete, or no object."""
    check_size(path, path.stat().st_size)
    return as_object(parsed(path.read_bytes(), f"'{path}'"), f"'{path}'")


def parsed(text: bytes, where: str) -> Any:
    """The value of a JSON text, without lone surrogates, which no file could keep."""
    try:
        value = parse_json(text)
        return _storable(value) if b"\\ud" in text.lower() else value
    except ValueError as error:
        reason = str(error).split(": line")[0]
        raise PrunusError(
            f"{where} is not complete JSON ({reason[:100]}): the log is damaged or half written"
        ) from error


def _storable(value: object) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable(inner) for inner in value]
    if isinstance(value, dict):
        return {_storable(key): _storable(inner) for key, inner in value.items()}
    return value


def check_size(path: Path, size: int) -> None:
    """Raise PrunusError for a log of more than LARGEST bytes."""
    if size > LARGEST:
        raise PrunusError(f"'{path}' has more than {LARGEST >> 30} GiB unpacked: split it, or import fewer tasks of it")


def as_object(value: object, where: str) -> Data:
    """value, if it is a JSON object."""
    if not isinstance(value, dict):
        raise PrunusError(f"{where} is not a JSON object: not a log")
    return value


def need(data: Data, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """data[key], if it has this type."""
    value = data.get(key)
    if not isinstance(value, kind):
        raise PrunusError(f"{where} has no usable '{key}': its format is not known to this prunus")
    return value


def part(data: Data, *keys: str) -> Data:
    """The object inside data at this path of keys; empty where there is none."""
    for key in keys:
        inner = data.get(key)
        data = inner if isinstance(inner, dict) else {}
    return data


def check_version(path: Path, tool: str, version: object, reads: str) -> str | None:
    """The version of the tool that wrote a log, as text. Raises PrunusError unless it begins with `reads`."""
    if version is not None and not str(version).startswith(reads):
        raise PrunusError(f"'{path}' is from {tool} {version}; this prunus reads logs of {tool} {reads}x")
    return None if version is None else str(version)


# Why outputs of inspect_ai and evalscope end: whether by themselves.
STOPPED = {"stop": True, "tool_calls": True, "max_tokens": False, "model_length": False}


def outcome(output: Data) -> tuple[Data, Data]:
    """The first choice of an output as inspect_ai and evalscope write it, and what a record says of tokens and end."""
    choices, usage = output.get("choices"), part(output, "usage")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    return first, {
        "output_tokens": count(usage.get("output_tokens")) if usage else None,
        "reasoning_tokens": count(usage.get("reasoning_tokens")),
        "stopped": STOPPED.get(text_of(first.get("stop_reason"))),
    }


def answer_of(value: object) -> str | None:
    """An extracted answer, if it is a text that is not empty."""
    return value if isinstance(value, str) and value else None


def sampling(*settings: Data) -> Data:
    """Generation settings that are set and matter; later ones win."""
    given = {key: value for group in settings for key, value in group.items() if value is not None}
    return {key: value for key, value in sorted(given.items()) if key not in OPERATIONAL}


def count(value: object) -> int | None:
    """A number of tokens; None where the log has none."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value < MOST_TOKENS else None


def score(value: object) -> float | None:
    """A metric's value as a number, True and False as 1 and 0; None if it is no finite number."""
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) < float("inf") else None  # nan fails the comparison, too


def text_of(value: object) -> str:
    """A value as text: a text as it is, a list of texts as its lines, anything else as JSON; empty for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def message_texts(content: object) -> tuple[str, str]:
    """(reasoning, text) of a chat message: a text, or a list of typed parts, as inspect_ai and evalscope write it."""
    if isinstance(content, str):
        return "", content
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    texts = {
        kind: [text_of(part.get(kind)) for part in parts if part.get("type") == kind] for kind in ("reasoning", "text")
    }
    return "\n".join(texts["reasoning"]), "\n".join(texts["text"])


def question_of(messages: object) -> str:
    """The texts of the user's messages before the first answer: the question as a chat model got it."""
    if isinstance(messages, str):
        return messages
    asked = []
    for message in messages if isinstance(messages, list) else []:
        role = message.get("role") if isinstance(message, dict) else None
        if role == "assistant":
            break
        if role == "user":
            asked.append(message_texts(message.get("content"))[1])
    return "\n".join(asked)
