"""Compare published accuracies with measured ones: the cells of data/published that match a run, and z-scores."""

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from prunus.plain_data import Record
from prunus.reporting.render.table import RunStyle
from prunus.results.summary import BudgetCell, Summary
from prunus.store.rows import Run

# Values of a recipe that papers imply; a recipe with other values matches no published cell.
PLAIN = ("all", None, "none")  # scope, pattern and update


class PublishedVariant(NamedTuple):
    """A model and its pruning, in terms that papers and recipes share. method: `dense` for an unpruned model."""

    model: str
    method: str
    allocation: str | None = None
    sparsity: float | None = None
    blocks: int | None = None


@dataclass(frozen=True)
class Published:
    """One published accuracy.

    sd: the printed standard deviation of run means (divisor n), if any. error: half the range of reading, for a value
    read from a figure. mark: A for a table with exact numbers, B for a figure. where: the table or figure.
    """

    source: str
    variant: PublishedVariant
    task: str
    budget: int
    accuracy: float
    sd: float | None
    error: float
    mark: str
    where: str


class Source(Record):
    """A paper, as sources.json describes it. runs: how many a mean is over. read: how its figures were read."""

    name: str
    paper: str
    code: str
    runs: int
    draws: str
    answer_tokens: int
    read: str


class Note(NamedTuple):
    """A note on the published cells whose fields have these values."""

    text: str
    fields: Mapping[str, object]


@dataclass(frozen=True)
class Match:
    """A published cell, and the measured cell of a run with the same model, recipe, task and budget."""

    style: RunStyle
    task: str  # the name in the store
    published: Published
    measured: BudgetCell
    mode: str

    @property
    def difference(self) -> float:
        return self.measured.accuracy - self.published.accuracy

    @property
    def z(self) -> float:
        """The difference divided by its standard error; nan if neither side has an error."""
        error = math.hypot(self.measured.se or 0.0, standard_error(self.published))
        return self.difference / error if error > 0 else math.nan


def _read(name: str) -> str:
    return files("prunus").joinpath("data", "published", name).read_text("utf-8")


@cache
def cells() -> tuple[Published, ...]:
    """All published accuracies."""
    return tuple(_published(**row) for row in csv.DictReader(_read("cells.csv").splitlines()))


@cache
def about() -> tuple[Mapping[str, Source], Sequence[Note]]:
    """The content of sources.json: the sources of the cells by name, and the notes on cells."""
    data = json.loads(_read("sources.json"))
    notes = [Note(note.pop("text"), note) for note in data["notes"]]
    return {name: Source.of(source) for name, source in data["sources"].items()}, notes


def sources() -> Mapping[str, Source]:
    """The sources of the cells by name."""
    return about()[0]


def _published(
    source: str, model: str, method: str, allocation: str, sparsity: str, blocks: str, task: str, budget: str,
    accuracy: str, sd: str, error: str, mark: str, where: str,
) -> Published:  # fmt: skip
    removed = float(sparsity) if sparsity else None, int(blocks) if blocks else None
    variant = PublishedVariant(model, method, allocation or None, *removed)
    spread = float(sd) if sd else None
    return Published(source, variant, task, int(budget), float(accuracy), spread, float(error or 0), mark, where)


def standard_error(cell: Published) -> float:
    """Standard error of a published mean over n runs, whose printed SD has divisor n: SD / sqrt(n - 1).

    If no SD is printed, the root mean square of the SDs of all exact cells of the same model and task is used. The
    error of reading a figure, which is uniform, is added.
    """
    runs = sources()[cell.source].runs
    sd = cell.sd if cell.sd is not None else _usual_sd(cell.variant.model, cell.task)
    return math.hypot(sd / math.sqrt(runs - 1), cell.error / math.sqrt(3))


@cache
def _usual_sd(model: str, task: str) -> float:
    squares = [c.sd**2 for c in cells() if c.sd is not None and (c.variant.model, c.task) == (model, task)]
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0


def variant_of(run: Run) -> PublishedVariant | None:
    """The run's model and its pruning; None for recipes that no paper uses (several steps, patterns, parts)."""
    steps = run.model.manifest.history
    if not steps:
        return PublishedVariant(_last_part(run.model.source or run.model.name), "dense")
    step, recipe = steps[0], steps[0].recipe
    if len(steps) > 1 or not step.source.name:
        return None
    model, method = _last_part(step.source.name), str(recipe.method)
    if step.action == "drop":
        return PublishedVariant(model, method, blocks=len(step.blocks_removed)) if step.blocks_removed else None
    if recipe.sparsity is None or (recipe.scope, recipe.pattern, recipe.update) != PLAIN:
        return None
    return PublishedVariant(model, method, recipe.allocation, round(float(recipe.sparsity), 4))


def _last_part(name: object) -> str:
    """The last part of a folder's path or hub id: s1.1-7B of `simplescaling/s1.1-7B` and of `/models/s1.1-7B/`."""
    return re.split(r"[/\\]", str(name or "").rstrip("/\\"))[-1]


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _same(measured: PublishedVariant, published: PublishedVariant) -> bool:
    return measured.model.lower() == published.model.lower() and measured[1:] == published[1:]


def matches(runs: Iterable[tuple[RunStyle, Run, Summary]]) -> list[Match]:
    """All pairs of a published cell and a run's cell with the same model, recipe, task and budget, ordered by run.

    runs: (style, run, summary) of each run.
    """
    pairs = []
    for style, run, summary in runs:
        variant = variant_of(run)
        if variant is None:
            continue
        published = [cell for cell in cells() if _same(variant, cell.variant)]
        for task, curve in summary.tasks.items():
            measured = curve.budgets
            pairs += [
                Match(style, task, cell, measured[cell.budget], str(run.plan.mode))
                for cell in published
                if _key(cell.task) == _key(task) and cell.budget in measured
            ]
    return pairs


def notes(matched: Sequence[Match]) -> list[str]:
    """The notes on the published cells that matched, each once."""
    facts = [vars(match.published) | match.published.variant._asdict() for match in matched]
    texts = []
    for note in about()[1]:
        if any(note.fields.items() <= of.items() for of in facts):
            texts.append(note.text)
    return texts
