"""A run's plan in short, and the settings that tell runs of one name apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.hashing import content_hash
from prunus.results.characters import one_line
from prunus.results.labels import label_of
from prunus.results.rows import Run

# Settings that follow from others and the model: they are only named where no other setting differs.
FOLLOWS = {"problems", "strings", "end_ids", "context", "kernel", "off", "native"}
LONGEST = 40  # characters of a value; a longer one is named by its hash
LONGEST_LINE = 300


def plan_in_short(plan: Mapping[str, Any]) -> str:
    """`tiny, first 30 problems; budgets 16, 64; 3 draws; strict; profile tiny; temperature 0.0; seed 0`."""
    if "tool" in plan:  # an imported log
        return _joined([f"log of {plan['tool']}", *plan.get("tasks", [])], ", ")
    tasks = _joined(plan.get("tasks", []), ", ")
    limit, draws = plan.get("limit"), plan.get("samples", 1)
    parts = [
        f"{tasks}, first {limit} problems" if limit is not None else tasks,
        f"budgets {_joined(plan.get('budgets', []), ', ')}",
        f"{draws} draw{'' if draws == 1 else 's'}",
        plan.get("mode"),
        *(f"{key} {plan[key]}" for key in ("profile", "temperature", "seed") if plan.get(key) is not None),
    ]
    if plan.get("control", "forced") != "forced":
        parts.append(f"{plan['control']} control")
    return _joined([part for part in parts if part], "; ")


def listed(runs: Sequence[Run]) -> str:
    """The runs for a message: `ID (model; settings in which they differ), ...`."""
    return ", ".join(
        f"{run.run_id} ({_joined([run.model.get('name'), *apart], '; ')})"
        for run, apart in zip(runs, told_apart(runs), strict=True)
    )


def told_apart(runs: Sequence[Run]) -> list[list[str]]:
    """For each run its values of the settings in which the runs differ; a setting that a run lacks is `no ...`."""
    settings = [_settings(run) for run in runs]
    keys = list(dict.fromkeys(key for of in settings for key in of))
    differing = [key for key in keys if len({content_hash(of.get(key)) for of in settings}) > 1]
    chosen = [key for key in differing if key not in FOLLOWS] or differing
    return [[_told(key, of.get(key)) for key in chosen] for of in settings]


def _settings(run: Run) -> dict[str, object]:
    """What can tell runs of one name apart: what was done to the model, its weights and dtype, and the plan."""
    model = {"made": label_of(run), "weights": run.model.get("checksum"), "dtype": run.model.get("dtype")}
    return {key: value for key, value in {**model, **run.plan}.items() if value is not None}


def _told(key: str, value: Any) -> str:
    name = key.replace("_", " ")
    if value is None:
        return f"no {name}"
    if key == "made":
        return str(value)
    if key == "weights":
        return f"{name} {str(value)[:8]}"
    text = _joined(value, ", ") if isinstance(value, list | tuple) else str(value)
    return f"{name} {text if len(text) <= LONGEST else content_hash(value)[:8]}"


def _joined(parts: Sequence[Any], between: str) -> str:
    return one_line(between.join(map(str, parts)), LONGEST_LINE)
