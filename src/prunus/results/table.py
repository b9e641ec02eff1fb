"""The rows of a run as arrays. P: problems, G: groups of problems, B: budgets, N: draws.

Problems that belong together (`prunus.questions`) are one observation: what is inferred from problems counts groups,
and a group's value is the mean over its problems.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.budgets import without_off
from prunus.results.rows import UNKNOWN, Sample


@dataclass(frozen=True)
class Table:
    """One task of one run. rows_PBN holds Samples, None where a draw is missing; the axes are sorted.

    first_of: the first problem of the group of each problem, as `Store.groups` has it; others are groups by themselves.
    """

    problems: tuple[str, ...]
    budgets: tuple[int, ...]
    draws: tuple[int, ...]
    rows_PBN: NDArray[Any]
    first_of: Mapping[str, str] = field(default_factory=dict)

    def select(self, problems: Sequence[str], budgets: Sequence[int], draws: Sequence[int]) -> "Table":
        """The subtable with these labels, in the given order; all must exist."""
        axes = ((self.problems, problems), (self.budgets, budgets), (self.draws, draws))
        places = [[index[label] for label in wanted] for have, wanted in axes for index in [_index(have)]]
        return Table(tuple(problems), tuple(budgets), tuple(draws), self.rows_PBN[np.ix_(*places)], self.first_of)

    def curve(self) -> "Table":
        """The table without budget OFF, which is not on the curve; all of it if it has no other budget."""
        return self.select(self.problems, without_off(self.budgets) or self.budgets, self.draws)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups of these problems, in the order of the first problem of each."""
        return tuple(dict.fromkeys(self.first_of.get(problem, problem) for problem in self.problems))

    @property
    def grouped(self) -> bool:
        """Whether any group has several problems."""
        return len(self.groups) < len(self.problems)

    def by_group(self, values: NDArray[Any]) -> NDArray[Any]:
        """(G, ...) means over the problems of each group, from (P, ...); the same array if no group has several."""
        if not self.grouped:
            return values
        place = _index(self.groups)
        group_P = np.array([place[self.first_of.get(problem, problem)] for problem in self.problems])
        sums = np.zeros((len(self.groups), *values.shape[1:]))
        np.add.at(sums, group_P, values)
        return sums / np.bincount(group_P).reshape(-1, *[1] * (values.ndim - 1))

    def sizes(self) -> dict[str, int]:
        """n, the number of observations, and the number of problems if groups have several."""
        return {"n": len(self.groups)} | ({"problems": len(self.problems)} if self.grouped else {})

    def complete(self) -> tuple[str, ...]:
        """Problems with every draw at every budget."""
        present_P = (self.rows_PBN != None).all(axis=(1, 2))  # noqa: E711  element by element
        return tuple(problem for problem, present in zip(self.problems, present_P, strict=True) if present)

    def values(self, field: str) -> NDArray[Any]:
        """(P, B, N) array of one field of the samples; none may be missing. Unknown numbers of tokens are nan."""
        get = attrgetter(field)
        values = np.array([get(sample) for sample in self.rows_PBN.ravel()]).reshape(self.rows_PBN.shape)
        unknown = values == UNKNOWN if field.endswith("_tokens") else np.zeros(())
        return np.where(unknown, np.nan, values) if unknown.any() else values

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(P, B, N) whether the answer is correct."""
        return self.values("correct")

    @cached_property
    def used(self) -> NDArray[Any]:
        """(P, B, N) sampled tokens: thinking and answer; nan where they are unknown."""
        return self.values("thinking_tokens") + self.values("answer_tokens")

    @cached_property
    def forced(self) -> NDArray[Any]:
        """(P, B, N) whether the draw was stopped rather than ended by itself; nan where that is unknown."""
        return np.where(np.isnan(self.values("forced_tokens")), np.nan, self.values("ended") == "forced")

    def answers(self, budget: int) -> list[list[str | None]]:
        """Answers of each problem's draws at one budget."""
        place = self.budgets.index(budget)
        return [[sample.answer for sample in row] for row in self.rows_PBN[:, place]]

    def numbers(self, field: str) -> NDArray[np.float64] | None:
        """(P, B, N) array of a field that older stores lack; None if any draw that sampled tokens lacks it.

        Draws without sampled tokens have no such value and get -inf.
        """
        numbers = self.values(field).astype(float)  # None turns into nan
        missing = np.isnan(numbers)
        if missing.any():
            if (missing & (self.used != 0)).any():  # nan is unequal, too
                return None
            numbers[missing] = -np.inf
        return numbers

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """(P, B, N) scores for best-of-n, for those scores that all rows have."""
        found = {name: self.numbers(name) for name in ("logprob", "self_certainty")}
        found["shortest"] = None if np.isnan(self.used).any() else -self.used.astype(float)
        return {name: values for name, values in found.items() if values is not None}


def tables(samples: Iterable[Sample], first_of: Mapping[str, str] | None = None) -> dict[str, Table]:
    """A table for each task, in order of name. first_of: as of Table; by default every problem is alone."""
    by_task: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_task[sample.task].append(sample)
    return {task: _table(by_task[task], first_of or {}) for task in sorted(by_task)}


def _table(samples: Sequence[Sample], first_of: Mapping[str, str]) -> Table:
    problems = tuple(sorted({s.problem_id for s in samples}))
    budgets, draws = tuple(sorted({s.budget for s in samples})), tuple(sorted({s.draw for s in samples}))
    rows = np.full((len(problems), len(budgets), len(draws)), None, dtype=object)
    p, b, n = _index(problems), _index(budgets), _index(draws)
    for sample in samples:
        rows[p[sample.problem_id], b[sample.budget], n[sample.draw]] = sample
    return Table(problems, budgets, draws, rows, first_of)


def _index(labels: Sequence[Any]) -> dict[Any, int]:
    return {label: place for place, label in enumerate(labels)}
