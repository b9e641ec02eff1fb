"""Whether the runs still stop: how their chains end, beside the base's, and the verdict on it."""

import math
from typing import Any

from prunus.reporting.prose import original
from prunus.reporting.render.chart import Line, Picture, Point, budget_axis, chart, linear_axis, stacked
from prunus.reporting.render.figure import Figure
from prunus.reporting.render.table import RUN, Column, Interval, Table, Word, difference
from prunus.reporting.render.text import count, esc, joined, percent, points, probability, times
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, details, part, run_key, soft, titled
from prunus.results.contrasts import ENDINGS, ENDS, STOPS
from prunus.results.verdicts import verdict
from prunus.results.words import MORE_CUT, beside, stops_less_often

SILENT = "unanswered"  # an ending


def section(data: ReportData) -> Section:
    """Bars of how answers end at the largest budget, if a difference is shown; else only figures and tables."""
    if not any(entry.stopping.endings for entry in data.comparison.others):
        return Section("stopping")
    verdicts, every = stopping_table(data), {task: ending_table(data, task) for task in data.tasks}
    curves = [task for task in data.tasks if any(budget > 0 for run in data.runs for budget in run.cells(task))]
    margin = data.comparison.stop_margin.words(STOPS)
    note = (
        "At the largest budget, on the same problems; of several tasks, the mean. The verdict is whether answers stop "
        f"by themselves as often as the original's, with a limit of {margin} fewer. An answer loops if its end is at "
        "least four copies of one string, or if half of its end is repetition. Lost again: right under a smaller "
        "budget, and wrong now. Budget used: mean thinking tokens in % of the budget."
    )
    keys = [run_key(run.style) for run in data.in_charts]
    figures = [Figure(f"ends-{task}", ends_by_itself(data, task), keys) for task in curves]
    tables = [verdicts, *every.values()]
    if not any(entry.stops and entry.stops.direction for entry in data.comparison.others):
        return Section("stopping", figures=figures, tables=tables)
    numbers = verdicts.html() + soft(note)
    numbers += "".join(titled(data.title("Every ending", task), table.html()) for task, table in every.items())
    html = part("stopping", "Does it run away?", esc(_ends(data)), _bars(data) + details("Every ending", numbers))
    return Section("stopping", html, figures, tables, name="Stopping")


def _bars(data: ReportData) -> str:
    """A bar for the base and each variant: the shares that stop by themselves, are cut, and have no answer."""
    rows = ""
    first = next(entry.stopping.endings for entry in data.comparison.others if ENDS in entry.stopping.endings)
    sides = [(data.base, {name: cell.base_share for name, cell in first.items()}, "")]
    for run, entry in zip(data.others, data.comparison.others, strict=True):
        shares = {name: cell.share for name, cell in entry.stopping.endings.items()}
        sides.append((run, shares, "fewer" if stops_less_often(entry) else ""))
    for run, shares, said in sides:
        if ENDS not in shares:
            continue
        itself, silent = shares[ENDS], min(shares.get(SILENT, 0.0), 1 - shares[ENDS])
        parts = [("itself", itself), ("cut", 1 - itself - silent), ("silent", silent)]
        label = f"{run.style.label}: {percent(itself)} % stop by themselves"
        rows += (
            f'<tr class="{run.style.css} keep"><th scope="row"><bdi>{esc(run.style.label)}</bdi></th>'
            f"<td>{stacked(parts, label).html()}</td><td>{percent(itself)}</td><td>{esc(said)}</td></tr>"
        )
    legend = (
        '<p class="soft"><span class="key itself"></span> stopped by itself, % <span class="key cut"></span> cut '
        '<span class="key silent"></span> no answer</p>'
    )
    return (
        f'{legend}<div class="wide" tabindex="0" role="region" aria-label="How answers end"><table class="ends">'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _ends(data: ReportData) -> str:
    """A sentence on the answers that stop by themselves at the largest budget."""
    compared = zip(data.comparison.others, data.others, strict=True)
    fewer = [run.style.label for entry, run in compared if stops_less_often(entry)]
    who = f"{joined(fewer)} {'are' if len(fewer) > 1 else 'is'}" if fewer else "no variant is"
    return f"At the largest budget, {who} shown to have fewer answers that stop by themselves than {original(data)}."


def stopping_table(data: ReportData) -> Table:
    """The verdict on ending by itself and the share of every ending at the largest budget, a row per run."""
    rows = []
    base_shares, own = list[float | None]([None] * len(ENDINGS)), None
    for run, entry in zip(data.others, data.comparison.others, strict=True):
        stopping, cells, own = entry.stopping, entry.stopping.endings, entry.stopping.base_per_correct
        base_shares = [cells[name].base_share if name in cells else None for name in ENDINGS]
        values: list[Any] = [None, None]
        if entry.stops:
            remark = MORE_CUT * entry.relies_on_cutting
            ends = cells[ENDS]
            values = [Word(entry.stops.shown, remark), Interval(ends.difference, ends.gain_low, ends.gain_high)]
        values += [cells[name].share if name in cells else None for name in ENDINGS]
        rows.append((run.style, [*values, stopping.tokens_ratio, stopping.per_correct]))
    rows.insert(0, (data.base.style, [None, None, *base_shares, None, own]))
    columns = [
        Column("run", "Variant"), Column("stops", "Verdict"),
        Column("difference", "Stops by itself,|change, points", points),
        *(Column(name, f"{of.words.capitalize().replace(' ', '|', 1)}, %", percent) for name, of in ENDINGS.items()),
        Column("tokens_ratio", "Tokens,|× original's", times),
        Column("per_correct", "Tokens per|solved problem", count),
    ]  # fmt: skip
    return Table("stopping", "How answers end", "stopping sortable", columns, rows, keep=True)


def ending_table(data: ReportData, task: str) -> Table:
    """Every ending of a task at every budget where either run has it: shares, difference with interval, verdict."""
    rows = []
    for run in data.others:
        part = run.part(task)
        for budget, cells in part.stopping.items() if part else ():
            for name, cell in cells.items():
                if not (cell.share or cell.base_share):
                    continue
                values = [budget, ENDINGS[name].words, cell.share, cell.base_share, difference(cell)]
                rows.append((run.style, [*values, cell.bound, cell.p_adjusted, Word(verdict(cell).shown)]))
    columns = [
        RUN, Column("budget", "Budget"), Column("ending", "Ending"), Column("share", "Share,|%", percent),
        Column("base_share", "Original,|%", percent), Column("difference", "Difference,|points", points),
        Column("bound", "Not ruled|out, points", beside(data.comparison.stop_margin)),
        Column("p_adjusted", "p|adjusted", probability),
        Column("verdict", "Verdict"),
    ]  # fmt: skip
    return Table(f"endings-{task}", f"Endings on {task}, compared with the original", "data sortable", columns, rows)


def ends_by_itself(data: ReportData, task: str) -> Picture:
    """The share of draws that end by themselves over the budget, a line per run."""
    lines = []
    for run in data.drawn:
        spots = []
        for budget, cell in run.cells(task).items():
            if budget > 0:
                share = math.nan if cell.forced is None else 1 - cell.forced
                note = f"Budget {budget}\n{run.style.label}\n{percent(share)} % stop by themselves"
                spots.append(Point(float(budget), 100 * share, note=note))
        lines.append(Line(run.style.css, spots, run.style.marker, run.style.label))
    budgets = sorted({int(point.x) for line in lines for point in line.points})
    axis = linear_axis(0, 100, "Percent of answers", wanted=4)
    label = f"Answers on {task} that stop by themselves, by thinking tokens allowed"
    return chart(lines, budget_axis(budgets), axis, label)
