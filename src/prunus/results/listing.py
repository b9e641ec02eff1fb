"""The runs of a store: what they are, and how to remove one."""

from pathlib import Path
from typing import Any

from prunus.results.labels import label_of
from prunus.results.plans import plan_in_short
from prunus.results.store import Store


def runs(store: str | Path, remove: str | None = None) -> list[dict[str, Any]]:
    """The runs of a store, oldest first, as dicts with run (its id), model, label, plan (in short), rows and adaptive.

    label: what was done to the model. rows: number of stored answers; 0 if the evaluation was stopped before its first
    batch was complete. adaptive: whether `find` decided how many problems the run has.
    remove: first remove the run with this id, start of an id, model name or label, with all its rows; there is no way
    back. Raises PrunusError, and removes nothing, if that is no run or several, or while a process is evaluating it.
    """
    with Store(store) as opened:
        if remove is not None:
            opened.remove_run(remove)
        counts = opened.counts()
        return [
            {
                "run": run.run_id,
                "model": run.model.get("name"),
                "label": label_of(run),
                "plan": plan_in_short(run.plan),
                "rows": counts.get(run.run_id, 0),
                "adaptive": run.adaptive is not None,
            }
            for run in opened.runs()
        ]
