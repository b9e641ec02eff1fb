"""What is wrong with a run that a store holds: whoever wrote the file may have written anything."""

from collections.abc import Mapping
from typing import Any

from prunus.store.rows import Run

OF_EVENT: Mapping[str, type] = {
    "run": str, "search": str, "choice": str, "chosen": str, "content": str, "removed": str, "regrouped": list,
}  # fmt: skip
NEEDED = {"run": {"checksum", "grader"}, "search": {"at"}, "chosen": {"content"}}  # in an entry of the log
PLANNED = ("tasks", "budgets", "samples", "mode")  # a plan of ours has all


def why_damaged(run: Run) -> str | None:
    """What of a run's columns is not as Prunus writes it; None if all that is read of it is."""
    there = run.plan.data
    missing = [name for name in PLANNED if not there.get(name) and (name in there or run.environment.prunus)]
    if missing:  # the version is named in every run that Prunus computed
        return f"the plan of run {run.run_id} has no {missing[0]}"
    if run.adaptive is not None and type(run.adaptive.get("seed", 0)) is not int:
        return f"the order in which run {run.run_id} took problems has no seed"
    return None


def is_event(event: Mapping[str, Any]) -> bool:
    """Whether what the log keeps of something has the types that Prunus writes."""
    kinds = {name: type(event[name]) is kind for name, kind in OF_EVENT.items() if name in event}
    return all(kinds.values()) and all(event.keys() >= names for what, names in NEEDED.items() if what in event)
