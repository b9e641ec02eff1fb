"""What the sets of questions with options share. Options keep the published order, which is random already."""

import hashlib
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from prunus.errors import PrunusError
from prunus.evaluation.tasks.hub import row_field
from prunus.evaluation.tasks.problem import MAX_CHOICES, Problem


def choice_problem(task: str, row: Mapping[str, Any], key: str, options: Sequence[Any], gold: int) -> Problem:
    """The problem of a row, with the id task/KEY. key: its column with an id. gold: index of the right option.

    Raises PrunusError for options that are no texts, too few or too many, and where gold is not among them.
    """
    record = row_field(task, row, key)
    if not 2 <= len(options) <= MAX_CHOICES or not all(isinstance(option, str) for option in options):
        raise PrunusError(f"task '{task}': the options of '{record}' are not 2 to {MAX_CHOICES} texts; it is damaged")
    if not 0 <= gold < len(options):
        raise PrunusError(f"task '{task}': the answer of '{record}' is none of its options; the set is damaged")
    choices = tuple(option.strip() for option in options)
    question = row_field(task, row, "question")
    return Problem(f"{task}/{record}", task, question, ascii_uppercase[gold], "choice", choices)


def letter_index(letter: str) -> int:
    """The index of the option with a letter, 0 for A; -1 for anything but one letter."""
    return ascii_uppercase.find(letter) if len(letter) == 1 else -1


def mixed(problems: Sequence[Problem]) -> list[Problem]:
    """The problems in the order of a hash of their ids, so that the first N of them are a sample of all.

    Large sets are published subject by subject, and nobody thinks long about all of their questions.
    """
    return sorted(problems, key=lambda problem: hashlib.sha256(problem.id.encode()).digest())
