"""Strict and legacy runs of the same model side by side, which show whether the budget bounds the tokens."""

from collections.abc import Sequence
from typing import Any

from prunus.reporting.render.chart import PANEL, Line, Picture, Point, accuracy_axis, budget_axis, chart, swatch
from prunus.reporting.render.figure import Figure, Key
from prunus.reporting.render.table import RUN, Column, Table
from prunus.reporting.render.text import count, esc, percent, points
from prunus.reporting.report_data import MODES, ReportData, ReportedRun
from prunus.reporting.section import Section, details, part, run_figure, soft


def section(data: ReportData) -> Section:
    """A sentence on how far apart the modes are; folded, both curves and a table; empty if no model has both modes."""
    if not data.both_modes:
        return Section("modes")
    note = (
        "Mode strict also bounds the answer, and bans the marker that would reopen the thinking. Mode legacy lets an "
        "answer run on, as published studies did. Where legacy is higher at small budgets and its answers are long, "
        "the reasoning continued in the answer, and the curve against the budget means little."
    )
    keys = [Key(f"m{index}", index, mode) for index, mode in enumerate(MODES)]
    legend = "".join(f"<li>{swatch(key.css, key.marker).html()}{key.name}</li>" for key in keys)
    pairs = [(task, both) for task in data.tasks for both in data.both_modes if all(run.cells(task) for run in both)]
    pictures = [(task, both[0], mode_chart(task, both)) for task, both in pairs]
    panels = "".join(run_figure(run.style, picture, f"<bdi>{esc(task)}</bdi>") for task, run, picture in pictures)
    table = mode_table(data)
    _, (task, budget, _, _, gap, *_) = max(table.rows, key=lambda row: row[1][4])
    ahead = f"up to {points(gap)} points ahead of strict ({task}, budget {budget})"
    says = f"By the estimates, legacy is {ahead if gap > 0 else 'nowhere ahead of strict'}."
    shown = f'{soft(note)}<ul class="endings">{legend}</ul><div class="panels">{panels}</div>{table.html()}'
    html = part("modes", "Strict and legacy", f"<bdi>{esc(says)}</bdi>", details("Both curves", shown))
    figures = [Figure(f"modes-{task}-{run.style.label}", picture, keys) for task, run, picture in pictures]
    return Section("modes", html, figures, [table], name="Modes")


def mode_chart(task: str, both: Sequence[ReportedRun]) -> Picture:
    """A panel of a model: accuracy in both modes over the budget, with 95 % bands."""
    lines = []
    for index, (mode, run) in enumerate(zip(MODES, both, strict=True)):
        spots = [
            Point(float(budget), 100 * cell.accuracy, 100 * cell.low, 100 * cell.high,
                  f"Budget {budget}\n{mode}\n{percent(cell.accuracy)} %, leaked {percent(cell.leaked)} %")
            for budget, cell in run.cells(task).items() if budget > 0
        ]  # fmt: skip
        lines.append(Line(f"m{index}", spots, index))
    budgets = sorted({int(point.x) for line in lines for point in line.points})
    label = f"{both[0].style.label}: accuracy on {task} in strict and legacy mode"
    return chart(lines, budget_axis(budgets), accuracy_axis(lines, wanted=4), label, frame=PANEL)


def mode_table(data: ReportData) -> Table:
    """Accuracy, leaks and tokens in both modes at every budget that both have."""
    rows = []
    for both in data.both_modes:
        for task in data.tasks:
            strict, legacy = (run.cells(task) for run in both)
            for budget in sorted(strict.keys() & legacy.keys()):
                pair = (strict[budget], legacy[budget])
                accuracies = [cell.accuracy for cell in pair]
                values: list[Any] = [task, budget, *accuracies, accuracies[1] - accuracies[0]]
                values += [cell.leaked for cell in pair]
                values += [number for cell in pair for number in (cell.tokens.answer.mean, cell.tokens.answer.p95)]
                rows.append((both[0].style, values + [cell.forced for cell in pair]))
    columns = [
        RUN, Column("task", "Task"), Column("budget", "Budget"),
        Column("strict", "Accuracy, %|strict", percent), Column("legacy", "Accuracy, %|legacy", percent),
        Column("difference", "Difference,|points", points), Column("strict_leaked", "Leaked, %|strict", percent),
        Column("legacy_leaked", "Leaked, %|legacy", percent),
        Column("strict_answer", "Answer tokens|strict", count), Column("strict_answer_p95", "95th|percentile", count),
        Column("legacy_answer", "Answer tokens|legacy", count), Column("legacy_answer_p95", "95th|percentile", count),
        Column("strict_forced", "Forced, %|strict", percent), Column("legacy_forced", "Forced, %|legacy", percent),
    ]  # fmt: skip
    return Table("modes", "Strict and legacy", "data modes sortable", columns, rows)
