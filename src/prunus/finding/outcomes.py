"""The rows of a search: differences between a rung and the dense model round by round, and the tokens they took."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prunus.finding.search import Rung, Search
from prunus.results.ladder import differences
from prunus.results.rows import Sample
from prunus.results.store import Store
from prunus.results.table import Table, tables
from prunus.results.token_use import chains_of, sampled_tokens

Floats = NDArray[np.float64]


class Outcomes:
    """What the store has of the runs of a search, read once and again after `forget`."""

    def __init__(self, search: Search, store: Store) -> None:
        self.search, self.store = search, store
        self._tables: dict[str, Mapping[str, Table]] = {}
        self._tokens: dict[str, NDArray[np.int_]] = {}
        self._differences: dict[str, dict[str, Floats]] = {}

    def forget(self, run_id: str) -> None:
        """Read a run again when it is needed next, since rows were added."""
        for kept in (self._tables, self._tokens):
            kept.pop(run_id, None)
        if run_id == self.search.dense.run_id:
            self._differences.clear()
        self._differences.pop(run_id, None)

    def differences(self, rung: Rung) -> dict[str, Floats]:
        """{endpoint: rung minus dense} of the first rounds that both runs have completely."""
        run_id = rung.cell.run_id
        if run_id not in self._differences:
            plan, order = self.search.plan, self.search.order
            dense, ours = self.tables(self.search.dense.run_id), self.tables(run_id)
            self._differences[run_id] = differences(dense, ours, order, plan.budgets, plan.samples)
        return self._differences[run_id]

    def tables(self, run_id: str) -> Mapping[str, Table]:
        """The rows of a run as tables by task."""
        if run_id not in self._tables:
            self._read(run_id)
        return self._tables[run_id]

    def tokens(self, run_id: str, looked: int) -> int:
        """The tokens sampled for the rows of a run in the first rounds, whoever computed them."""
        if run_id not in self._tokens:
            self._read(run_id)
        return int(self._tokens[run_id][looked])

    def _read(self, run_id: str) -> None:
        samples, plan = self.store.samples(run_id), self.search.plan
        wanted = [s for s in samples if s.draw < plan.samples and s.budget in plan.budgets]
        self._tables[run_id] = tables(wanted)
        by_problem: dict[str, list[Sample]] = {}
        for sample in wanted:
            by_problem.setdefault(sample.problem_id, []).append(sample)
        used = {
            problem: sum(sampled_tokens(chains_of(rows), self.search.dense.resolved.reuse))
            for problem, rows in by_problem.items()
        }
        per_round = [sum(used.get(problem, 0) for _, problem in one) for one in self.search.order]
        self._tokens[run_id] = np.concatenate([[0], np.cumsum(per_round, dtype=int)]).astype(int)
