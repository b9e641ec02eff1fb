"""Rows of the store as arrays. P: problems, B: budgets, N: draws."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.results.store import Sample


@dataclass(frozen=True)
class Table:
    """One task of one run. rows_PBN holds Samples, None where a draw is missing; the axes are sorted."""

    problems: tuple[str, ...]
    budgets: tuple[int, ...]
    draws: tuple[int, ...]
    rows_PBN: NDArray[Any]

    def select(self, problems: Sequence[str], budgets: Sequence[int], draws: Sequence[int]) -> "Table":
        """The part with these labels, in the order given; all must be there."""
        axes = ((self.problems, problems), (self.budgets, budgets), (self.draws, draws))
        places = [[index[label] for label in wanted] for have, wanted in axes for index in [_index(have)]]
        return Table(tuple(problems), tuple(budgets), tuple(draws), self.rows_PBN[np.ix_(*places)])

    def complete(self) -> tuple[str, ...]:
        """Problems with a draw in every place."""
        present_P = (self.rows_PBN != None).all(axis=(1, 2))  # noqa: E711  element by element
        return tuple(problem for problem, present in zip(self.problems, present_P, strict=True) if present)

    def values(self, field: str) -> NDArray[Any]:
        """(P, B, N) array of one field of the samples; none may be missing."""
        get = attrgetter(field)
        return np.array([get(sample) for sample in self.rows_PBN.ravel()]).reshape(self.rows_PBN.shape)


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
