"""The types of a problem set: its problems, and the entry of the task table that loads them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Literal

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
    of the first of them, and empties it for that one and for problems that are alone (`prunus.grouping`).
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
