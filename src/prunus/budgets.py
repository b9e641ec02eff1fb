"""Thinking budgets: numbers of tokens, and OFF, which means that the thinking is switched off."""

from collections.abc import Iterable
from typing import Any


class Off(int):
    """The type of OFF, the only budget that is no number of tokens.

    It is an integer, so that it can be a key of the store and is sorted before 0. Its text is `off`.
    """

    def __new__(cls) -> "Off":
        return super().__new__(cls, -1)

    def __str__(self) -> str:
        return "off"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __reduce__(self) -> str:
        return "OFF"


OFF = Off()


def budget_of(value: Any) -> int:
    """The budget that a text, a stored number or a position on an axis stands for. ValueError if it is none."""
    return OFF if str(value) == str(OFF) or int(value) == int(OFF) else int(value)


def without_off(budgets: Iterable[int]) -> tuple[int, ...]:
    """The budgets that are numbers of tokens."""
    return tuple(budget for budget in budgets if budget != OFF)


def with_names(data: Any) -> Any:
    """Plain data with the text `off` instead of OFF as keys and values, since JSON would write its number."""
    if isinstance(data, dict):
        return {str(key) if isinstance(key, Off) else key: with_names(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [with_names(value) for value in data]
    return str(data) if isinstance(data, Off) else data
