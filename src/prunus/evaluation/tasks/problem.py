"""The types of a problem set: its problems, and the entry of the task table that loads them."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from string import ascii_uppercase
from typing import Any, Literal

from prunus.errors import PrunusError
from prunus.evaluation.grading.matching import wishes

AnswerKind = Literal["integer", "math", "choice", "exact"]
MAX_CHOICES = len(ascii_uppercase)


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer.

    id: the same in every run, since it pairs the answers of different models. task: the name it was loaded under.
    answer: the gold answer; digits for `integer`, LaTeX for `math`, a letter for `choice`, the exact text for `exact`.
    choices: texts of the options, A first; only for `choice`.
    private: its texts must not be published (GPQA), so they are neither stored nor shown. repr leaves out all texts.
    group: a name that problems share which belong together, such as variants of one; `load_task` turns it into the id
    of the first of them, and empties it for that one and for problems that are alone (`prunus.questions`).
    """

    id: str
    task: str
    question: str = field(repr=False)
    answer: str
    kind: AnswerKind
    choices: tuple[str, ...] = field(default=(), repr=False)
    private: bool = False
    group: str = ""

    @property
    def gold(self) -> str:
        """The answer, under the name that graders and stores use."""
        return self.answer

    @property
    def asks(self) -> tuple[str, ...]:
        """The forms of answer that the question asks for, for the grader: "percent", "base 8"."""
        return wishes(self.question)

    @property
    def digest(self) -> str:
        """A hash (16 hex digits) of question, gold answer and choices."""
        parts = json.dumps([self.question, self.answer, list(self.choices)], ensure_ascii=False)
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """An entry of `prunus tasks`. source: generator or hub data set. load: all its problems, in their fixed order.

    problems: their number, if it is known before they are fetched.
    """

    name: str
    source: str
    kind: AnswerKind
    description: str
    load: Callable[[], list[Problem]] = field(repr=False)
    problems: int | None = None

    @property
    def trains(self) -> bool:
        """Whether its problems are for traces and calibration rather than for evaluation; its name says so."""
        return self.name.endswith("-train")


def gold_letter(answer: str, choices: tuple[str, ...]) -> str:
    """The letter of the correct choice, given its letter or its text.

    Raises PrunusError where the answer is neither, or matches two choices. The message does not quote the texts.
    """
    letters = ascii_uppercase[: len(choices)]
    found = {letters[index] for index, choice in enumerate(choices) if choice.strip() == answer.strip()}
    if len(answer.strip()) == 1 and answer.strip().upper() in letters:
        found.add(answer.strip().upper())
    if len(found) != 1:
        problem = "is none of the choices" if not found else f"may mean {' or '.join(sorted(found))}"
        raise PrunusError(
            f"the answer {problem}; write the letter of one choice ({letters[0]} to {letters[-1]}) or its text"
        )
    return found.pop()


# Fetch a problem set with `datasets` (extra `hub`), with a one-line error that says what to do if it fails.

LOCAL = "or pass a JSONL file with one {{'id', 'problem', 'answer'}} per line: --task {task}.jsonl"


def hub_rows(task: str, repo: str, config: str | None, split: str, count: int) -> Iterator[Mapping[str, Any]]:
    """The rows of one split; PrunusError unless there are exactly `count`, as in the original data set."""
    local = LOCAL.format(task=task)
    check_package(task)
    load_dataset = import_module("datasets").load_dataset
    try:
        rows = load_dataset(repo, config, split=split)
    except Exception as error:  # network, disk and access errors have no common class
        raise PrunusError(f"cannot fetch task '{task}': {_reason(repo, error)}, {local}") from error
    if len(rows) != count:
        raise PrunusError(
            f"task '{task}': {repo} ({split}) has {len(rows)} rows where {count} were expected; {local[3:]}"
        )
    return iter(rows)


def check_package(task: str) -> None:
    """Raise PrunusError if the package that fetches sets of the hub, an optional extra, is missing."""
    there = sys.modules["datasets"] is not None if "datasets" in sys.modules else find_spec("datasets") is not None
    if not there:
        local = LOCAL.format(task=task)
        raise PrunusError(
            f"task '{task}' comes from the hub and needs the datasets package: pip install 'prunus[hub]', {local}"
        )


def _reason(repo: str, error: BaseException) -> str:
    words = f"{type(error).__name__} {error} {error.__cause__ or ''}".lower()
    if "gated" in words or "401" in words or "403" in words or "authenticat" in words:
        page = f"https://huggingface.co/datasets/{repo}"
        return f"{repo} is gated; accept its terms at {page} and log in with `hf auth login`"
    return f"{type(error).__name__} for {repo}; check the network (and that HF_HUB_OFFLINE is not set)"


def row_field(task: str, row: Mapping[str, Any], *names: str) -> str:
    """The first of these columns that exists, as stripped text; PrunusError where none does."""
    for name in names:
        if row.get(name) is not None:
            return str(row[name]).strip()
    raise PrunusError(f"task '{task}': a row has no column {' or '.join(names)}; the data set's columns have changed")
