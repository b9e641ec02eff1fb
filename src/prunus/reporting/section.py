"""A section of a report, and pieces of HTML that several sections share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prunus.reporting.render.chart import BOTH, Frame, Picture
from prunus.reporting.render.figure import Figure, Key
from prunus.reporting.render.table import RunStyle, Table, named
from prunus.reporting.render.text import esc
from prunus.reporting.report_data import ReportData


@dataclass(frozen=True)
class Section:
    """One section of a report. If it has nothing to show, all fields but the id are empty.

    html: its part of the page, with foreign text escaped. figures, tables: written by `--figures` and `--csv`, even if
    the page does not show them; tables without rows are not written. styles: additional CSS. name: of the link to the
    element `id` at the top of the page.
    """

    id: str
    html: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    styles: str = ""
    name: str = ""


def hint(terms: str) -> str:
    """An explanation of terms, which is HTML, behind a question mark; nothing if there are none."""
    mark = '<summary aria-label="What the terms mean">?</summary>'
    return terms and f'<details class="hint">{mark}<p>{terms}</p></details>'


def part(id: str, title: str, says: str, html: str, terms: str = "", css: str = "") -> str:
    """A part of the page below its title, which links to itself. All arguments are HTML.

    says: a sentence on what the data show. terms: their explanation, shown by a question mark. A figure at the
    beginning of html stands beside the sentence if there is room.
    """
    says = f'<p class="says">{says}</p>' if says else ""
    css = f"{css} side" if says and html.startswith("<figure") else css
    return (
        f'<section id="{id}" class="{css}"><div class="head"><h2><a href="#{id}">{title}</a></h2>'
        f"{hint(terms)}</div>{says}{html}</section>"
    )


def part_of(data: ReportData, task: str, name: str, title: str, says: str, html: str, terms: str = "") -> str:
    """A part about one task; arguments as of part. The id of those after the first ends with the task's number."""
    number = data.tasks.index(task) + 1
    id = name if number == 1 else f"{name}-{number}"
    return part(id, data.title(title, task), says, html, terms, data.css(task))


def soft(text: str) -> str:
    """A paragraph in the colour of secondary text. text: HTML."""
    return f'<p class="soft">{text}</p>'


def note_list(lines: Iterable[str]) -> str:
    """A list of lines of plain text."""
    return f'<ul class="notes">{"".join(f"<li><bdi>{esc(line)}</bdi></li>" for line in lines)}</ul>'


def details(summary: str, html: str) -> str:
    """HTML that is shown after a click on the summary, which is HTML too."""
    return f"<details><summary>{summary}</summary>{html}</details>"


def titled(title: str, html: str) -> str:
    """HTML below a small title, which is HTML too."""
    return f"<h3>{title}</h3>{html}"


def figure(drawn: Picture | str, caption: str, small: str = "", css: str = "") -> str:
    """A picture below its caption. drawn: the picture or its HTML. caption, small: two lines, as HTML. css: classes."""
    small, html = f"<small>{small}</small>" if small else "", drawn if isinstance(drawn, str) else drawn.html()
    css = f' class="{css}"' if css else ""
    return f"<figure{css}><figcaption>{caption}{small}</figcaption>{html}</figure>"


def adapted(draw: Callable[[Frame], Picture], caption: str, small: str = "", css: str = "") -> str:
    """A picture that is drawn for wide and for narrow screens; arguments as of figure."""
    return figure("".join(draw(frame).html() for frame in BOTH), caption, small, css)


def run_figure(style: RunStyle, picture: Picture, small: str = "") -> str:
    """A picture about one run, which the legend hides together with the run."""
    return figure(picture, named(style), small, style.css)


def run_key(style: RunStyle) -> Key:
    """The entry of a run in the legend of a figure."""
    return Key(style.line, style.marker, style.label)
