"""Whether the runs still stop: how their chains end, beside the base's, and the verdict on it."""

import math
from functools import partial
from typing import Any

from prunus.reporting.render.chart import Frame, Line, Picture, Point, budget_axis, chart, linear_axis
from prunus.reporting.render.figure import Figure
from prunus.reporting.render.table import RUN, Column, Table, Word, difference
from prunus.reporting.render.text import esc, joined, percent, points, probability, times
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, adapted, details, part, run_key
from prunus.results.contrasts import ENDINGS, ENDS, STOPS
from prunus.results.verdicts import WITHIN, WORSE, verdict
from prunus.results.words import beside

TITLE = "Chains that end by themselves"


def section(data: ReportData) -> Section:
    """The verdicts on stopping with the shares of each ending, and for each task a curve and a table of all numbers."""
    if not any(entry.stopping.endings for entry in data.comparison.others):
        return Section("stopping")
    verdicts, every = stopping_table(data), {task: ending_table(data, task) for task in data.tasks}
    curves = [task for task in data.tasks if any(budget > 0 for one in data.runs for budget in one.cells(task))]
    margin = data.comparison.stop_margin.words(STOPS)
    note = (
        "At the largest budget, on the same problems as the base; of several tasks, the mean. Verdict: whether the "
        f"chains end by themselves as often as the base's; non-inferior: {margin} fewer or worse is ruled out, "
        "with 95 % confidence for any number of problems. A chain loops if its end is at least four copies of one "
        "string, or if half of its end is repetition. Lost again: right under a smaller budget, and wrong now. "
        "Budget used: mean thinking tokens in % of the budget. Over all variants together, each ending is wrongly "
        "called better or worse on at most 2.5 % of such pages each, and wrongly non-inferior on 5 % (Holm)."
    )
    keys = [run_key(one.style) for one in data.runs]
    figures = [Figure(f"ends-{task}", ends_by_itself(data, task), keys) for task in curves]
    charts = "".join(
        adapted(partial(ends_by_itself, data, task), data.title(TITLE, task), css=data.css(task)) for task in curves
    )
    numbers = details("Verdicts and endings in numbers", verdicts.html())
    numbers += "".join(details(data.title("Every ending", task), table.html()) for task, table in every.items())
    shown = f'<div class="pair">{charts}</div>' if len(curves) > 1 else charts
    html = part("stopping", "Does it still stop?", esc(_ends(data)), shown + numbers, note)
    return Section("stopping", html, figures, [verdicts, *every.values()], name="Stopping")


def _ends(data: ReportData) -> str:
    """A sentence on the chains that end by themselves at the largest budget."""
    compared = zip(data.comparison.others, data.others, strict=True)
    cells = [(entry, cell, one.style.label) for entry, one in compared if (cell := entry.stopping.endings.get(ENDS))]
    share = percent(cells[0][1].base_share)
    base = f"At the largest budget {share} % of {data.base.style.label}'s chains end by themselves"
    fewer = [name for entry, _, name in cells if entry.stops in (WORSE, WITHIN)]
    return f"{base}. It is shown that fewer do of {joined(fewer) if fewer else 'no variant'}."


def stopping_table(data: ReportData) -> Table:
    """The verdict on ending by itself and the share of every ending at the largest budget, one row per run."""
    rows = []
    base_shares: list[float | None] = [None] * len(ENDINGS)
    for one, entry in zip(data.others, data.comparison.others, strict=True):
        stopping, cells = entry.stopping, entry.stopping.endings
        base_shares = [cells[name].base_share if name in cells else None for name in ENDINGS]
        values: list[Any] = [None, None]
        if entry.stops:
            remark = "accuracy relies on cutting" * entry.relies_on_cutting
            values = [Word(entry.stops, remark), difference(cells[ENDS])]
        values += [cells[name].share if name in cells else None for name in ENDINGS]
        rows.append((one.style, [*values, stopping.tokens_ratio, stopping.per_correct_ratio]))
    rows.insert(0, (data.base.style, [None, None, *base_shares, None, None]))
    columns = [
        Column("run", "Model"), Column("stops", "Verdict"),
        Column("difference", "Ends by itself,|change, points", points),
        *(Column(name, f"{of.words.capitalize().replace(' ', '|', 1)}, %", percent) for name, of in ENDINGS.items()),
        Column("tokens_ratio", "Tokens,|× base's", times),
        Column("per_correct_ratio", "Per correct|draw, × base's", times),
    ]  # fmt: skip
    return Table("stopping", "Does it still stop?", "stopping sortable", columns, rows, keep=True)


def ending_table(data: ReportData, task: str) -> Table:
    """Every ending of a task at every budget where either run has it: shares, difference with interval, verdict."""
    rows = []
    for one in data.others:
        part = one.part(task)
        for budget, cells in part.stopping.items() if part else ():
            for name, cell in cells.items():
                if not (cell.share or cell.base_share):
                    continue
                values = [budget, ENDINGS[name].words, cell.share, cell.base_share, difference(cell)]
                rows.append((one.style, [*values, cell.bound, cell.p_adjusted, Word(verdict(cell))]))
    columns = [
        RUN, Column("budget", "Budget"), Column("ending", "Ending"), Column("share", "Share,|%", percent),
        Column("base_share", "Base,|%", percent), Column("difference", "Difference,|points", points),
        Column("bound", "Not ruled|out, points", beside(data.comparison.stop_margin)),
        Column("p_adjusted", "p|adjusted", probability),
        Column("verdict", "Verdict"),
    ]  # fmt: skip
    return Table(f"endings-{task}", f"Endings on {task}, compared with the base", "data sortable", columns, rows)


def ends_by_itself(data: ReportData, task: str, frame: Frame | None = None) -> Picture:
    """The share of draws that end by themselves over the budget, one line per run."""
    lines = []
    for one in data.drawn:
        spots = []
        for budget, cell in one.cells(task).items():
            if budget > 0:
                share = math.nan if cell.forced is None else 1 - cell.forced
                note = f"Budget {budget}\n{one.style.label}\n{percent(share)} % end by themselves"
                spots.append(Point(float(budget), 100 * share, note=note))
        lines.append(Line(one.style.css, spots, one.style.marker, one.style.label))
    budgets = sorted({int(point.x) for line in lines for point in line.points})
    axis = linear_axis(0, 100, "Percent of draws", wanted=4)
    label = f"Chains on {task} that end by themselves, against thinking budget"
    return chart(lines, budget_axis(budgets), axis, label, frame=frame)
