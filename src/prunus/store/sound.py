"""What is wrong with a run that a store holds: whoever wrote the file may have written anything."""

from collections.abc import Mapping
from typing import Any

from prunus.settings.budgets import AS_RUN, OFF, budget_of
from prunus.store.rows import Run

# The types of what tables and pages read of a run; a plan of ours has all of PLANNED.
OF_RUN: Mapping[str, Mapping[str, type]] = {
    "model": {
        "name": str, "source": str, "checksum": str, "manifest": dict, "bytes": dict, "content": str, "serving": dict,
        "cache": dict, "served_as": str, "parameters": int, "blocks": int,
    },
    "plan": {"tasks": list, "budgets": list, "samples": int, "mode": str, "profile": str, "seed": int, "strings": dict},
    "manifest": {"history": list},
}  # fmt: skip
OF_EVENT: Mapping[str, type] = {
    "run": str, "search": str, "choice": str, "chosen": str, "content": str, "removed": str, "regrouped": list,
}  # fmt: skip
NEEDED = {"run": {"checksum", "grader"}, "search": {"at"}, "chosen": {"content"}}  # in an entry of the log
PLANNED = ("tasks", "budgets", "samples", "mode")
MOST = 1 << 62  # tokens, draws and bytes: what SQLite's and numpy's whole numbers hold, with room for a sum


def why_damaged(run: Run) -> str | None:
    """What of a run's columns is not as Prunus writes it; None if all that is read of it is."""
    parts: dict[str, Any] = {"model": run.model, "plan": run.plan, "manifest": run.model.get("manifest") or {}}
    for part, kinds in OF_RUN.items():
        for name, kind in kinds.items():
            if not isinstance(parts[part], dict) or not isinstance(parts[part].get(name), kind | None):
                return f"{name} in the {part} of run {run.run_id} is of a wrong type"
    missing = [name for name in PLANNED if not run.plan.get(name) and (name in run.plan or "prunus" in run.versions)]
    if missing:  # the version is named in every run that Prunus computed
        return f"the plan of run {run.run_id} has no {missing[0]}"
    if not all(isinstance(task, str) for task in run.plan.get("tasks", ())):
        return f"a task in the plan of run {run.run_id} is no name"
    if not all(map(_is_budget, run.plan.get("budgets", ()))):
        return f"a budget in the plan of run {run.run_id} is no number of tokens"
    if not 0 < run.plan.get("samples", 1) < MOST:
        return f"samples in the plan of run {run.run_id} is no number of draws"
    if not all(type(number) is int and 0 <= number < MOST for number in (run.model.get("bytes") or {}).values()):
        return f"the bytes of the model of run {run.run_id} are no numbers"
    if run.adaptive is not None and type(run.adaptive.get("seed", 0)) is not int:
        return f"the order in which run {run.run_id} took problems has no seed"
    steps = parts["manifest"].get("history") or []
    if not all(isinstance(step, dict) and isinstance(step.get("recipe"), dict | None) for step in steps):
        return f"the history of run {run.run_id} has a step of a wrong type"
    return None


def is_event(event: Mapping[str, Any]) -> bool:
    """Whether what the log keeps of something has the types that Prunus writes."""
    kinds = {name: type(event[name]) is kind for name, kind in OF_EVENT.items() if name in event}
    return all(kinds.values()) and all(event.keys() >= names for what, names in NEEDED.items() if what in event)


def _is_budget(value: object) -> bool:
    """Whether a value stands for a budget, as plans have them."""
    return value in (str(OFF), str(AS_RUN)) or (type(value) is int and OFF <= budget_of(value) < MOST)
