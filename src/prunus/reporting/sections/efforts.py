"""How much thinking is enough, and what a variant must think to be as right as the base."""

from prunus.reporting.efforts import HEADINGS, cells_of, exchange_lines
from prunus.reporting.render.table import RUN, Column, Table
from prunus.reporting.render.text import esc
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, details, part, soft

KEYS = ("level", "budget", "shown", "accuracy", "cut", "unanswered", "tokens", "saved")


def section(data: ReportData) -> Section:
    """The levels of the base and what variants must think, as sentences; folded, the levels of every run."""
    if data.efforts is None:
        return Section("efforts")
    styles = {one.run.run_id: one.style for one in data.runs}
    columns = [RUN, *(Column(key, heading.capitalize(), str) for key, heading in zip(KEYS, HEADINGS, strict=True))]
    rows = []
    for run in data.efforts.runs:
        for level in run.levels:
            cells = cells_of(level)
            rows.append((styles[run.run], [*cells, *[""] * (len(KEYS) - len(cells))]))
    table = Table("efforts", "The smallest thinking budget that loses less than a margin", "data", columns, rows)
    base = data.base.style.label
    lines = [line for run in data.efforts.runs for line in exchange_lines(styles[run.run].label, run, base)]
    sentences = "".join(f"<li>{esc(line)}</li>" for line in lines)
    html = f"<ul>{sentences}</ul>" * bool(lines) + details(
        "Levels of every run", table.html() + soft(data.efforts.method)
    )
    title = "How much thinking is enough"
    return Section("efforts", part("efforts", title, esc(_lead(data)), html), tables=[table], name="Efforts")


def _lead(data: ReportData) -> str:
    """A sentence on the levels of the base."""
    assert data.efforts is not None
    first = data.efforts.runs[0]
    smaller = [level for level in first.levels if level.margin is not None and (level.saved or 0) > 0]
    if not smaller:
        return f"No budget of {data.base.style.label} below its largest is shown to be enough."
    of = [f"{level.margin.words()} from {level.budget:,} on" for level in smaller if level.margin and level.budget]
    return f"Against its largest budget, {data.base.style.label} loses less than {', '.join(of)}."
