"""Rows of a run at further budgets, which are not part of its plan: those that prunus.evaluation.refine adds."""

from prunus.store.rows import Run, Sample
from prunus.store.store import Store


def has_budget(store: Store, run: Run, budget: int) -> bool:
    """Whether every draw of the run has a row at this budget."""
    keys = store.keys(run.run_id)
    chains = {(problem, draw) for problem, _, draw in keys}
    there = {(problem, draw) for problem, at, draw in keys | store.keys(run.run_id, "finer") if at == budget}
    return chains == there


def finer_samples(store: Store, run: Run) -> list[Sample]:
    """The rows at further budgets, only at those budgets at which every draw of the run has a row."""
    finer = store.samples(run.run_id, table="finer")
    whole = {budget for budget in {sample.budget for sample in finer} if has_budget(store, run, budget)}
    return [sample for sample in finer if sample.budget in whole]
