"""What is wrong with a run that a store holds: whoever wrote the file may have written anything."""

from prunus.store.rows import Run

PLANNED = ("tasks", "budgets", "samples", "mode")  # a plan of ours has all


def why_damaged(run: Run) -> str | None:
    """What of a run's columns is not as Prunus writes it; None if all that is read of it is."""
    there = run.plan.data
    missing = [name for name in PLANNED if not there.get(name) and (name in there or run.environment.prunus)]
    if missing:  # the version is named in every run that Prunus computed
        return f"the plan of run {run.run_id} has no {missing[0]}"
    return None
