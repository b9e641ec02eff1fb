"""Whether a run has all rows of its plan; if not, the problems of it that can be compared without choosing among them.

With an engine that streams, the chains that end first are the short ones, so the finished problems of a run that was
stopped, or is looked at, are not a random sample of its problems.
"""

from collections.abc import Mapping, Sequence

from prunus.budgets import budget_of
from prunus.results.cells import Entry, Unfinished
from prunus.results.rows import Run
from prunus.results.table import Table

PARTLY = "the problems that are finished first need not be like the others"


def unfinished(run: Run, tables: Mapping[str, Table]) -> Unfinished | None:
    """How much of its plan an unfinished run has; None for a finished one.

    A run of `find` counts as finished, since it takes problems in a fixed order, and so does one whose plan does not
    tell its problems.
    """
    if run.planned is None or run.adaptive is not None:
        return None
    draws = range(int(run.plan.get("samples", 1)))
    complete = 0
    for table in tables.values():
        budgets = [budget_of(budget) for budget in run.plan.get("budgets", table.budgets)]
        if set(budgets) <= set(table.budgets) and set(draws) <= set(table.draws):
            complete += len(table.select(table.problems, budgets, draws).complete())
    return None if complete >= run.planned.count else Unfinished(complete=complete, planned=run.planned.count)


def of_both(base: Run, other: Run) -> dict[str, Sequence[str]]:
    """{task: the problems of both plans, in their order}; without the tasks that an older store does not list."""
    ours, theirs = (run.planned.order if run.planned and run.planned.order else {} for run in (base, other))
    shared = {task: set(ours[task]) for task in theirs if task in ours}
    return {task: [one for one in theirs[task] if one in both] for task, both in shared.items()}


def in_words(state: Unfinished) -> str:
    """`unfinished, 114 of 120`, with `of the base` where it is the base that lacks rows."""
    return f"unfinished, {state.complete} of {state.planned}{' of the base' if state.base else ''}"


def verdict_in_words(entry: Entry) -> str:
    """The verdict of an entry of `compare`, or how much of an unfinished run is there."""
    return in_words(entry.unfinished) if entry.unfinished else entry.verdict
