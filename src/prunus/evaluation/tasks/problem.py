"""The types of a problem set: its problems, and the entry of the task table that loads them."""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple, get_args

from prunus.errors import PrunusError, nearest, pip, unreadable
from prunus.evaluation.grading.matching import answer_formats
from prunus.plain_data import parse_json, storable

AnswerKind = Literal["integer", "math", "choice", "exact"]
MAX_CHOICES = len(ascii_uppercase)


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer.

    id: the same in every run, since it pairs the answers of different models. task: the name it was loaded under.
    answer: the gold answer; digits for `integer`, LaTeX for `math`, a letter for `choice`, the exact text for `exact`.
    choices: texts of the options, A first; only for `choice`.
    private: its texts must not be published (GPQA), so they are neither stored nor shown. repr leaves out all texts.
    group: a name that is shared by problems that belong together, such as variants of one; `load_task` replaces it by
    the id of the first of them, and empties it for that one and for problems that are alone (`prunus.questions`).
    keyed: whether the set itself gave a group, possibly one of this problem only.
    """

    id: str
    task: str
    question: str = field(repr=False)
    answer: str
    kind: AnswerKind
    choices: tuple[str, ...] = field(default=(), repr=False)
    private: bool = False
    group: str = ""
    keyed: bool = False

    @property
    def gold(self) -> str:
        """The answer, under the name that graders and stores use."""
        return self.answer

    @property
    def answer_formats(self) -> tuple[str, ...]:
        """The forms of answer that the question asks for, for the grader: "percent", "base 8"."""
        return answer_formats(self.question)

    @property
    def digest(self) -> str:
        """A hash (16 hex digits) of question, gold answer and choices."""
        return content_digest(self.question, self.answer, self.choices)


def content_digest(question: str, answer: str, choices: Sequence[str]) -> str:
    """Stored: a hash (16 hex digits) of a problem's question, gold answer and choices."""
    parts = json.dumps([question, answer, list(choices)], ensure_ascii=False)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """An entry of `prunus tasks`. source: generator or hub data set. load: returns all problems, in a fixed order.

    problems: their number, if it is known before they are fetched. hub: repository, configuration and split of a set of
    the hub. mixed: whether the first problems are a sample of all; otherwise a limit draws a sample.
    """

    name: str
    source: str
    kind: AnswerKind
    description: str
    load: Callable[[], list[Problem]] = field(repr=False)
    problems: int | None = None
    hub: tuple[str, str | None, str] | None = None
    mixed: bool = False

    @property
    def trains(self) -> bool:
        """Whether its problems are for traces and calibration rather than for evaluation; its name says so."""
        return self.name.endswith("-train")


def gold_letter(answer: str, choices: tuple[str, ...]) -> str:
    """The letter of the correct choice, given its letter or its text.

    Raises PrunusError where the answer is neither, or matches two choices. The message does not quote the texts.
    """
    letters = ascii_uppercase[: len(choices)]
    matches = {letters[index] for index, choice in enumerate(choices) if choice.strip() == answer.strip()}
    if len(answer.strip()) == 1 and answer.strip().upper() in letters:
        matches.add(answer.strip().upper())
    if len(matches) != 1:
        problem = "is none of the choices" if not matches else f"may mean {' or '.join(sorted(matches))}"
        raise PrunusError(
            f"the answer {problem}; write the letter of one choice ({letters[0]} to {letters[-1]}) or its text"
        )
    return matches.pop()


# Fetch a problem set with `datasets` (extra `hub`), with a one-line error that says what to do if it fails.

LOCAL = "or pass a JSONL file with one {{'id', 'problem', 'answer'}} per line: --task {task}.jsonl"


def check_package(task: str) -> None:
    """Raise PrunusError if the package that fetches sets of the hub, an optional extra, is missing."""
    there = sys.modules["datasets"] is not None if "datasets" in sys.modules else find_spec("datasets") is not None
    if not there:
        local = LOCAL.format(task=task)
        raise PrunusError(f"task '{task}' comes from the hub and needs the datasets package: {pip('hub')}, {local}")


def _reason(repo: str, error: BaseException) -> str:
    words = f"{type(error).__name__} {error} {error.__cause__ or ''}".lower()
    if "gated" in words or "401" in words or "403" in words or "authenticat" in words:
        page = f"https://huggingface.co/datasets/{repo}"
        return f"{repo} is gated; accept its terms at {page} and log in with `hf auth login`"
    return f"{type(error).__name__} for {repo}; check the network (and that HF_HUB_OFFLINE is not set)"


class Row(NamedTuple):
    """A row of a set of the hub. task: the name of the set. number: of the row in its split, from 0."""

    task: str
    number: int
    columns: Mapping[str, Any]

    def text(self, *names: str) -> str:
        """The first of these columns that exists, as stripped text; PrunusError where none does."""
        for name in names:
            if self.columns.get(name) is not None:
                return str(self.columns[name]).strip()
        raise PrunusError(
            f"task '{self.task}': a row has no column {' or '.join(names)}; the data set's columns have changed"
        )


class Content(NamedTuple):
    """Problem that a row of a set holds; its id is TASK/KEY."""

    key: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()


def hub_task(
    name: str,
    source: str,
    kind: AnswerKind,
    problems: int,
    about: str,
    read: Callable[[Row], Content],
    order: Callable[[list[Problem]], list[Problem]] = list,
    private: bool = False,
) -> Task:
    """The task of a split of a data set, whose `load` raises PrunusError unless it has this number of problems.

    source: repository, configuration if there are several, and split, with commas. order: puts the problems in order.
    """
    repo, *configurations, split = source.split(", ")
    config = "".join(configurations) or None

    def load() -> list[Problem]:
        local = LOCAL.format(task=name)
        check_package(name)
        try:
            rows = import_module("datasets").load_dataset(repo, config, split=split)
        except Exception as error:  # network, disk and access errors have no common class
            raise PrunusError(f"cannot fetch task '{name}': {_reason(repo, error)}, {local}") from error
        if len(rows) != problems:
            raise PrunusError(
                f"task '{name}': {repo} ({split}) has {len(rows)} rows where {problems} were expected; {local[3:]}"
            )
        entries = [read(Row(name, number, columns)) for number, columns in enumerate(rows)]
        return order(
            [
                Problem(f"{name}/{entry.key}", name, entry.question, entry.answer, kind, entry.choices, private)
                for entry in entries
            ]
        )

    shown = f"{source} (gated)" if private else source
    return Task(name, shown, kind, f"{problems} {about}", load, problems, (repo, config, split), order is not list)


# Load problems from a user's JSONL file, checked line by line.

SHAPE = '{"id": "...", "problem": "...", "answer": "..."}'
_INTEGER = re.compile(r"[+-]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.0*)?")


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
        raise unreadable(f"the task file '{path}'", error) from error
    rows: list[tuple[int, Problem, AnswerKind | None]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row, kind = parse_line(line, path.stem)
            if (first := seen.setdefault(row.id, number)) != number:
                raise PrunusError(f"id {row.id!r} was already used in line {first}; ids must differ")
        except PrunusError as error:
            raise PrunusError(f"{path}:{number}: {error}") from error
        rows.append((number, row, kind))
    if not rows:
        raise PrunusError(f"task file {path} holds no problem; write one per line as {SHAPE}")
    open_answers = [row.answer for _, row, kind in rows if kind is None]
    default: AnswerKind = "integer" if all(map(_INTEGER.fullmatch, open_answers)) else "math"
    problems = []
    for number, row, kind in rows:
        try:
            problems.append(_of_kind(row, kind or default))
        except PrunusError as error:
            raise PrunusError(f"{path}:{number}: {error}") from error
    return problems


def parse_line(line: bytes, task: str) -> tuple[Problem, AnswerKind | None]:
    """The problem of a line with its answer as written, and its kind if the line says it; PrunusError if it is bad."""
    try:
        row = parse_json(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise PrunusError("not UTF-8 text; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise PrunusError(f"not valid JSON ({error.msg} at character {error.pos + 1}); write {SHAPE}") from error
    except ValueError as error:
        raise PrunusError(f"not usable JSON (nested too deep or a number too long); write {SHAPE}") from error
    if not isinstance(row, dict):
        raise PrunusError(f"a line must be a JSON object, not {type(row).__name__}; write {SHAPE}")
    if missing := [key for key in ("id", "problem", "answer") if key not in row]:
        raise PrunusError(f"key '{missing[0]}' is missing; write {SHAPE}")
    id, problem, answer = (_text(key, row[key]) for key in ("id", "problem", "answer"))
    kind = row.get("kind")
    if kind is not None and kind not in get_args(AnswerKind):
        raise PrunusError(f"kind {kind!r} is not known; {nearest(kind, get_args(AnswerKind))}")
    choices = _choices(row.get("choices") or [])
    if bool(choices) != (kind == "choice") and kind is not None:
        raise PrunusError(
            f"kind '{kind}' {'with' if choices else 'without'} choices; kind choice is the one that has them"
        )
    group = "" if row.get("group") is None else _text("group", row["group"])
    return Problem(id, task, problem, answer, "exact", choices, group=group), "choice" if choices else kind


def _refuse_constant(name: str) -> float:
    raise PrunusError(f"{name} is not a JSON number; write the value as text")


def _text(key: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PrunusError(f"'{key}' must be a text, not {type(value).__name__}")
    # Some copies of AMC hold 27.0 where 27 is meant.
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not text.strip():
        raise PrunusError(f"'{key}' is empty")
    if storable(text) != text:
        raise PrunusError(f"'{key}' holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")
    if key == "id" and not text.isprintable():
        raise PrunusError("'id' holds a line break, a tab or another character that does not print")
    return text if key == "problem" else text.strip()


def _choices(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise PrunusError(f"'choices' must be a list of texts, not {type(value).__name__}")
    choices = tuple(_text("choices", choice) for choice in value)
    if len(choices) == 1 or len(choices) > MAX_CHOICES:
        raise PrunusError(f"'choices' must hold 2 to {MAX_CHOICES} texts, not {len(choices)}")
    if len({choice.strip() for choice in choices}) < len(choices):
        raise PrunusError("two choices are the same text")
    return choices


def _of_kind(problem: Problem, kind: AnswerKind) -> Problem:
    answer = problem.answer
    if kind == "choice":
        answer = gold_letter(answer, problem.choices)
    elif kind == "integer":
        answer = gold_integer(answer)
    return replace(problem, kind=kind, answer=answer)


def gold_integer(answer: str) -> str:
    """The plain digits of a whole number written as 1,234 or 27.0 or 007; PrunusError for anything else."""
    if not _INTEGER.fullmatch(answer):
        raise PrunusError(f"the answer {answer[:40]!r} is not a whole number, as kind integer needs")
    digits = answer.split(".")[0].replace(",", "").lstrip("+")
    sign, digits = ("-", digits[1:]) if digits.startswith("-") else ("", digits)
    digits = digits.lstrip("0") or "0"
    return digits if digits == "0" else sign + digits
