"""At which budget accuracy is lost: a table of variants and budgets; folded, every number, tokens and scaling."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.reporting.prose import original
from prunus.reporting.published import Match, sources
from prunus.reporting.render.chart import (
    Frame,
    Line,
    Picture,
    Point,
    accuracy_axis,
    budget_axis,
    chart,
    linear_axis,
    log_axis,
)
from prunus.reporting.render.figure import Figure, Key
from prunus.reporting.render.table import RUN, Column, Interval, RunStyle, Table, Word, sign
from prunus.reporting.render.text import count, esc, joined, percent, points, probability, sizes
from prunus.reporting.report_data import ReportData, ReportedRun, band_of
from prunus.reporting.section import Section, details, part_of, run_key, soft, titled
from prunus.results.cells import Cell
from prunus.results.summary import AreaOverTokens, BudgetCell
from prunus.results.verdicts import verdict
from prunus.results.vocabulary import WORDS
from prunus.settings.budgets import AS_RUN, OFF
from prunus.statistics.metrics import LEAK_RULE, Estimate, Value
from prunus.store.characters import MINUS

ALONE = "Low and high are ends of a 95 % interval of each number alone; the verdict rests on tests, and is corrected."
NAMED = 10  # most curves of which all have names; of more, only some do
HEAT = 15  # points of a change from which on a cell has the strongest colour


def section(data: ReportData) -> Section:
    """For each task a table of changes at every budget; folded, accuracy, tokens and scaling."""
    parts = [_of_task(data, task) for task in data.tasks]
    return Section(
        "budgets",
        "".join(part.html for part in parts),
        [figure for part in parts for figure in part.figures],
        [table for part in parts for table in part.tables],
        styles=STYLES,
        name="By budget" if any(part.name for part in parts) else "",
    )


def _of_task(data: ReportData, task: str) -> Section:
    compared = [run for run in data.others if run.contrasts(task).keys() - {AS_RUN}]
    by_budget, every, scaling = accuracy_table(data, task), number_table(data, task), scaling_table(data, task)
    tokens = token_table(data, task)
    keys, figures = [run_key(run.style) for run in data.in_charts], list[Figure]()
    if data.has_curve(task):
        published = _published_keys(data, task)
        picture = accuracy_against_budget(data, task, named=False)
        figures.append(Figure(f"accuracy-budget-{task}", picture, [*keys, *published]))
    if compared:
        figures.append(
            Figure(f"difference-{task}", differences(data, task, compared), [run_key(run.style) for run in compared])
        )
        for run in compared:
            figures.append(Figure(f"difference-{task}-{run.style.label}", differences(data, task, [run])))
    if any(cell.tokens.total.mean is not None for run in data.runs for cell in run.cells(task).values()):
        figures.append(Figure(f"accuracy-tokens-{task}", accuracy_against_tokens(data, task), keys))
    shown = changes(data, task) if compared else ""
    numbers = titled("Problems solved at every budget", by_budget.html() + soft(_by_budget_note(data, task)))
    numbers += titled("All numbers", every.html() + soft(ALONE) * bool(compared))
    numbers += titled("Tokens and endings", tokens.html() + soft(TOKENS_NOTE))
    numbers += titled("Scaling", scaling.html() + soft(SCALING_NOTE))
    if compared:
        shown += details("All numbers by budget", numbers)
        html = part_of(data, task, "budgets", "At which budget is it lost?", esc(_worse_at(data, task)), shown)
    else:
        folded = details(data.title("Problems solved, in numbers", task), numbers)
        html = f'<section class="{data.css(task)}">{folded}</section>'
    tables = [by_budget, every, tokens, scaling]
    return Section(task, html, figures, tables, name="By budget" if compared else "")


STYLES = "".join(f".b{step}{{--h:{step / 20 * 0.8:g}}}" for step in range(1, 21)) + "".join(
    f".g{step}{{--g:{step / 20 * 0.8:g}}}" for step in range(1, 21)
)


def changes(data: ReportData, task: str) -> str:
    """A table of the change at every budget: one colour scale, bold where a difference is shown."""
    budgets = sorted({budget for run in data.others for budget in run.contrasts(task)})
    heads = "".join(f'<th scope="col">{budget}</th>' for budget in budgets)
    base = dict[int, Cell]()
    for run in data.others:  # those with most problems, since other variants may not have them all yet
        for budget, cell in run.contrasts(task).items():
            if budget not in base or cell.all_problems > base[budget].all_problems:
                base[budget] = cell
    own = "".join(f"<td>{100 * base[budget].base_accuracy:.0f}</td>" for budget in budgets)
    who = original(data)
    body = f'<tr class="own"><th scope="row">{esc(who)} solves, %</th>{own}</tr>'
    for run in data.others:
        cells = "".join(_change(run.contrasts(task).get(budget)) for budget in budgets)
        body += f'<tr class="{run.style.css} keep"><th scope="row"><bdi>{esc(run.style.label)}</bdi></th>{cells}</tr>'
    label = f"Change at every budget on {task}"
    note = "Change in points; <b>bold</b>: shown, corrected for all cells."
    if 0 in budgets or OFF in budgets:
        apart = joined(["0"] * (0 in budgets) + ["off"] * (OFF in budgets))
        note += f" Budget {apart} is not averaged."
    named = f'aria-label="{esc(label)}"'
    first = '<th scope="col">thinking tokens allowed</th>'
    return (
        f'<div class="wide" tabindex="0" role="region" {named}><table class="heat" {named}>'
        f"<thead><tr>{first}{heads}</tr></thead><tbody>{body}</tbody></table></div>{soft(note)}"
    )


def _change(cell: Cell | None) -> str:
    if cell is None:
        return "<td></td>"
    step = min(20, round(20 * abs(100 * cell.difference) / HEAT / 2)) if abs(cell.difference) >= 0.005 else 0
    css = [f"{'b' if cell.difference < 0 else 'g'}{step}"] * (step > 0)
    css += ["shown"] * (verdict(cell).direction != 0)
    text = f"{100 * cell.difference:+.0f}".replace("-", MINUS)
    text = "0" if text in ("+0", f"{MINUS}0") else text
    return f'<td class="{" ".join(css)}" title="{esc(points(cell.difference))} points">{text}</td>'


def _worse_at(data: ReportData, task: str) -> str:
    """A sentence on the budgets at which variants are shown to be worse."""
    by_budget: dict[int, list[str]] = {}
    for run in data.others:
        for budget, cell in run.contrasts(task).items():
            by_budget.setdefault(budget, [])
            by_budget[budget] += [run.style.label] * (verdict(cell).direction < 0)
    shown = {budget: names for budget, names in sorted(by_budget.items()) if names}
    if not shown:
        return "At no single budget is a variant shown to be worse."
    (first, names), last = next(iter(shown.items())), max(by_budget)
    text = f"First shown to be worse: {joined(names)}, with {first} tokens"
    most = len(by_budget[last])
    if most > len(names):
        text += f"; with {last} tokens, {most} variants are"
    return f"{text}."


def accuracy_against_budget(data: ReportData, task: str, frame: Frame | None = None, *, named: bool = True) -> Picture:
    """Problems solved in percent over log2 of the budget; published figures are hollow. named: name the curves."""
    lines = _published_lines(data.published_on(task))
    names = _named(data, task) if named else set[int]()
    for run in data.drawn:
        cells = {budget: cell for budget, cell in run.cells(task).items() if budget > 0}
        text = original(data) if run is data.base else run.style.label
        name = text if run.style.index in names else ""
        lines.append(Line(run.style.css, _accuracies(run.style, cells), run.style.marker, name))
    budgets = sorted({int(point.x) for line in lines for point in line.points})
    label, arrow = f"Problems solved on {task} against thinking tokens allowed", data.arrow
    like = None if arrow is None else arrow.as_good
    to = None
    if named and like is not None and arrow is not None and like.estimate and len(data.tasks) == 1:
        last = arrow.cells(task).get(like.largest)
        to = last and (like.largest, like.estimate, 100 * last.accuracy)
    return chart(lines, budget_axis(budgets), accuracy_axis(lines), label, frame=frame, arrow=to)


def _named(data: ReportData, task: str) -> set[int]:
    """The indices of the runs whose curves have names: all, or of many the base, the chosen, and the outermost ones."""
    runs = [run for run in data.in_charts if run.cells(task)]
    if len(runs) <= NAMED:
        return {run.style.index for run in runs}
    found = {0} | ({data.others[data.chosen].style.index} if data.chosen is not None else set())
    for tone in dict.fromkeys(run.style.tone for run in runs):
        of_tone = [run for run in runs if run.style.tone == tone]
        ends = sorted(of_tone, key=lambda run: run.cells(task)[max(run.cells(task))].accuracy)
        found |= {ends[0].style.index, ends[-1].style.index}
    return found


def accuracy_against_tokens(data: ReportData, task: str, frame: Frame | None = None) -> Picture:
    """Accuracy in percent with 95 % bars over the mean number of tokens used for thinking and answer."""
    lines = []
    for run in data.drawn:
        used = {budget: cell.tokens.total.mean for budget, cell in run.cells(task).items() if budget != OFF}
        cells = {budget: cell for budget, cell in run.cells(task).items() if used.get(budget) is not None}
        moved = {
            budget: point._replace(x=used[budget], note=f"{point.note}, {count(used[budget])} tokens")
            for budget, point in zip(cells, _accuracies(run.style, cells), strict=True)
        }
        lines.append(Line(run.style.css, list(moved.values()), run.style.marker, run.style.label))
    axis = log_axis([point.x for line in lines for point in line.points], "Mean tokens per answer")
    label = f"Accuracy on {task} against tokens used"
    return chart(lines, axis, accuracy_axis(lines), label, frame=frame, whiskers=True)


def _published_lines(matches: Sequence[Match]) -> list[Line]:
    """One line for each run and source, in the run's colour."""
    groups: dict[tuple[RunStyle, str], list[Point]] = {}
    for match in matches:
        cell = match.published
        name = f"{match.style.label}, {sources()[cell.source].name}"
        note = f"Budget {cell.budget}\n{name}\n{percent(cell.accuracy)} %"
        point = Point(float(cell.budget), 100 * cell.accuracy, note=note)
        groups.setdefault((match.style, cell.source), []).append(point)
    names = list(sources())
    return [Line(f"{style.css} pub", spots, names.index(source)) for (style, source), spots in groups.items()]


def _published_keys(data: ReportData, task: str) -> list[Key]:
    named = sources()
    pairs = dict.fromkeys((match.style, match.published.source) for match in data.published_on(task))
    return [Key(f"{style.line} pub", [*named].index(s), f"{style.label}, {named[s].name}") for style, s in pairs]


def differences(data: ReportData, task: str, runs: Sequence[ReportedRun]) -> Picture:
    """Accuracy minus the base's in points, with 95 % bands over the budgets; the limit is shaded."""
    lines = [Line(run.style.css, _differences(task, run), run.style.marker) for run in runs]
    spots = [point for line in lines for point in line.points]
    x_axis = budget_axis(sorted({int(point.x) for point in spots}))
    ends = [value for point in spots for value in (point.y, point.low, point.high) if math.isfinite(value)]
    edge, zone = 100 * data.margin_points * 1.5, (-100 * data.margin_points, 0.0)
    low, high = max(-100.0, min([*ends, -edge, -1])), min(100.0, max([*ends, edge, 1]))
    y_axis = linear_axis(
        low, high, f"Accuracy minus that of {data.base.style.label}, points; bands decide nothing", 4, sign=True
    )
    return chart(lines, x_axis, y_axis, f"Differences on {task} by budget", zone=zone, zero_line=True)


def _differences(task: str, run: ReportedRun) -> list[Point]:
    curve = []
    for budget, cell in sorted(item for item in run.contrasts(task).items() if item[0] > 0):
        low, high = (max(-100.0, min(100.0, 100 * end)) for end in band_of(cell))
        interval = f"{points(cell.low)} to {points(cell.high)}"
        note = f"Budget {budget}\n{run.style.label}\n{points(cell.difference)} points ({interval})"
        curve.append(Point(float(budget), 100 * cell.difference, low, high, note))
    return curve


def _accuracies(style: RunStyle, cells: Mapping[int, BudgetCell]) -> list[Point]:
    """A point for each budget: accuracy with its interval."""
    curve = []
    for budget, cell in cells.items():
        interval = f"{percent(cell.low)} to {percent(cell.high)}"
        note = f"Budget {budget}\n{style.label}\n{percent(cell.accuracy)} % ({interval})"
        curve.append(Point(float(budget), 100 * cell.accuracy, note=note))
    return curve


def _by_budget_note(data: ReportData, task: str) -> str:
    text = sizes((cell for run in data.runs for cell in run.cells(task).values()), "×")
    signs = ", ".join(f"{sign(word.shown)} {word.shown}" for word in WORDS)
    return (
        f"{text}. Below each accuracy is its 95 % interval. The sign after it is the verdict at that budget, corrected "
        f"for all single budgets of all variants (Holm): {signs}."
    )


def accuracy_table(data: ReportData, task: str) -> Table:
    """Accuracy with its interval and the verdict at that budget, a row per run and one column per budget."""
    budgets = sorted({budget for run in data.runs for budget in run.cells(task)})
    rows = []
    for run in data.runs:
        words = {budget: verdict(contrast).shown for budget, contrast in run.contrasts(task).items()}
        cells = {
            budget: Interval(cell.accuracy, cell.low, cell.high, words.get(budget, ""))
            for budget, cell in run.cells(task).items()
        }
        rows.append((run.style, [cells.get(budget) for budget in budgets]))
    columns = [Column("run", "Accuracy, %"), *(Column(str(budget), str(budget), percent) for budget in budgets)]
    return Table(f"accuracy-{task}", f"Accuracy on {task} by budget", "matrix sortable", columns, rows)


def number_table(data: ReportData, task: str) -> Table:
    """Every accuracy and difference of a task."""
    rows, grouped = [], any(cell.problems is not None for run in data.runs for cell in run.cells(task).values())
    for run in data.runs:
        contrasts = run.contrasts(task)
        for budget, cell in run.cells(task).items():
            values: list[Any] = [budget, cell.accuracy, cell.low, cell.high]
            if contrast := contrasts.get(budget):
                values += [contrast.difference, contrast.low, contrast.high, Word(verdict(contrast).shown)]
                values += [contrast.p_margin_adjusted, contrast.p, contrast.p_adjusted, contrast.q, contrast.mde]
            else:
                values += [None] * 9
            counts = [cell.all_problems, *[cell.n] * grouped, cell.samples]
            rows.append((run.style, [*values, *counts]))
    columns = [
        RUN, Column("budget", "Budget"), Column("accuracy", "Accuracy, %", percent),
        Column("low", "low", percent), Column("high", "high", percent),
        Column("difference", "Difference, points", points),
        Column("difference_low", "low,|alone", points), Column("difference_high", "high,|alone", points),
        Column("verdict", "Verdict"), Column("p_margin", "p of a loss|of the limit", probability),
        Column("p", "p of a|difference", probability), Column("p_adjusted", "p adjusted, of|a difference", probability),
        Column("q", "q", probability), Column("mde", "MDE", percent),
        Column("problems", "Problems"), *[Column("groups", "Groups")] * grouped, Column("draws", "Answers|each"),
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
    "Scaling) and best include budget 0; no number includes budget off. Within budget: share of answers with at most "
    f"budget + {LEAK_RULE} thinking and answer tokens. Looping: share of answers whose end repeats itself. Intervals "
    "are 95 % intervals over problems."
)


def scaling_table(data: ReportData, task: str) -> Table:
    """Measures of how accuracy scales with the budget, a row per run, without columns that are empty for all runs."""
    measures = []
    for run in data.with_cells(task):
        curve, cells = run.summary.tasks[task], run.cells(task)
        part, last = run.part(task), cells[max(cells)]
        slope = part and part.slope
        kept = None
        if slope is not None and slope.retention is not None:
            kept = Interval(slope.retention, slope.retention_low, slope.retention_high)
        values = [_ends(curve.auc), _ends(curve.slope), kept, _ends(curve.gain)]
        values += [curve.monotonicity and curve.monotonicity.falls, _ends(curve.auc_tokens), _ends(curve.scaling)]
        values += [curve.performance and curve.performance.value, curve.control_total]
        measures.append((run.style, [*values, last.tokens_per_correct, last.looping]))
    shown = [place for place in range(len(SCALING)) if any(values[place] is not None for _, values in measures)]
    columns = [SCALING[place] for place in shown]
    rows = [(style, [values[place] for place in shown]) for style, values in measures]
    return Table(f"scaling-{task}", f"Scaling on {task}", "data scaling sortable", [RUN, *columns], rows)


def _ends(value: Value | AreaOverTokens | None) -> Interval | None:
    """A value with its interval, which is computed from the standard error if it is missing; None without a value."""
    if value is None or value.value is None:
        return None
    if isinstance(value, Estimate):
        return Interval(value.value, value.low, value.high)
    reach = math.nan if value.se is None else 1.96 * value.se
    return Interval(value.value, value.value - reach, value.value + reach)


TOKENS_NOTE = "Mean tokens of an answer with its thinking, without the markers and closings that the protocol inserts."
# Columns of runs whose budget the engine or the model kept.
ADHERENCE = [("used_per_budget", "Thinking over|budget, median %"), ("over", "Over the|budget, %")]


def token_table(data: ReportData, task: str) -> Table:
    """The tokens used and the shares of endings, a row for each run and budget; of native runs also the adherence."""
    rows = []
    native = any(run.run.plan.is_native for run in data.runs)
    for run in data.runs:
        for budget, cell in run.cells(task).items():
            used = cell.tokens
            values = [budget, used.thinking.mean, used.answer.mean, used.total.mean]
            values += [used.total.p95, cell.tokens_per_correct]
            values.append(None if cell.forced is None else 1 - cell.forced)
            values += [cell.forced, cell.no_answer, cell.truncated, cell.leaked]
            kept = cell.adherence
            rows.append((run.style, [*values, kept and kept.used, kept and kept.over] if native else values))
    shares = [
        ("natural", "Stopped by|itself, %"), ("forced", "Thinking|cut, %"), ("no_answer", "No answer,|%"),
        ("truncated", "Answer|cut, %"), ("leaked", "Ran on into|the answer, %"),
    ]  # fmt: skip
    columns = [
        RUN, Column("budget", "Budget"), Column("thinking", "Thinking", count),
        Column("answer", "Answer", count), Column("total", "Total", count),
        Column("total_p95", "Total, 95th|percentile", count), Column("per_correct", "Per correct|answer", count),
        *(Column(key, title, percent) for key, title in [*shares, *(ADHERENCE if native else [])]),
    ]  # fmt: skip
    return Table(f"tokens-{task}", f"Tokens and endings on {task}", "data tokens sortable", columns, rows)
