"""The page's section that sets published figures beside ours."""

from prunus.reporting import grids
from prunus.reporting.published import about, notes, nothing_matches
from prunus.reporting.render.text import count, esc, signed
from prunus.reporting.report_data import View
from prunus.reporting.sections.verdicts import soft


def published_section(view: View) -> str:
    """A table of differences with their z, where the figures come from and what is odd about them; or one line."""
    title = '<section id="published"><h2>Published figures beside ours</h2>'
    if not view.matches:
        return f"{title}<p><bdi>{esc(nothing_matches(view.runs, view.tasks))}</bdi></p></section>"
    known = about()["sources"]
    used = dict.fromkeys(match.theirs.source for match in view.matches)
    far = sum(abs(match.z) > 2 for match in view.matches)
    note = (
        f"z: our accuracy minus theirs over the root of both variances; {far} of {len(view.matches)} lie beyond ±2 "
        f"({signed(0.05 * len(view.matches)).lstrip('+')} would by chance). Our error is over problems, which both "
        "share, so |z| comes out rather too small. Mark A: a printed table; B: read from a figure."
    )
    facts = "".join(
        f"<dt>{esc(source['name'])}</dt><dd>{esc(source['paper'])}; {esc(source['draws'])}, answers of up to "
        f"{count(source['answer_tokens'])} tokens; {esc(source['read'])}; code {esc(source['code'])}</dd>"
        for source in (known[name] for name in used)
    )
    odd = "".join(f"<li>{esc(text)}</li>" for text in notes(view.matches))
    return (
        f"{title}{soft(note)}{grids.published(view).html()}<dl>{facts}</dl>"
        f'<h3>What to know about them</h3><ul class="notes">{odd}</ul></section>'
    )
