"""Reuse rows of other runs in the store: the same model and plan, with other numbers of problems, budgets or draws.

Seeds follow from problem, draw and phase, so up to rounding these rows are those that the run would compute.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import get_args

from prunus import progress
from prunus.evaluation.grading import GRADER_VERSION
from prunus.evaluation.resolved_plan import ResolvedPlan, run_id_of
from prunus.store.rows import Key, Run
from prunus.store.starts import contradiction, records
from prunus.store.store import Kept, Store
from prunus.store.stored import Environment, StoredModel, StoredPlan

# Settings of a plan that do not change the row of a given problem, budget and draw. The settings IF_BOTH are only in
# some plans; they must be equal if both plans have them.
OF_SIZE = {"limit", "limit_of", "problems", "budgets", "samples"}
IF_BOTH = {"context", "off"}


def reuse_rows(store: Store, work: ResolvedPlan, in_part: bool = False) -> None:
    """Copy the run's missing rows from another run that has all of them, and record the other run's environments.

    in_part: if the store does not have the run yet, also copy from a run that has only some of them.
    """
    if not (missing := wanted(store, work)):
        return
    known = {run.run_id: run for run in store.runs()}
    for source in runs_to_reuse(work, list(known.values())):
        mine = known.get(work.run_id)
        if source.mixed or (mine and any(contradiction(mine, record) for record in records(source))):
            continue
        had = missing & store.keys(source.run_id)
        if had == missing or (had and in_part and work.run_id not in known):
            given = ("content", "serving", "served_as")
            model = StoredModel.of({key: value for key, value in source.model.data.items() if key not in given})
            run = Run(work.run_id, model | work.about, work.plan, source.environment, planned=work.planned)
            store.add_run(run)
            store.copy_samples(source.run_id, work.run_id, had)
            for later in source.starts:
                store.add_run(replace(run, environment=later.environment))
            say_reused(len(had), source)
            return


def reuse_some_rows(store: Store, work: ResolvedPlan, environment: Environment) -> None:
    """Copy the run's missing rows from all other runs that were computed in this environment."""
    for source, table in product(runs_to_reuse(work, store.runs()), get_args(Kept)):
        missing = wanted(store, work) & store.keys(source.run_id, table)
        if missing and not source.mixed and not contradiction(source, environment):
            store.copy_samples(source.run_id, work.run_id, missing, table)
            say_reused(len(missing), source)


def say_reused(rows: int, source: Run) -> None:
    """Print how many rows were copied from which run."""
    progress.say(f"{rows:,} of its answers are those of run {source.run_id}, which has other numbers of them")


def stored_keys(store: Store, work: ResolvedPlan) -> set[Key]:
    """Keys of the rows of the plan that the store has, including those that the run would reuse."""
    lacking, keys = wanted(store, work), store.keys(work.run_id)
    for source in runs_to_reuse(work, store.runs()):
        if not source.mixed:
            keys |= lacking & store.keys(source.run_id)
    return keys


def wanted(store: Store, work: ResolvedPlan) -> set[Key]:
    """Keys of the rows of the plan that the store lacks."""
    return work.keys(chain for batch in work.batches for chain in batch) - store.keys(work.run_id)


def runs_to_reuse(work: ResolvedPlan, runs: Sequence[Run]) -> Iterator[Run]:
    """Yield the other runs whose rows are valid for this plan, at the problems, budgets and draws that both have."""
    if work.plan.aa_control:  # a control has to compute its rows again
        return
    about = work.about
    for run in runs:
        same = run.run_id != work.run_id and run.run_id == run_id_of(work.subject, run.plan, about)
        if same and run.environment.grader == GRADER_VERSION and same_rows(run.plan, work.plan):
            yield run


def same_rows(plan: StoredPlan, other: StoredPlan) -> bool:
    """Whether two plans differ only in how many rows there are."""
    differing = set(plan.differing(other)) - OF_SIZE
    return all(key in IF_BOTH and None in (plan.data.get(key), other.data.get(key)) for key in differing)
