"""Published accuracies beside ours: which cells of data/published match a run, and how far apart they are."""

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from prunus.reporting.labels import Look, history
from prunus.results.rows import Run

Data = Mapping[str, Any]
# Values of a recipe that papers imply; with others it is another method.
PLAIN = {"scope": "all", "pattern": None, "update": "none"}


class Variant(NamedTuple):
    """A model and how it was pruned, in terms that papers and recipes share. method `dense`: not pruned."""

    model: str
    method: str
    allocation: str | None = None
    sparsity: float | None = None
    blocks: int | None = None


@dataclass(frozen=True)
class Published:
    """One published accuracy. sd: printed, of run means, divisor n; error: half a range, where read from a figure.

    mark: A for an exact table, B for a figure. where: which one.
    """

    source: str
    variant: Variant
    task: str
    budget: int
    accuracy: float
    sd: float | None
    error: float
    mark: str
    where: str


@dataclass(frozen=True)
class Match:
    """A published cell and the cell of a run of ours with the same model, recipe, task and budget."""

    look: Look
    task: str  # as we call it
    theirs: Published
    ours: Data
    mode: str

    @property
    def difference(self) -> float:
        return self.ours["accuracy"] - self.theirs.accuracy

    @property
    def z(self) -> float:
        """The difference over the root of both variances; nan where neither has one."""
        error = math.hypot(self.ours.get("se") or 0.0, standard_error(self.theirs))
        return self.difference / error if error > 0 else math.nan


def _read(name: str) -> str:
    return files("prunus").joinpath("data", "published", name).read_text("utf-8")


@cache
def cells() -> tuple[Published, ...]:
    """Every published accuracy."""
    return tuple(_published(row) for row in csv.DictReader(_read("cells.csv").splitlines()))


@cache
def about() -> dict[str, Any]:
    """`sources`: where cells come from; `notes`: remarks on some cells, with the values that select them."""
    return json.loads(_read("sources.json"))


def _published(row: Mapping[str, str]) -> Published:
    variant = Variant(
        row["model"],
        row["method"],
        row["allocation"] or None,
        float(row["sparsity"]) if row["sparsity"] else None,
        int(row["blocks"]) if row["blocks"] else None,
    )
    sd = float(row["sd"]) if row["sd"] else None
    numbers = (int(row["budget"]), float(row["accuracy"]), sd, float(row["error"] or 0))
    return Published(row["source"], variant, row["task"], *numbers, row["mark"], row["where"])


def standard_error(cell: Published) -> float:
    """Standard error of a published mean over n runs, whose printed SD has divisor n: SD / sqrt(n - 1).

    Where no SD is printed: from the root mean square SD of all exact cells of the same model and task, plus the error
    of reading a figure (uniform).
    """
    runs = about()["sources"][cell.source]["runs"]
    sd = cell.sd if cell.sd is not None else _usual_sd(cell.variant.model, cell.task)
    return math.hypot(sd / math.sqrt(runs - 1), cell.error / math.sqrt(3))


@cache
def _usual_sd(model: str, task: str) -> float:
    squares = [c.sd**2 for c in cells() if c.sd is not None and (c.variant.model, c.task) == (model, task)]
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0


def variant_of(run: Run) -> Variant | None:
    """The run's model and how it was pruned; None for recipes that no paper has (several steps, patterns, parts)."""
    steps = history(run)
    if not steps:
        return Variant(_last_part(run.model.get("source") or run.model.get("name")), "dense")
    step, recipe = steps[0], steps[0].get("recipe")
    source = step.get("source")
    if len(steps) > 1 or not isinstance(recipe, dict) or not isinstance(source, dict):
        return None
    model, method = _last_part(source.get("name")), str(recipe.get("method"))
    if step.get("action") == "drop":
        gone = step.get("blocks_removed")
        return Variant(model, method, blocks=len(gone)) if isinstance(gone, list) and gone else None
    sparsity = recipe.get("sparsity")
    if not isinstance(sparsity, int | float) or any(recipe.get(key, usual) != usual for key, usual in PLAIN.items()):
        return None
    return Variant(model, method, str(recipe.get("allocation", "uniform")), round(float(sparsity), 4))


def _last_part(name: Any) -> str:
    """Of a folder or hub id: `simplescaling/s1.1-7B` and `/models/s1.1-7B/` are s1.1-7B."""
    return re.split(r"[/\\]", str(name or "").rstrip("/\\"))[-1]


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _same(ours: Variant, theirs: Variant) -> bool:
    return ours.model.lower() == theirs.model.lower() and ours[1:] == theirs[1:]


def matches(runs: Iterable[tuple[Look, Run, Data]]) -> list[Match]:
    """Every published cell whose model, recipe, task and budget are those of a run; runs in order, then budgets.

    runs: each with its look and its summary.
    """
    found = []
    for look, run, summary in runs:
        variant = variant_of(run)
        if variant is None:
            continue
        theirs = [cell for cell in cells() if _same(variant, cell.variant)]
        for task, curve in summary["tasks"].items():
            ours = {int(budget): cell for budget, cell in curve["budgets"].items()}
            found += [
                Match(look, task, cell, ours[cell.budget], str(run.plan.get("mode")))
                for cell in theirs
                if _key(cell.task) == _key(task) and cell.budget in ours
            ]
    return found


def notes(found: Sequence[Match]) -> list[str]:
    """Remarks on the cells that matched, each once."""
    texts = []
    for note in about()["notes"]:
        wanted = {key: value for key, value in note.items() if key != "text"}
        if any(all(_value(match.theirs, key) == value for key, value in wanted.items()) for match in found):
            texts.append(note["text"])
    return texts


def _value(cell: Published, key: str) -> Any:
    return getattr(cell.variant if key in Variant._fields else cell, key)


def nothing_matches(runs: Sequence[Run], tasks: Sequence[str]) -> str:
    """A sentence that says which runs there are, and which would have published figures."""
    known = cells()
    models, sets = (sorted({pick(cell) for cell in known}) for pick in (lambda c: c.variant.model, lambda c: c.task))
    budgets = sorted({cell.budget for cell in known})
    here = sorted({_last_part(_original(run)) for run in runs})
    return (
        f"No published figure matches: there are some for {' and '.join(models)} on {', '.join(sets)} at budgets "
        f"{', '.join(map(str, budgets))}, dense, with magnitude or wanda at 10 or 20 % (uniform, owl, layerif), or one "
        f"to three blocks removed (shortgpt, laco, tail); here {', '.join(here)} on {', '.join(tasks)}."
    )


def _original(run: Run) -> Any:
    """Name of the model before the first step."""
    steps = history(run)
    source = steps[0].get("source") if steps else None
    return source.get("name") if isinstance(source, dict) else run.model.get("source") or run.model.get("name")
