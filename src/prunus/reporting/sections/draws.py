"""Several draws per problem: pass@k, majority, best of k, and several short chains against one long chain."""

import math
from collections.abc import Mapping
from typing import Any

from prunus.reporting.render.chart import PANEL, Axis, Frame, Line, Picture, Point, accuracy_axis, chart
from prunus.reporting.render.figure import Figure
from prunus.reporting.render.table import RUN, Column, RunStyle, Table, difference
from prunus.reporting.render.text import count, esc, percent, points, probability
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, details, figure, part_of, run_key, soft, titled
from prunus.results.summary import BudgetCell

# Key in a cell: (title, explanation).
WAYS = {
    "pass_at": ("Any of k correct", "pass@k with oracle selection: an upper bound"),
    "maj_at": ("Majority of k", "maj@k; ties are shared, chains without an answer do not vote"),
    "logprob": ("Best of k by log-probability", "mean over the chain's tokens"),
    "self_certainty": ("Best of k by self-certainty", "mean over the chain's tokens"),
    "shortest": ("Shortest of k", "the chain with the fewest tokens"),
}
METHODS = {"majority": "majority", "any": "any (upper bound)"}
NOTE = "Accuracy at each run's largest budget, averaged over all ways to choose k of the answers."


def section(data: ReportData) -> Section:
    """For each task with several answers per problem: what their majority gains; folded, curves over k and tables."""
    html, figures, tables = "", [], []
    for task in data.tasks:
        if not any(cell.samples > 1 for run in data.runs for cell in run.cells(task).values()):
            continue
        ways = [way for way in WAYS if any(len(by_draws(last, way)) > 1 for last in last_cells(data, task).values())]
        draws, parallel = draw_table(data, task), parallel_table(data, task)
        keys = [run_key(run.style) for run in data.in_charts]
        figures += [Figure(f"draws-{way}-{task}", ways_chart(data, task, way), keys) for way in ways]
        tables += [draws, parallel]
        curves = "".join(figure(ways_chart(data, task, way, PANEL), *WAYS[way]) for way in ways)
        numbers = titled("One long chain or several short ones", parallel.html()) if parallel.rows else ""
        numbers += titled("Every number", draws.html())
        shown = details("Any, majority and shortest", f'{soft(NOTE)}<div class="panels">{curves}</div>{numbers}')
        html += part_of(data, task, "draws", "Several answers per problem", esc(_majority(data, task)), shown)
    return Section("draws", html, figures, tables, name="Answers")


def _majority(data: ReportData, task: str) -> str:
    """A sentence on what the majority of all answers gains over one, at each run's largest budget."""
    votes = [by_draws(cell, "maj_at") for cell in last_cells(data, task).values()]
    gains = sorted(of[max(of)] - of[min(of)] for of in votes if len(of) > 1)
    if not gains:
        return ""
    ends = " to ".join(dict.fromkeys(map(points, (gains[0], gains[-1]))))
    return f"Their majority, instead of one of them, changes accuracy by {ends} points."


def by_draws(cell: BudgetCell, way: str) -> Mapping[int, float]:
    """{k: accuracy} of a cell; empty if the rows have no such score."""
    return {"pass_at": cell.pass_at, "maj_at": cell.maj_at, **cell.best_of}[way] or {}


def last_cells(data: ReportData, task: str) -> dict[RunStyle, BudgetCell]:
    """The cell at the largest budget of each run, in the order in which charts draw them."""
    return {run.style: run.cells(task)[max(run.cells(task))] for run in data.drawn if run.cells(task)}


def ways_chart(data: ReportData, task: str, way: str, frame: Frame | None = None) -> Picture:
    """Accuracy over k at each run's largest budget, a line per run that has the score."""
    lines = []
    for style, cell in last_cells(data, task).items():
        spots = [
            Point(float(k), 100 * value, note=f"{k} answer{'s' * (k > 1)}\n{style.label}\n{percent(value)} %")
            for k, value in sorted(by_draws(cell, way).items())
        ]
        lines += [Line(style.css, spots, style.marker)] if len(spots) > 1 else []
    sizes = sorted({point.x for line in lines for point in line.points})
    low, high = math.log2(sizes[0]), math.log2(sizes[-1])
    axis = Axis("Answers k", tuple((k, f"{k:g}") for k in sizes), low, high, log=True)
    return chart(lines, axis, accuracy_axis(lines), f"{WAYS[way][0]} on {task}", frame=frame)


def parallel_table(data: ReportData, task: str) -> Table:
    """One long chain against k short ones, at equal budget and at equal tokens used."""
    rows = []
    for run in data.runs:
        for row in run.summary.tasks[task].parallel if task in run.summary.tasks else ():
            values: list[Any] = [row.budget, f"{row.chains} × {row.chain_budget}"]
            values += [METHODS.get(row.method, row.method), row.sequential, row.parallel, difference(row), row.q]
            values += [row.tokens_sequential, row.tokens_parallel]
            used = row.used
            values += [used.sequential, difference(used), used.q] if used else [None] * 3
            rows.append((run.style, values))
    columns = [
        RUN, Column("budget", "Budget"), Column("chains", "Chains"), Column("method", "By"),
        Column("sequential", "One chain,|%", percent), Column("parallel", "k chains,|%", percent),
        Column("difference", "Difference,|points", points), Column("q", "q", probability),
        Column("tokens_sequential", "Tokens,|one chain", count), Column("tokens_parallel", "Tokens,|k chains", count),
        Column("used_sequential", "One chain at the|tokens of k, %", percent),
        Column("used_difference", "Difference,|points", points), Column("used_q", "q", probability),
    ]  # fmt: skip
    return Table(f"parallel-{task}", f"One chain or several on {task}", "data parallel sortable", columns, rows)


def draw_table(data: ReportData, task: str) -> Table:
    """pass@k, maj@k and best of k at every budget."""
    cells = [cell for run in data.runs for cell in run.cells(task).values()]
    sizes = sorted({k for cell in cells for k in by_draws(cell, "pass_at")})
    rows = []
    for run in data.runs:
        for budget, cell in run.cells(task).items():
            for way, (name, _) in WAYS.items():
                if values := by_draws(cell, way):
                    rows.append((run.style, [budget, name, *(values.get(k) for k in sizes)]))
    columns = [RUN, Column("budget", "Budget"), Column("way", "Way")]
    columns += [Column(f"k{k}", f"k = {k}", percent) for k in sizes]
    return Table(f"draws-{task}", f"Several answers on {task}", "data draws sortable", columns, rows)
