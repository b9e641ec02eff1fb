"""Accuracy against thinking budget and tokens used, differences from the base, and how accuracy scales."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunus.reporting.published import Match, sources
from prunus.reporting.render.chart import (
    PANEL,
    Frame,
    Line,
    Picture,
    Point,
    accuracy_axis,
    budget_axis,
    chart,
    linear_axis,
    lines_of,
    log_axis,
)
from prunus.reporting.render.figure import Figure, Key
from prunus.reporting.render.table import RUN, Column, Interval, RunStyle, Table, Word, sign
from prunus.reporting.render.text import count, esc, joined, percent, points, probability, sizes
from prunus.reporting.report_data import ReportData, ReportedRun, band_of
from prunus.reporting.section import Section, details, part_of, run_figure, run_key, soft
from prunus.results.cells import Cell
from prunus.results.summary import AreaOverTokens, BudgetCell
from prunus.results.verdicts import WITHIN, WORDS, WORSE, verdict
from prunus.settings.budgets import AS_RUN, budget_of
from prunus.statistics.metrics import LEAK_RULE, Estimate, Value

MANY = 5  # with more curves than this in a chart, all bands except the base's are faint
NAMED = 4  # largest number of variants in a sentence


def section(data: ReportData) -> Section:
    """For each task a panel of differences for each run, and how accuracy scales, with their tables."""
    parts = [_of_task(data, task) for task in data.tasks]
    return Section(
        "differences",
        "".join(part.html for part in parts),
        [one for part in parts for one in part.figures],
        [one for part in parts for one in part.tables],
        name="Differences" if data.others else "Accuracy",
    )


def _of_task(data: ReportData, task: str) -> Section:
    compared = [one for one in data.others if one.contrasts(task).keys() - {AS_RUN}]
    panels = [(one.style, differences(data, task, [one], one.style.label)) for one in compared]
    by_budget, every, scaling = accuracy_table(data, task), number_table(data, task), scaling_table(data, task)
    keys = [run_key(one.style) for one in data.runs]
    figures = [Figure(f"difference-{task}-{style.label}", picture) for style, picture in panels]
    if compared:
        figures.insert(0, Figure(f"difference-{task}", differences(data, task, compared), keys[1:]))
    if data.has_curve(task):
        published = _published_keys(data, task)
        figures.insert(0, Figure(f"accuracy-budget-{task}", accuracy_against_budget(data, task), [*keys, *published]))
    shown = f'<div class="panels">{"".join(run_figure(*panel) for panel in panels)}</div>' if panels else ""
    shown += details("Accuracy at every budget", by_budget.html() + soft(_by_budget_note(data, task)))
    shown += details("Every number", every.html())
    shown += details("Scaling in numbers", scaling.html() + soft(SCALING_NOTE))
    terms = (
        "Accuracy minus the base's on the same problems, in points. Bands: 95 %, "
        f"{bands_text(cell for one in compared for cell in one.contrasts(task).values())}. The shaded strip is the "
        "margin; each panel has its own scale."
    )
    title = f"Difference from <bdi>{esc(data.base.style.label)}</bdi> by budget" if panels else "Accuracy"
    html = part_of(data, task, "differences", title, esc(_worse_at(data, task)), shown, terms if panels else "")
    return Section(task, html, figures, [by_budget, every, scaling])


def _worse_at(data: ReportData, task: str) -> str:
    """A sentence on the single budgets at which runs are shown to be worse; empty without other runs."""
    by_run = {
        one.style.label: [str(b) for b, cell in one.contrasts(task).items() if verdict(cell) in (WORSE, WITHIN)]
        for one in data.others
    }
    parts = [f"{name} at {joined(worse, most=3)}" for name, worse in by_run.items() if worse]
    parts = parts if len(parts) <= NAMED else [*parts[: NAMED - 1], f"{len(parts) - NAMED + 1} more variants"]
    if not by_run or not data.has_curve(task):
        return ""
    none = "No variant is shown to be worse at a single budget."
    return f"Worse at single budgets: {'; '.join(parts)}." if parts else none


def bands_text(cells: Iterable[Cell | BudgetCell]) -> str:
    """Words that say whether the bands of these cells are simultaneous."""
    together = any(cell.band_low is not None for cell in cells)
    return "simultaneous for all budgets" if together else "for each budget separately"


def accuracy_against_budget(data: ReportData, task: str, frame: Frame | None = None) -> Picture:
    """Accuracy in percent with 95 % bands over log2 of the budget; published figures are hollow and dotted."""
    lines = _published_lines(data.published_on(task))
    for one in data.drawn:
        cells = {budget: cell for budget, cell in one.cells(task).items() if budget != AS_RUN}
        lines.append(Line(one.style.css, _accuracies(one.style, cells), one.style.marker, one.style.label))
    budgets = sorted({budget_of(point.x) for line in lines for point in line.points})
    label, css = f"Accuracy on {task} against thinking budget", "many" if len(lines) > MANY else ""
    return chart(lines, budget_axis(budgets), accuracy_axis(lines), label, frame=frame, css=css)


def accuracy_against_tokens(data: ReportData, task: str, frame: Frame | None = None) -> Picture:
    """Accuracy in percent with 95 % bars over the mean number of tokens used for thinking and answer."""
    lines = []
    for one in data.drawn:
        used = {budget: cell.tokens.total.mean for budget, cell in one.cells(task).items()}
        cells = {budget: cell for budget, cell in one.cells(task).items() if used[budget] is not None}
        moved = {
            budget: point._replace(x=used[budget], note=f"{point.note}, {count(used[budget])} tokens")
            for budget, point in zip(cells, _accuracies(one.style, cells, together=False), strict=True)
        }
        lines += lines_of(moved, one.style.css, one.style.marker, one.style.label)
    axis = log_axis([point.x for line in lines for point in line.points], "Mean tokens per draw")
    label = f"Accuracy on {task} against tokens used"
    return chart(lines, axis, accuracy_axis(lines), label, frame=frame, whiskers=True)


def _published_lines(matches: Sequence[Match]) -> list[Line]:
    """One line for each run and source, in the run's colour."""
    groups: dict[tuple[RunStyle, str], list[Point]] = {}
    for match in matches:
        cell = match.theirs
        name = f"{match.style.label}, {sources()[cell.source].name}"
        note = f"Budget {cell.budget}\n{name}\n{percent(cell.accuracy)} %"
        point = Point(float(cell.budget), 100 * cell.accuracy, note=note)
        groups.setdefault((match.style, cell.source), []).append(point)
    names = list(sources())
    return [Line(f"{style.css} pub", spots, names.index(source)) for (style, source), spots in groups.items()]


def _published_keys(data: ReportData, task: str) -> list[Key]:
    named = sources()
    pairs = dict.fromkeys((match.style, match.theirs.source) for match in data.published_on(task))
    return [Key(f"{style.line} pub", [*named].index(s), f"{style.label}, {named[s].name}") for style, s in pairs]


def differences(data: ReportData, task: str, runs: Sequence[ReportedRun], name: str = "") -> Picture:
    """Accuracy minus the base's in points, with 95 % bands; the margin is shaded. name: of the only run of a panel."""
    lines = [Line(one.style.css, _differences(task, one), one.style.marker) for one in runs]
    spots = [point for line in lines for point in line.points]
    x_axis = budget_axis(sorted({budget_of(point.x) for point in spots}))
    ends = [value for point in spots for value in (point.y, point.low, point.high) if math.isfinite(value)]
    edge, zone = 100 * data.margin_points * 1.5, (-100 * data.margin_points, 0.0)
    low, high = max(-100.0, min([*ends, -edge, -1])), min(100.0, max([*ends, edge, 1]))
    title = "Points" if name else f"Accuracy minus that of {data.base.style.label}, points"
    y_axis = linear_axis(low, high, title, 4, sign=True)
    label = f"{f'{name}: difference' if name else 'Differences'} on {task} against thinking budget"
    return chart(lines, x_axis, y_axis, label, frame=PANEL if name else None, zone=zone, zero_line=True)


def _differences(task: str, one: ReportedRun) -> list[Point]:
    curve = []
    for budget, cell in sorted(one.contrasts(task).items()):
        low, high = (max(-100.0, min(100.0, 100 * end)) for end in band_of(cell))
        interval = f"{points(cell.low)} to {points(cell.high)}"
        note = f"Budget {budget}\n{one.style.label}\n{points(cell.difference)} points ({interval})"
        curve.append(Point(float(budget), 100 * cell.difference, low, high, note))
    return curve


def _accuracies(style: RunStyle, cells: Mapping[int, BudgetCell], together: bool = True) -> list[Point]:
    """A point for each budget: accuracy with its interval. together: with simultaneous bands if there are any."""
    curve = []
    for budget, cell in cells.items():
        low, high = band_of(cell) if together else (cell.low, cell.high)
        interval = f"{percent(cell.low)} to {percent(cell.high)}"
        note = f"Budget {budget}\n{style.label}\n{percent(cell.accuracy)} % ({interval})"
        curve.append(Point(float(budget), 100 * cell.accuracy, 100 * low, 100 * high, note))
    return curve


def _by_budget_note(data: ReportData, task: str) -> str:
    text = sizes((cell for one in data.runs for cell in one.cells(task).values()), "×")
    signs = ", ".join(f"{sign(word)} {word}" for word in WORDS)
    return (
        f"{text}. Below each accuracy is its 95 % interval. The sign after it is the verdict at that budget, corrected "
        f"for all single budgets of all variants (Holm): {signs}."
    )


def accuracy_table(data: ReportData, task: str) -> Table:
    """Accuracy with its interval and the verdict at that budget, one row per run and one column per budget."""
    budgets = sorted({budget for one in data.runs for budget in one.cells(task)})
    rows = []
    for one in data.runs:
        words = {budget: verdict(contrast) for budget, contrast in one.contrasts(task).items()}
        cells = {
            budget: Interval(cell.accuracy, cell.low, cell.high, words.get(budget, ""))
            for budget, cell in one.cells(task).items()
        }
        rows.append((one.style, [cells.get(budget) for budget in budgets]))
    columns = [Column("run", "Accuracy, %"), *(Column(str(budget), str(budget), percent) for budget in budgets)]
    return Table(f"accuracy-{task}", f"Accuracy on {task} by budget", "matrix sortable", columns, rows)


def number_table(data: ReportData, task: str) -> Table:
    """Every accuracy and difference of one task."""
    rows, grouped = [], any(cell.problems is not None for one in data.runs for cell in one.cells(task).values())
    for one in data.runs:
        contrasts = one.contrasts(task)
        for budget, cell in one.cells(task).items():
            values: list[Any] = [budget, cell.accuracy, cell.low, cell.high]
            if contrast := contrasts.get(budget):
                values += [contrast.difference, contrast.low, contrast.high, Word(verdict(contrast))]
                values += [contrast.p, contrast.p_adjusted, contrast.q, contrast.mde]
            else:
                values += [None] * 8
            counts = [cell.all_problems, *[cell.n] * grouped, cell.samples]
            rows.append((one.style, [*values, *counts]))
    columns = [
        RUN, Column("budget", "Budget"), Column("accuracy", "Accuracy, %", percent),
        Column("low", "low", percent), Column("high", "high", percent),
        Column("difference", "Difference, points", points),
        Column("difference_low", "low", points), Column("difference_high", "high", points),
        Column("verdict", "Verdict"), Column("p", "p", probability), Column("p_adjusted", "p adjusted", probability),
        Column("q", "q", probability), Column("mde", "MDE", percent),
        Column("problems", "Problems"), *[Column("groups", "Groups")] * grouped, Column("draws", "Draws"),
    ]  # fmt: skip
    return Table(f"numbers-{task}", f"Every number on {task}", "data numbers sortable", columns, rows)


SCALING = (
    Column("auc", "Area,|%", percent),
    Column("slope", "Per doubling,|points", points),
    Column("retention", "Slope kept,|%", percent),
    Column("gain", "First to last|budget, points", points),
    Column("falls", "Falls"),
    Column("auc_tokens", "Area over|tokens, %", percent),
    Column("scaling", "Per 1000 thinking|tokens, points", points),
    Column("performance", "Best,|%", percent),
    Column("control", "Within|budget, %", percent),
    Column("per_correct", "Tokens per|correct", count),
    Column("looping", "Looping,|%", percent),
)
SCALING_NOTE = (
    "Area: area under accuracy over log<sub>2</sub> budget, divided by its width. Slope kept: the slope as a share of "
    "the base's, if that is clearly above 0, with Fieller's interval. Falls: number of steps to a larger budget at "
    "which accuracy drops by more than two standard errors. Area over tokens, points per 1000 thinking tokens (s1's "
    "Scaling) and best include budget 0; no number includes budget off. Within budget: share of draws with at most "
    f"budget + {LEAK_RULE} thinking and answer tokens. Looping: share of draws whose end repeats itself. Intervals are "
    "95 % intervals over problems."
)


def scaling_table(data: ReportData, task: str) -> Table:
    """Measures of how accuracy scales with the budget, one row per run, without columns that are empty for all runs."""
    measures: list[tuple[RunStyle, dict[str, object]]] = []
    for one in data.with_cells(task):
        curve, cells = one.summary.tasks[task], one.cells(task)
        part, last = one.part(task), cells[max(cells)]
        slope = part and part.slope
        values: dict[str, object] = {
            key: _ends(getattr(curve, key)) for key in ("auc", "slope", "gain", "auc_tokens", "scaling")
        }
        values |= {
            "performance": curve.performance and curve.performance.value,
            "falls": curve.monotonicity and curve.monotonicity.falls,
            "retention": None
            if slope is None or slope.retention is None
            else Interval(slope.retention, slope.retention_low, slope.retention_high),
            "control": curve.control_total,
            "per_correct": last.tokens_per_correct,
            "looping": last.looping,
        }
        measures.append((one.style, values))
    columns = [column for column in SCALING if any(values[column.key] is not None for _, values in measures)]
    rows = [(style, [values[column.key] for column in columns]) for style, values in measures]
    return Table(f"scaling-{task}", f"Scaling on {task}", "data scaling sortable", [RUN, *columns], rows)


def _ends(value: Value | AreaOverTokens | None) -> Interval | None:
    """A value with its interval, which is computed from the standard error if it is missing; None without a value."""
    if value is None or value.value is None:
        return None
    if isinstance(value, Estimate):
        return Interval(value.value, value.low, value.high)
    reach = math.nan if value.se is None else 1.96 * value.se
    return Interval(value.value, value.value - reach, value.value + reach)
