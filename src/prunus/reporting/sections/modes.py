"""Strict and legacy runs of one model side by side: does the budget bound the tokens?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.reporting.labels import Look
from prunus.reporting.render.chart import PANEL, Line, Point, budget_axis, chart, linear_axis, swatch
from prunus.reporting.render.table import Column, Grid, named
from prunus.reporting.render.text import count, esc, percent, points
from prunus.reporting.report_data import Data, View, cells_of, float_of
from prunus.reporting.run_totals import Standing, standing
from prunus.reporting.sections.verdicts import soft
from prunus.results.store import Run, Store
from prunus.results.summary import summarise

MODES = ("strict", "legacy")


@dataclass(frozen=True)
class Both:
    """One model's numbers under both modes. counterpart: run id of the one that the rest of the page leaves out; name
    and standing are its."""

    look: Look
    by_mode: Mapping[str, Data]
    counterpart: str
    name: str
    standing: Standing

    def cells(self, task: str) -> list[dict[int, Data]]:
        """Of strict and of legacy."""
        return [cells_of(self.by_mode[mode], task) for mode in MODES]


def both_modes(store: Store, runs: Sequence[Run], looks: Sequence[Look]) -> list[Both]:
    """For each run that the store holds in the other mode too (same weights, same tasks) the numbers of both."""
    found = []
    for run, look in zip(runs, looks, strict=True):
        mode = run.plan.get("mode")
        for other in store.runs():
            same = other.model.get("checksum") == run.model.get("checksum") and other.run_id != run.run_id
            if mode in MODES and same and {mode, other.plan.get("mode")} == set(MODES):
                summaries = {str(one.plan.get("mode")): summarise(store, one.run_id) for one in (run, other)}
                name = f"{look.label} in {other.plan.get('mode')} mode"
                found.append(Both(look, summaries, other.run_id, name, standing(store, other)))
                break
    return found


def mode_grid(view: View, both: Sequence[Both]) -> Grid:
    """Accuracy, leaks and tokens under both modes at every budget that both have."""
    rows = []
    for one in both:
        for task in view.tasks:
            strict, legacy = one.cells(task)
            for budget in sorted(strict.keys() & legacy.keys()):
                pair = (strict[budget], legacy[budget])
                accuracies = [cell["accuracy"] for cell in pair]
                values: list[Any] = [task, budget, *accuracies, accuracies[1] - accuracies[0]]
                values += [cell["leaked"] for cell in pair]
                values += [cell["tokens"]["answer"][key] for cell in pair for key in ("mean", "p95")]
                rows.append((one.look, values + [cell["forced"] for cell in pair]))
    columns = [
        Column("run", "Run"), Column("task", "Task"), Column("budget", "Budget"),
        Column("strict", "Accuracy, %|strict", percent), Column("legacy", "Accuracy, %|legacy", percent),
        Column("difference", "Difference,|points", points), Column("strict_leaked", "Leaked, %|strict", percent),
        Column("legacy_leaked", "Leaked, %|legacy", percent),
        Column("strict_answer", "Answer tokens|strict", count), Column("strict_answer_p95", "95th|percentile", count),
        Column("legacy_answer", "Answer tokens|legacy", count), Column("legacy_answer_p95", "95th|percentile", count),
        Column("strict_forced", "Forced, %|strict", percent), Column("legacy_forced", "Forced, %|legacy", percent),
    ]  # fmt: skip
    return Grid("modes", "Strict and legacy", "data modes sortable", columns, rows)


def mode_chart(task: str, one: Both) -> str:
    """One panel: accuracy of a model under both modes over the budget, with 95 % bands."""
    lines = []
    for index, (mode, cells) in enumerate(zip(MODES, one.cells(task), strict=True)):
        spots = [
            Point(float(budget), 100 * cell["accuracy"], 100 * float_of(cell["low"]), 100 * float_of(cell["high"]),
                  f"Budget {budget}\n{mode}\n{percent(cell['accuracy'])} %, leaked {percent(cell['leaked'])} %")
            for budget, cell in cells.items()
        ]  # fmt: skip
        lines.append(Line(f"m{index}", spots, index))
    budgets = sorted({int(point.x) for line in lines for point in line.points})
    highest = max([point.high for line in lines for point in line.points if point.high == point.high], default=1.0)
    axis = linear_axis(0, min(100.0, max(highest, 1.0)), "Accuracy, %", wanted=4)
    label = f"{one.look.label}: accuracy on {task} in strict and legacy mode"
    return chart(lines, budget_axis(budgets), axis, label, frame=PANEL, css="panel")


def mode_section(view: View, both: Sequence[Both]) -> str:
    """Panels of both curves and the table; nothing where no model was run in both modes."""
    if not both:
        return ""
    note = (
        "Strict bounds the answer too and bans the marker that would open the thinking again; legacy lets an answer "
        "run on, as published studies did. Where legacy is higher at small budgets and its answers are long, "
        "the reasoning went on in the answer, and the curve against the budget says little."
    )
    keys = "".join(f"<li>{swatch(f'm{index}', index)}{mode}</li>" for index, mode in enumerate(MODES))
    panels = "".join(
        f'<figure class="{one.look.css}"><figcaption>{named(one.look)}<small><bdi>{esc(task)}</bdi></small>'
        f"</figcaption>{mode_chart(task, one)}</figure>"
        for task in view.tasks
        for one in both
        if all(one.cells(task))
    )
    return (
        f'<section id="modes"><h2>Strict and legacy</h2>{soft(note)}<ul class="endings">{keys}</ul>'
        f'<div class="panels">{panels}</div><details><summary>Strict and legacy in numbers</summary>'
        f"{mode_grid(view, both).html()}</details></section>"
    )
