"""Load problems from a user's JSONL file, checked line by line."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple, get_args

from prunus.errors import PrunusError
from prunus.evaluation.tasks.problem import MAX_CHOICES, AnswerKind, Problem, gold_letter

SHAPE = '{"id": "...", "problem": "...", "answer": "..."}'
_INTEGER = re.compile(r"[+-]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.0*)?")


class Line(NamedTuple):
    """The content of one line. kind: None where the line does not say it."""

    id: str
    problem: str
    answer: str
    choices: tuple[str, ...]
    kind: AnswerKind | None
    group: str


def load_file(path: Path) -> list[Problem]:
    """The problems in the order of the file; the task is named after the file without its suffix.

    A line is {"id", "problem", "answer"} and optionally choices (a list of texts), kind, group (shared by problems that
    belong together), meta; blank lines and other keys are ignored. Without `kind` a line with choices is `choice`; the
    others are `integer` where all their answers are whole numbers, else `math`. Raises PrunusError "FILE:LINE: ..." for
    the first bad line.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise PrunusError(f"cannot read task file {path}: {error.strerror}") from error
    rows: list[tuple[int, Line]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_line(line)
            if (first := seen.setdefault(row.id, number)) != number:
                raise PrunusError(f"id {row.id!r} was already used in line {first}; ids must differ")
        except PrunusError as error:
            raise PrunusError(f"{path}:{number}: {error}") from error
        rows.append((number, row))
    if not rows:
        raise PrunusError(f"task file {path} holds no problem; write one per line as {SHAPE}")
    open_answers = [row.answer for _, row in rows if row.kind is None and not row.choices]
    default: AnswerKind = "integer" if all(map(_INTEGER.fullmatch, open_answers)) else "math"
    problems = []
    for number, row in rows:
        try:
            problems.append(_problem(row, path.stem, default))
        except PrunusError as error:
            raise PrunusError(f"{path}:{number}: {error}") from error
    return problems


def parse_line(line: bytes) -> Line:
    """The content of one line; PrunusError if it is bad."""
    try:
        row = json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise PrunusError("not UTF-8 text; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise PrunusError(f"not valid JSON ({error.msg} at character {error.pos + 1}); write {SHAPE}") from error
    except (RecursionError, ValueError) as error:
        raise PrunusError(f"not usable JSON (nested too deep or a number too long); write {SHAPE}") from error
    if not isinstance(row, dict):
        raise PrunusError(f"a line must be a JSON object, not {type(row).__name__}; write {SHAPE}")
    if missing := [key for key in ("id", "problem", "answer") if key not in row]:
        raise PrunusError(f"key '{missing[0]}' is missing; write {SHAPE}")
    id, problem, answer = (_text(key, row[key]) for key in ("id", "problem", "answer"))
    kind = row.get("kind")
    if kind is not None and kind not in get_args(AnswerKind):
        raise PrunusError(f"kind {kind!r} is not known; choose one of {', '.join(get_args(AnswerKind))}")
    choices = _choices(row.get("choices") or [])
    if bool(choices) != (kind == "choice") and kind is not None:
        raise PrunusError(
            f"kind '{kind}' {'with' if choices else 'without'} choices; kind choice is the one that has them"
        )
    group = "" if row.get("group") is None else _text("group", row["group"])
    return Line(id, problem, answer, choices, kind, group)


def _refuse_constant(name: str) -> float:
    raise PrunusError(f"{name} is not a JSON number; write the value as text")


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PrunusError(f"'{key}' must be a text, not {type(value).__name__}")
    # Some copies of AMC hold 27.0 where 27 is meant.
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not text.strip():
        raise PrunusError(f"'{key}' is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PrunusError(
            f"'{key}' holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
        ) from error
    if key == "id" and not text.isprintable():
        raise PrunusError("'id' holds a line break, a tab or another character that does not print")
    return text if key == "problem" else text.strip()


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise PrunusError(f"'choices' must be a list of texts, not {type(value).__name__}")
    choices = tuple(_text("choices", choice) for choice in value)
    if len(choices) == 1 or len(choices) > MAX_CHOICES:
        raise PrunusError(f"'choices' must hold 2 to {MAX_CHOICES} texts, not {len(choices)}")
    if len({choice.strip() for choice in choices}) < len(choices):
        raise PrunusError("two choices are the same text")
    return choices


def _problem(row: Line, task: str, default: AnswerKind) -> Problem:
    kind: AnswerKind = row.kind or ("choice" if row.choices else default)
    answer = row.answer
    if kind == "choice":
        answer = gold_letter(answer, row.choices)
    elif kind == "integer":
        answer = gold_integer(answer)
    return Problem(row.id, task, row.problem, answer, kind, row.choices, group=row.group)


def gold_integer(answer: str) -> str:
    """The plain digits of a whole number written as 1,234 or 27.0 or 007; PrunusError for anything else."""
    if not _INTEGER.fullmatch(answer):
        raise PrunusError(f"the answer {answer[:40]!r} is not a whole number, as kind integer needs")
    digits = answer.split(".")[0].replace(",", "").lstrip("+")
    sign, digits = ("-", digits[1:]) if digits.startswith("-") else ("", digits)
    digits = digits.lstrip("0") or "0"
    return digits if digits == "0" else sign + digits
