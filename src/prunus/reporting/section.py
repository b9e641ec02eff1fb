"""A section of a report, and pieces of HTML that several sections share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunus.reporting.labels import Look
from prunus.reporting.render.chart import Picture
from prunus.reporting.render.figure import Figure, Key
from prunus.reporting.render.table import Table, named


@dataclass(frozen=True)
class Section:
    """One section of a report. If it has nothing to show, all fields but the id are empty.

    html: its part of the page, with foreign text escaped. figures, tables: written by `--figures` and `--csv`, even if
    the page does not show them; tables without rows are not written. files: (name, content) of files for the folder
    beside the page. styles: additional CSS.
    """

    id: str
    html: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    files: Iterable[tuple[str, str]] = ()
    styles: str = ""


def soft(text: str) -> str:
    """A paragraph in the colour of secondary text. text: HTML."""
    return f'<p class="soft">{text}</p>'


def details(summary: str, html: str) -> str:
    """HTML that is shown after a click on the summary, which is HTML too."""
    return f"<details><summary>{summary}</summary>{html}</details>"


def figure(picture: Picture, caption: str, small: str = "", css: str = "") -> str:
    """A picture below its caption. caption, small: first and second line, as HTML. css: classes of the figure."""
    small = f"<small>{small}</small>" if small else ""
    css = f' class="{css}"' if css else ""
    return f"<figure{css}><figcaption>{caption}{small}</figcaption>{picture.html()}</figure>"


def run_figure(look: Look, picture: Picture, small: str = "") -> str:
    """A picture about one run, which the legend hides together with the run."""
    return figure(picture, named(look), small, look.css)


def run_key(look: Look) -> Key:
    """The entry of a run in the legend of a figure."""
    return Key(look.line, look.marker, look.label)
