"""Read files of other programs, which are untrusted: sizes are bounded, and every fault becomes one line.

The keys that are read from a tool's log are the fields of classes in the tool's own file, each a LogObject.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Self, dataclass_transform, get_args, get_origin

from prunus.errors import PrunusError, unreadable
from prunus.plain_data import parse_json, read_hints, storable
from prunus.settings.budgets import AS_RUN


@dataclass(frozen=True)
class LogGrade:
    """Grade of an output by one metric: its score (None if the tool gave none), and the answer that it extracted."""

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


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class LogObject:
    """An object in a log of another tool: its classes name the keys that are read, with their types.

    A value of another type counts as none, so it is the field's default.
    """

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    @classmethod
    def of(cls, data: object, where: str = "the log") -> Self:
        """The fields of an object; of anything else the defaults.

        where: what the object is, for messages. Raises PrunusError where a field without a default has no value.
        """
        values, there, hints = Data(), data if isinstance(data, dict) else {}, read_hints(cls)
        for part in fields(cls):  # pyright: ignore[reportArgumentType]  # each subclass is a dataclass
            value, kind = there.get(part.name), hints[part.name]
            if isinstance(kind, type) and issubclass(kind, LogObject) and isinstance(value, dict):
                values[part.name] = kind.of(value, where)
            elif kind is Any or isinstance(value, _kinds(kind)):
                values[part.name] = value
            elif part.default is MISSING and part.default_factory is MISSING:
                raise PrunusError(f"{where} has no usable '{part.name}': its format is not known to this prunus")
        return cls(**values)


@cache
def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes of the values that have this type, for isinstance."""
    if get_origin(hint) is UnionType:
        return tuple(kind for option in get_args(hint) for kind in _kinds(option))
    return (get_origin(hint) or hint,)


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
    """The value, which is a JSON object. Raises PrunusError if it is not."""
    if not isinstance(value, dict):
        raise PrunusError(f"{where} is not a JSON object: not a log")
    return value


def check_version(path: Path, tool: str, version: object, reads: str) -> str | None:
    """The version of the tool that wrote a log, as text. Raises PrunusError unless it begins with `reads`."""
    if version is not None and not str(version).startswith(reads):
        raise PrunusError(f"'{path}' is from {tool} {version}; this prunus reads logs of {tool} {reads}x")
    return None if version is None else str(version)


# Whether outputs of inspect_ai and evalscope ended by themselves, by the reason for their end.
STOPPED = {"stop": True, "tool_calls": True, "max_tokens": False, "model_length": False}


class Message(LogObject):
    """A message of a chat as inspect_ai and evalscope write it: its content is a text, or a list of typed parts."""

    role: Any = None
    content: Any = None


class MessagePart(LogObject):
    """A typed part of a message."""

    type: Any = None
    reasoning: Any = None
    text: Any = None


class Usage(LogObject):
    """Numbers of tokens of an output."""

    output_tokens: Any = None
    reasoning_tokens: Any = None


class OutputChoice(LogObject):
    """An answer of an output."""

    message: Message = Message()
    stop_reason: Any = None


class Output(LogObject):
    """An output as inspect_ai and evalscope write it."""

    choices: list[Any] = field(default_factory=list)
    usage: Usage = Usage()
    completion: Any = None

    @property
    def first(self) -> OutputChoice:
        """The first answer."""
        return OutputChoice.of(next(iter(self.choices), None))

    @property
    def outcome(self) -> Data:
        """Fields of a LogRecord: its numbers of tokens, and whether it ended by itself."""
        return {
            "output_tokens": count(self.usage.output_tokens),
            "reasoning_tokens": count(self.usage.reasoning_tokens),
            "stopped": STOPPED.get(text_of(self.first.stop_reason)),
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
    parts = [MessagePart.of(part) for part in content] if isinstance(content, list) else []
    reasoning = [text_of(part.reasoning) for part in parts if part.type == "reasoning"]
    return "\n".join(reasoning), "\n".join(text_of(part.text) for part in parts if part.type == "text")


def question_of(messages: object) -> str:
    """The texts of the user's messages before the first answer: the question as a chat model got it."""
    if isinstance(messages, str):
        return messages
    texts = []
    for message in map(Message.of, messages if isinstance(messages, list) else []):
        if message.role == "assistant":
            break
        if message.role == "user":
            texts.append(message_texts(message.content)[1])
    return "\n".join(texts)
