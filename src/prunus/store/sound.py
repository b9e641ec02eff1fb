"""Check the runs of a store, whose file may contain anything."""

from prunus.store.rows import Run

PLANNED = ("tasks", "budgets", "samples", "mode")  # a plan of ours has all


def why_damaged(run: Run) -> str | None:
    """The first setting, in words, that the plan of a run must have but lacks; None if it has all of them."""
    there = run.plan.data
    missing = [name for name in PLANNED if not there.get(name) and (name in there or run.environment.prunus)]
    if missing:  # the version is named in every run that Prunus computed
        return f"the plan of run {run.run_id} has no {missing[0]}"
    return None
