"""The rows of a search, round by round: differences between a run and the dense model's, and the tokens they took."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunus.results.ladder import Round, differences
from prunus.results.order import First
from prunus.results.rows import Sample
from prunus.results.store import Store
from prunus.results.table import Table, tables
from prunus.results.token_use import chains_of, sampled_tokens

Floats = NDArray[np.float64]


class Rows:
    """What a store has of the runs of a search, each read once, and again after `forget`.

    dense: the run of the dense model. order: the rounds of problems. Rows of other budgets, and of draws from `samples`
    on, are left out. reuse: whether the budgets of a draw share a chain. first_of: the groups of problems.
    """

    def __init__(
        self,
        store: Store,
        dense: str,
        order: Sequence[Round],
        budgets: Sequence[int],
        samples: int,
        reuse: bool,
        first_of: First | None = None,
    ) -> None:
        self.store, self.dense, self.order, self.budgets, self.draws, self.reuse, self.first_of = (
            store, dense, order, budgets, samples, reuse, first_of,
        )  # fmt: skip
        self._samples: dict[str, dict[str, list[Sample]]] = {}
        self._tables: dict[str, dict[str, Table]] = {}
        self._tokens: dict[str, NDArray[np.int_]] = {}
        self._differences: dict[str, dict[str, Floats]] = {}

    def forget(self, run_id: str) -> None:
        """Read a run again when it is needed next, since rows were added."""
        for kept in (self._samples, self._tables, self._tokens, self._differences):
            kept.pop(run_id, None)
        if run_id == self.dense:
            self._differences.clear()

    def samples(self, run_id: str) -> dict[str, list[Sample]]:
        """The rows of a run by problem."""
        if run_id not in self._samples:
            found: dict[str, list[Sample]] = {}
            for sample in self.store.samples(run_id):
                if sample.draw < self.draws and sample.budget in self.budgets:
                    found.setdefault(sample.problem_id, []).append(sample)
            self._samples[run_id] = found
        return self._samples[run_id]

    def up_to(self, run_id: str, looked: int) -> list[list[Sample]]:
        """The rows of a run in each of the first rounds, in their order."""
        found = self.samples(run_id)
        return [[s for _, problem in one for s in found.get(problem, [])] for one in self.order[:looked]]

    def differences(self, run_id: str) -> dict[str, Floats]:
        """{endpoint: this run minus the dense model's} of the first rounds that both have completely."""
        if run_id not in self._differences:
            dense, ours = self._table(self.dense), self._table(run_id)
            self._differences[run_id] = differences(dense, ours, self.order, self.budgets, self.draws)
        return self._differences[run_id]

    def tokens(self, run_id: str, looked: int) -> int:
        """The tokens sampled for the rows of a run in the first rounds, whoever computed them."""
        if run_id not in self._tokens:
            each = [sum(sampled_tokens(chains_of(rows), self.reuse)) for rows in self.up_to(run_id, len(self.order))]
            self._tokens[run_id] = np.concatenate([[0], np.cumsum(each, dtype=int)]).astype(int)
        return int(self._tokens[run_id][looked])

    def _table(self, run_id: str) -> dict[str, Table]:
        if run_id not in self._tables:
            self._tables[run_id] = tables((s for rows in self.samples(run_id).values() for s in rows), self.first_of)
        return self._tables[run_id]
