"""The rows of a run as arrays. P: problems, B: budgets, N: draws."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.budgets import without_off
from prunus.results.rows import UNKNOWN, Sample


@dataclass(frozen=True)
class Table:
    """One task of one run. rows_PBN holds Samples, None where a draw is missing; the axes are sorted."""

    problems: tuple[str, ...]
    budgets: tuple[int, ...]
    draws: tuple[int, ...]
    rows_PBN: NDArray[Any]

    def select(self, problems: Sequence[str], budgets: Sequence[int], draws: Sequence[int]) -> "Table":
        """The subtable with these labels, in the given order; all must exist."""
        axes = ((self.problems, problems), (self.budgets, budgets), (self.draws, draws))
        places = [[index[label] for label in wanted] for have, wanted in axes for index in [_index(have)]]
        return Table(tuple(problems), tuple(budgets), tuple(draws), self.rows_PBN[np.ix_(*places)])

    def curve(self) -> "Table":
        """The table without budget OFF, which is not on the curve; all of it if it has no other budget."""
        return self.select(self.problems, without_off(self.budgets) or self.budgets, self.draws)

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


def tables(samples: Iterable[Sample]) -> dict[str, Table]:
    """A table for each task, in order of name."""
    by_task: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_task[sample.task].append(sample)
    return {task: _table(by_task[task]) for task in sorted(by_task)}


def _table(samples: Sequence[Sample]) -> Table:
    problems = tuple(sorted({s.problem_id for s in samples}))
    budgets, draws = tuple(sorted({s.budget for s in samples})), tuple(sorted({s.draw for s in samples}))
    rows = np.full((len(problems), len(budgets), len(draws)), None, dtype=object)
    p, b, n = _index(problems), _index(budgets), _index(draws)
    for sample in samples:
        rows[p[sample.problem_id], b[sample.budget], n[sample.draw]] = sample
    return Table(problems, budgets, draws, rows)


def _index(labels: Sequence[Any]) -> dict[Any, int]:
    return {label: place for place, label in enumerate(labels)}
