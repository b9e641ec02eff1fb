"""What is seen at a glance: accuracy against the budget, and a row for each variant with its size and its verdicts."""

from collections.abc import Sequence
from functools import partial

from prunus.reporting.render.chart import Picture, forest, swatch
from prunus.reporting.render.table import slug, word
from prunus.reporting.render.text import NBSP, esc, percent, points, short
from prunus.reporting.report_data import FIT, ReportData, ReportedRun
from prunus.reporting.section import Section, adapted, hint
from prunus.reporting.sections.curves import MANY, accuracy_against_budget, bands_text
from prunus.reporting.sections.sizes import counted
from prunus.reporting.sections.verdicts import remark
from prunus.results.cells import Entry
from prunus.results.contrasts import ENDS, STOPS
from prunus.results.verdicts import BETTER, ENOUGH, OPEN, SAME, UNFINISHED, WITHIN, WORSE
from prunus.settings.budgets import OFF

ORDER = (BETTER, SAME, WITHIN, OPEN, UNFINISHED, WORSE)
Cell = tuple[str, float]  # HTML, and the number by which it is sorted
NOTHING = ("", -1.0)


def section(data: ReportData) -> Section:
    """The chart of each task, of which one is shown at a time, and the table; without variants only the charts."""
    figures = "".join(_figure(data, task) for task in data.tasks if data.has_curve(task))
    table = _table(data) if data.others else ""
    html = f'<section id="glance" class="glance" aria-label="At a glance">{figures}{table}</section>'
    return Section("glance", html, name="At a glance")


def _figure(data: ReportData, task: str) -> str:
    cells = [cell for one in data.runs for cell in one.cells(task).items()]
    budgets = {budget for budget, _ in cells}
    terms = [
        "0 is left of the break." * (0 in budgets),
        "Off: thinking switched off." * (OFF in budgets),
        '<span class="screen">Point at a row to see its band.</span>' * (len(data.runs) > MANY),
        "Published figures are hollow and dotted." * bool(data.published_on(task)),
    ]
    title = data.title("Accuracy against the thinking budget", task) + hint(" ".join(filter(None, terms)))
    bands = f"95 % bands, {bands_text(cell for _, cell in cells)}"
    return adapted(partial(accuracy_against_budget, data, task), title, bands, data.css(task))


def _table(data: ReportData) -> str:
    """The base, the variant to choose, and the others by verdict; of one, by size if little is lost, else by loss."""
    entries = data.comparison.others
    ends = [(cell.difference, cell.low, cell.high) for cell in (entry.primary for entry in entries)]
    size = "Size" if any(one.nbytes for one in data.runs) else "Parameters"
    titles = [size, "Verdict", "Difference, points", "Ends by itself", "Scaling kept"]
    heads = "".join(f'<th scope="col">{title}</th>' for title in ["Variant", *titles])
    rows = enumerate(zip(data.others, entries, forest(ends, data.margin_points), strict=True))

    def rank(row: tuple[int, tuple[ReportedRun, Entry, Picture]]) -> tuple[float, ...]:
        place, (one, entry, _) = row
        by = one.size if entry.verdict in FIT else (-entry.primary.difference,)
        return place != data.chosen, ORDER.index(entry.verdict), *by

    body = _row(data.base, [size, "", "Accuracy", "Stops", "Scaling"], _base_cells(data))
    for place, (one, entry, picture) in sorted(rows, key=rank):
        body += _row(one, titles, _cells(one, entry, picture), "chosen" if place == data.chosen else "")
    curve = ", over log<sub>2</sub> budget" if any(map(data.has_curve, data.tasks)) else ""
    margin, stopping = data.comparison.margin.words(), data.comparison.stop_margin.words(STOPS)
    terms = (
        f"{size.replace('Size', f'Size: {counted(data)}, and parameters')}, zeros included. Difference in "
        f"accuracy{curve}, with its 95{NBSP}% interval; shaded: a loss within the margin of {margin}. "
        f"Ends by itself: chains that end by themselves, with a margin of {stopping}. Scaling: "
        f"accuracy gained per doubling of the budget, kept if at least {100 * ENOUGH:g} % of the base's."
    )
    return (
        f'<div class="rows">{hint(terms)}<table class="glance cards sortable" aria-label="Variants">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _base_cells(data: ReportData) -> list[Cell]:
    """What the differences of the others are from."""
    entry = data.comparison.others[0]
    accuracy = f"{percent(entry.primary.base_accuracy)} %<small>its accuracy</small>"
    ends, slope = entry.stopping.endings.get(ENDS), entry.scaling
    stops = (f"{percent(ends.base_share)} %", ends.base_share) if ends else NOTHING
    gain = (f"{points(slope.base_accuracy)}<small>per doubling</small>", 1.0) if slope else NOTHING
    return [_size(data.base), ("base", -1), (accuracy, 0), stops, gain]


def _cells(one: ReportedRun, entry: Entry, picture: Picture) -> list[Cell]:
    cell, ends, slope = entry.primary, entry.stopping.endings.get(ENDS), entry.scaling
    interval = f"{points(cell.difference)} ({points(cell.low)} to {points(cell.high)})"
    stops = kept = NOTHING
    if entry.stops and ends:
        stops = _word_cell(entry.stops, f"{percent(ends.share)} % ({points(ends.difference)})", ends.share)
    if slope and slope.word:
        share = slope.retention
        kept = _word_cell(slope.word, "" if share is None else f"{percent(share)} %", -1 if share is None else share)
    verdict = _word_cell(*remark(entry), ORDER.index(entry.verdict))
    return [_size(one), verdict, (f"{picture.html()}<small>{interval}</small>", cell.difference), stops, kept]


def _word_cell(text: str, small: str, value: float) -> Cell:
    return f"{word(text)}<small>{esc(small)}</small>", value


def _size(one: ReportedRun) -> Cell:
    """The bytes and the parameters, as far as they are known."""
    parameters = short(one.parameters, ("k", "M", "B"))
    nbytes = "" if one.nbytes is None else short(one.nbytes, ("kB", "MB", "GB"))
    return f"{nbytes}<small>{parameters}</small>" if nbytes else parameters, one.size[0]


def _row(one: ReportedRun, titles: Sequence[str], cells: Sequence[Cell], css: str = "") -> str:
    style, name, parts = one.style, f"run-{slug(one.run.run_id)}", zip(titles, cells, strict=True)
    shown = "".join(f'<td data-title="{title}" data-v="{value:.9g}">{html}</td>' for title, (html, value) in parts)
    box = f'<input type="checkbox" id="t{style.index}" autocomplete="off" checked aria-label="Show {esc(style.label)}">'
    link = f'<a href="#{name}">{swatch(style.line, style.marker).html()} <bdi>{esc(style.label)}</bdi></a>'
    head = f'<th scope="row"><div><span class="box">{box if style.index else ""}</span>{link}</div></th>'
    return f'<tr class="{style.css} keep {css}" id="{name}">{head}{shown}</tr>'
