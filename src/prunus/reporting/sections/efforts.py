"""How much thinking is enough, and what a variant must think to be as right as the base."""

from collections.abc import Mapping, Set

from prunus.reporting.efforts import HEADINGS, cells_of, exchange_lines
from prunus.reporting.prose import original
from prunus.reporting.render.chart import PANEL, Line, Picture, Point, accuracy_axis, budget_axis, chart
from prunus.reporting.render.figure import Figure
from prunus.reporting.render.table import RUN, Column, RunStyle, Table
from prunus.reporting.render.text import esc, percent
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, details, part, run_figure, run_key, soft
from prunus.results.efforts import RunEfforts

TERMS = (
    "Accuracy by budget. The level line is at the accuracy of the base at its smallest level. It marks where the"
    " variant is as right: from a budget at which it is shown to be worse, or its smallest, to a larger, at which it is"
    " shown to be better, or its largest."
)
APART = 1.4  # least ratio of adjacent budgets with a tick
KEYS = ("level", "budget", "shown", "accuracy", "cut", "unanswered", "tokens", "saved")


def section(data: ReportData) -> Section:
    """The levels of the base and what variants must think, as sentences; folded, the levels of every run."""
    if data.efforts is None:
        return Section("efforts")
    styles = {run.run.run_id: run.style for run in data.runs}
    columns = [RUN, *(Column(key, heading.capitalize(), str) for key, heading in zip(KEYS, HEADINGS, strict=True))]
    rows = []
    for run in data.efforts.runs:
        for level in run.levels:
            cells = cells_of(level)
            rows.append((styles[run.run], [*cells, *[""] * (len(KEYS) - len(cells))]))
    table = Table("efforts", "The smallest thinking budget that loses less than a margin", "data", columns, rows)
    base = original(data)
    lines = [line for run in data.efforts.runs for line in exchange_lines(styles[run.run].label, run, base)]
    sentences = "".join(f"<li>{esc(line)}</li>" for line in lines)
    pictures = [(run, exchanged(data.efforts.runs[0], run, styles)) for run in data.efforts.runs if run.exchange]
    html = f'<div class="panels">{"".join(run_figure(styles[run.run], drawn) for run, drawn in pictures)}</div>'
    html = html * bool(pictures) + soft(TERMS) * bool(pictures) + f"<ul>{sentences}</ul>" * bool(lines)
    folded = table.html() + soft(data.efforts.method) + html
    keys = {run.run: [run_key(data.base.style), run_key(styles[run.run])] for run, _ in pictures}
    figures = [Figure(f"efforts-{styles[run.run].label}", drawn, keys[run.run]) for run, drawn in pictures]
    title, lead = "How much thinking is enough", _lead(data)
    if lead:
        html = part("efforts", title, esc(lead), details("Levels of every run", folded))
    else:
        none = soft(f"No budget of {esc(original(data))} that saves tokens is shown to be enough.")
        html = f'<section id="efforts">{details(title, none + folded)}</section>'
    return Section("efforts", html, figures, [table], name="Efforts" if lead else "")


def exchanged(base: RunEfforts, run: RunEfforts, styles: Mapping[str, RunStyle]) -> Picture:
    """Accuracy of a variant and of the base by budget; a level line marks where the variant is as right as the base."""
    lines = []
    for shown in (base, run):
        style = styles[shown.run]
        points = [
            Point(budget, 100 * share, note=f"{style.label}\n{budget:,} tokens\n{percent(share)} %")
            for budget, share in zip(shown.budgets, shown.solves, strict=True)
        ]
        lines.append(Line(style.css, points, style.marker))
    marked = []
    for bracket in run.exchange.as_right[:1] if run.exchange else ():
        if not bracket.never:
            height = 100 * base.solves[list(base.budgets).index(bracket.base_budget)]
            ends = (bracket.above or run.budgets[0], bracket.below or run.budgets[-1])
            marked.append(Line(styles[run.run].css, [Point(budget, height) for budget in ends], styles[run.run].marker))
    axis = budget_axis(ticks({*base.budgets, *run.budgets}))
    label = f"Accuracy by thinking budget of {styles[base.run].label} and {styles[run.run].label}"
    return chart([*lines, *marked], axis, accuracy_axis(lines), label, frame=PANEL)


def ticks(budgets: Set[int]) -> list[int]:
    """The smallest budget, and from the largest down those that are half a doubling apart, so that labels have room."""
    smallest, kept = min(budgets), [max(budgets)]
    for budget in sorted(budgets, reverse=True):
        if kept[-1] >= APART * budget and budget >= APART * smallest:
            kept.append(budget)
    return sorted({smallest, *kept})


def _lead(data: ReportData) -> str:
    """A sentence on the levels of the base below its largest budget; empty without any."""
    assert data.efforts is not None
    first = data.efforts.runs[0]
    smaller = [level for level in first.levels if level.margin is not None and (level.saved or 0) > 0]
    if not smaller:
        return ""
    of = [f"{level.margin.words()} from {level.budget:,} on" for level in smaller if level.margin and level.budget]
    return f"Against its largest budget, {original(data)} loses less than {', '.join(of)}."
