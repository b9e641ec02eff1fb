"""Thinking budgets: numbers of tokens; OFF: thinking switched off; AS_RUN: what another tool let the model think."""

from collections.abc import Iterable
from typing import Any, Self

MOST_DRAWS = 1 << 20  # of a problem; more would be a damaged file


class NamedBudget(int):
    """The type of budgets that are no number of tokens, and so on no curve: OFF and AS_RUN.

    They are integers, so that they can be keys of the store and are sorted before 0. Their texts are `off` and
    `as run`; copies and unpickled ones are the constants themselves.
    """

    name: str

    def __new__(cls, number: int, name: str) -> Self:
        made = super().__new__(cls, number)
        made.name = name
        return made

    def __reduce__(self) -> str:
        return self.name.upper().replace(" ", "_")  # the name of the constant in this module

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


class Off(NamedBudget):
    """The type of OFF, the only budget with a name that a plan may have."""


class UsualBudgets(tuple[int, ...]):
    """The type of default budgets: a profile may replace them, and only those that fit into the context are taken."""

    __slots__ = ()


OFF = Off(-1, "off")
AS_RUN = NamedBudget(-2, "as run")  # of rows from the logs of other tools
NAMED = (OFF, AS_RUN)


def budget_of(value: str | float) -> int:
    """The budget that a text, a stored number or a position on an axis stands for. ValueError if it is none."""
    named = next((budget for budget in NAMED if str(value) == str(budget)), None)
    number = int(value) if named is None else named
    return next((budget for budget in NAMED if budget == number), number)


def without_off(budgets: Iterable[int]) -> tuple[int, ...]:
    """The budgets that are numbers of tokens."""
    return tuple(budget for budget in budgets if budget not in NAMED)


def with_names(data: object) -> Any:
    """Plain data with the names of budgets as keys and values, since JSON would write their numbers."""
    if isinstance(data, dict):
        return {str(key) if isinstance(key, NamedBudget) else key: with_names(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [with_names(value) for value in data]
    return str(data) if isinstance(data, NamedBudget) else data
