"""Published accuracies beside the measured ones."""

from prunus.reporting.published import notes, sources, standard_error
from prunus.reporting.render.table import RUN, Column, Table
from prunus.reporting.render.text import count, esc, percent, points, signed
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, details, part


def section(data: ReportData) -> Section:
    """A table of differences with z-scores, the sources, and notes on them; one sentence if no figure matches.

    Empty unless published figures were requested.
    """
    if data.matches is None:
        return Section("published")
    title = "Published figures beside ours"
    if not data.matches:
        text = "No published figure matches these runs; docs/reports.md says which there are."
        return Section("published", part("published", title, text, ""), name="Published")
    used = dict.fromkeys(match.published.source for match in data.matches)
    far = sum(abs(match.z) > 2 for match in data.matches)
    says = (
        f"{far} of {len(data.matches)} are further apart than two standard errors "
        f"({signed(0.05 * len(data.matches)).lstrip('+')} expected by chance)."
    )
    note = (
        "z: our accuracy minus theirs, divided by its standard error. Our error is over problems, which both "
        "sides share, so |z| is rather too small. Mark A: from a printed table; B: read from a figure."
    )
    facts = "".join(
        f"<dt>{esc(source.name)}</dt><dd>{esc(source.paper)}; {esc(source.draws)}, answers of up to "
        f"{count(source.answer_tokens)} tokens; {esc(source.read)}; code {esc(source.code)}</dd>"
        for source in (sources()[name] for name in used)
    )
    odd = "".join(f"<li>{esc(text)}</li>" for text in notes(data.matches))
    table = published_table(data)
    described = details("Sources, and notes on them", f'<dl>{facts}</dl><ul class="notes">{odd}</ul>')
    html = part("published", title, says, table.html() + described, note)
    return Section("published", html, tables=[table], name="Published")


def published_table(data: ReportData) -> Table:
    """Published accuracies beside the measured ones, with their difference in standard errors (z)."""
    named, rows = sources(), []
    for match in data.matches or ():
        published = match.published
        values = [match.task, published.budget, match.mode, match.measured.accuracy, match.measured.se]
        values += [published.accuracy, published.sd, standard_error(published), match.difference, match.z]
        rows.append((match.style, [*values, published.mark, f"{named[published.source].name}, {published.where}"]))
    columns = [
        RUN, Column("task", "Task"), Column("budget", "Budget"), Column("mode", "Our mode"),
        Column("accuracy", "Ours, %", percent), Column("se", "error", percent),
        Column("published", "Theirs, %", percent), Column("published_sd", "SD", percent),
        Column("published_se", "error", percent), Column("difference", "Difference,|points", points),
        Column("z", "z", signed), Column("mark", "Mark"), Column("where", "From"),
    ]  # fmt: skip
    return Table("published", "Published figures beside ours", "data published sortable", columns, rows)
