"""Several draws instead of one long chain: pass@k, majority, best of k, and both ways at equal tokens."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.reporting.labels import Look
from prunus.reporting.render.chart import PANEL, Axis, Line, Point, chart, linear_axis, log_axis
from prunus.reporting.render.table import Column, Grid, Interval, named
from prunus.reporting.render.text import count, esc, percent, points, probability
from prunus.reporting.report_data import Data, View, cells_of
from prunus.reporting.sections.verdicts import soft

# Key of a cell, what it is called, what it means.
WAYS = {
    "pass_at": ("Any of k correct", "pass@k: needs somebody who knows; an upper bound"),
    "maj_at": ("Majority of k", "maj@k; ties are shared, draws without an answer do not vote"),
    "logprob": ("Best of k by log-probability", "mean over the chain's tokens"),
    "self_certainty": ("Best of k by self-certainty", "mean over the chain's tokens"),
    "shortest": ("Shortest of k", "fewest tokens"),
}
METHODS = {"majority": "majority", "any": "any (upper bound)"}


def has_draws(view: View, task: str) -> bool:
    """Whether any run has several draws of a problem."""
    return any(cell["samples"] > 1 for summary in view.summaries for cell in cells_of(summary, task).values())


def by_draws(cell: Data, way: str) -> dict[int, float]:
    """Accuracy by k, without unknown numbers; empty where the rows lack the score."""
    values = cell.get(way) if way in ("pass_at", "maj_at") else (cell.get("best_of") or {}).get(way)
    return {int(k): value for k, value in (values or {}).items() if value is not None}


def ways_chart(view: View, task: str, way: str) -> str:
    """One line a run: accuracy over k at its largest budget; empty text where no run has the score."""
    lines = []
    for look, summary in [*zip(view.looks[1:], view.summaries[1:], strict=True), (view.looks[0], view.summaries[0])]:
        cells = cells_of(summary, task)
        values = by_draws(cells[max(cells)], way) if cells else {}
        spots = [
            Point(float(k), 100 * value, math.nan, math.nan,
                  f"{k} draw{'s' * (k > 1)}\n{look.label}\n{percent(value)} %")
            for k, value in sorted(values.items())
        ]  # fmt: skip
        if len(spots) > 1:
            lines.append(Line(look.css, spots, look.marker))
    if not lines:
        return ""
    sizes = sorted({point.x for line in lines for point in line.points})
    low, high = math.log2(sizes[0]), math.log2(sizes[-1])
    axis = Axis("Draws k", tuple((k, f"{k:g}") for k in sizes), low, high, log=True)
    highest = max(point.y for line in lines for point in line.points)
    return chart(lines, axis, linear_axis(0, min(100.0, max(highest, 1.0)), "Accuracy, %"), f"{WAYS[way][0]} on {task}")


def fan(task: str, look: Look, summary: Data) -> str:
    """One panel over tokens used: single chains by budget, and from each the majority of k such chains."""
    cells = cells_of(summary, task)
    used = {budget: cell["tokens"]["total"]["mean"] for budget, cell in cells.items()}
    lines = []
    for budget, cell in cells.items():
        spots = [
            Point(k * used[budget], 100 * value, math.nan, math.nan,
                  f"{count(k * used[budget])} tokens\n{k} × {budget}\n{percent(value)} %")
            for k, value in sorted(by_draws(cell, "maj_at").items())
        ]  # fmt: skip
        lines.append(Line("branch", spots, 3))
    single = [
        Point(used[budget], 100 * cell["accuracy"], math.nan, math.nan,
              f"{count(used[budget])} tokens\n1 × {budget}\n{percent(cell['accuracy'])} %")
        for budget, cell in cells.items()
    ]  # fmt: skip
    lines.append(Line(look.line, single, look.marker))
    spots = [point for line in lines for point in line.points]
    axis = linear_axis(0, min(100.0, max([point.y for point in spots] + [1.0])), "Accuracy, %", wanted=4)
    label = f"{look.label}: one chain or several on {task}, over tokens used"
    return chart(lines, log_axis([point.x for point in spots], "Tokens used"), axis, label, frame=PANEL, css="panel")


def parallel_grid(view: View, task: str) -> Grid:
    """One long chain against k short ones, at equal budget and at equal tokens used."""
    rows = []
    for look, summary in zip(view.looks, view.summaries, strict=True):
        for row in summary["tasks"].get(task, {}).get("parallel") or ():
            values: list[Any] = [row["budget"], f"{row['chains']} × {row['chain_budget']}"]
            values += [METHODS.get(row["method"], row["method"]), row["sequential"], row["parallel"], *_contrast(row)]
            values += [row["tokens_sequential"], row["tokens_parallel"]]
            used = row["used"]
            values += [used["sequential"], *_contrast(used)] if used else [None] * 3
            rows.append((look, values))
    columns = [
        Column("run", "Run"), Column("budget", "Budget"), Column("chains", "Chains"), Column("method", "By"),
        Column("sequential", "One chain,|%", percent), Column("parallel", "k chains,|%", percent),
        Column("difference", "Difference,|points", points), Column("q", "q", probability),
        Column("tokens_sequential", "Tokens,|one chain", count), Column("tokens_parallel", "Tokens,|k chains", count),
        Column("used_sequential", "One chain at the|tokens of k, %", percent),
        Column("used_difference", "Difference,|points", points), Column("used_q", "q", probability),
    ]  # fmt: skip
    return Grid(f"parallel-{task}", f"One chain or several on {task}", "data parallel sortable", columns, rows)


def _contrast(cell: Mapping[str, Any]) -> tuple[Interval, float]:
    return Interval(cell["difference"], cell["low"], cell["high"]), cell["q"]


def draw_grid(view: View, task: str) -> Grid:
    """pass@k, maj@k and best of k at every budget."""
    cells = [cell for summary in view.summaries for cell in cells_of(summary, task).values()]
    sizes = sorted({k for cell in cells for k in by_draws(cell, "pass_at")})
    rows = []
    for look, summary in zip(view.looks, view.summaries, strict=True):
        for budget, cell in cells_of(summary, task).items():
            for way, (name, _) in WAYS.items():
                if values := by_draws(cell, way):
                    rows.append((look, [budget, name, *(values.get(k) for k in sizes)]))
    columns = [Column("run", "Run"), Column("budget", "Budget"), Column("way", "Way")]
    columns += [Column(f"k{k}", f"k = {k}", percent) for k in sizes]
    return Grid(f"draws-{task}", f"Several draws on {task}", "data draws sortable", columns, rows)


def parallel_section(view: View, task: str) -> str:
    """Curves over k, fans over tokens, and the tables; nothing where every problem has one draw."""
    if not has_draws(view, task):
        return ""
    title = "Several draws" if len(view.tasks) == 1 else f"Several draws on <bdi>{esc(task)}</bdi>"
    curves = "".join(
        f"<figure><figcaption>{name}<small>{meaning}</small></figcaption>{picture}</figure>"
        for way, (name, meaning) in WAYS.items()
        if (picture := ways_chart(view, task, way))
    )
    fans = _figures(
        (look, fan(task, look, summary))
        for look, summary in zip(view.looks, view.summaries, strict=True)
        if cells_of(summary, task)
    )
    grid = parallel_grid(view, task)
    table = f"<details><summary>At equal tokens, in numbers</summary>{grid.html()}</details>" if grid.rows else ""
    note = "At each run's largest budget: the mean over all ways to choose k of the draws."
    equal = (
        "Tokens really used: the thick line is one chain, budget by budget; from each of its points a thin line goes "
        "on to the majority of 2, 4, … such chains. Where a thin line runs above the thick one, several short chains "
        "beat one long chain for the same tokens."
    )
    return (
        f'<section><h2>{title}</h2>{soft(note)}<div class="panels three">{curves}</div>'
        f'<h3>One long chain or several short ones</h3>{soft(equal)}<div class="panels">{fans}</div>{table}'
        f"<details><summary>Several draws in numbers</summary>{draw_grid(view, task).html()}</details></section>"
    )


def _figures(pictures: Any) -> str:
    return "".join(
        f'<figure class="{look.css}"><figcaption>{named(look)}</figcaption>{picture}</figure>'
        for look, picture in pictures
    )


def all_of(view: View, task: str) -> Sequence[Grid]:
    """The tables, where there are several draws."""
    return [draw_grid(view, task), parallel_grid(view, task)] if has_draws(view, task) else []
