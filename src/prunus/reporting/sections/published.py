"""Published accuracies beside the measured ones."""

from prunus.reporting.published import about, notes, nothing_matches, standard_error
from prunus.reporting.render.table import RUN, Column, Table
from prunus.reporting.render.text import count, esc, percent, points, signed
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, soft


def section(data: ReportData) -> Section:
    """A table of differences with z-scores, the sources, and notes on them; one sentence if no figure matches.

    Empty unless published figures were requested.
    """
    if data.matches is None:
        return Section("published")
    title = '<section id="published"><h2>Published figures beside ours</h2>'
    if not data.matches:
        text = nothing_matches([one.run for one in data.runs], data.tasks)
        return Section("published", f"{title}<p><bdi>{esc(text)}</bdi></p></section>")
    sources = about()["sources"]
    used = dict.fromkeys(match.theirs.source for match in data.matches)
    far = sum(abs(match.z) > 2 for match in data.matches)
    note = (
        f"z: our accuracy minus theirs, divided by its standard error; {far} of {len(data.matches)} are beyond ±2 "
        f"({signed(0.05 * len(data.matches)).lstrip('+')} expected by chance). Our error is over problems, which both "
        "sides share, so |z| is rather too small. Mark A: from a printed table; B: read from a figure."
    )
    facts = "".join(
        f"<dt>{esc(source['name'])}</dt><dd>{esc(source['paper'])}; {esc(source['draws'])}, answers of up to "
        f"{count(source['answer_tokens'])} tokens; {esc(source['read'])}; code {esc(source['code'])}</dd>"
        for source in (sources[name] for name in used)
    )
    odd = "".join(f"<li>{esc(text)}</li>" for text in notes(data.matches))
    table = published_table(data)
    html = (
        f"{title}{soft(note)}{table.html()}<dl>{facts}</dl>"
        f'<h3>Notes on the sources</h3><ul class="notes">{odd}</ul></section>'
    )
    return Section("published", html, tables=[table])


def published_table(data: ReportData) -> Table:
    """Published accuracies beside the measured ones, with their difference in standard errors (z)."""
    sources = about()["sources"]
    rows = []
    for match in data.matches or ():
        theirs = match.theirs
        values = [match.task, theirs.budget, match.mode, match.ours.accuracy, match.ours.se]
        values += [theirs.accuracy, theirs.sd, standard_error(theirs), match.difference, match.z]
        rows.append((match.look, [*values, theirs.mark, f"{sources[theirs.source]['name']}, {theirs.where}"]))
    columns = [
        RUN, Column("task", "Task"), Column("budget", "Budget"), Column("mode", "Our mode"),
        Column("accuracy", "Ours, %", percent), Column("se", "error", percent),
        Column("published", "Theirs, %", percent), Column("published_sd", "SD", percent),
        Column("published_se", "error", percent), Column("difference", "Difference,|points", points),
        Column("z", "z", signed), Column("mark", "Mark"), Column("where", "From"),
    ]  # fmt: skip
    return Table("published", "Published figures beside ours", "data published sortable", columns, rows)
