"""What a part of a report is made of, and the pieces of HTML that several parts share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunus.reporting.labels import Look
from prunus.reporting.render.figure import Figure, Key
from prunus.reporting.render.picture import Picture
from prunus.reporting.render.table import Table, named


@dataclass(frozen=True)
class Section:
    """One part of a report. Where there is nothing to show, all but the id is empty.

    html: of the page, foreign text escaped. figures, tables: what `--figures` and `--csv` write, whether the page shows
    them or not; tables without rows are left out. files: (name, content) of what is too large for the page and goes
    into the folder beside it. styles: CSS of its own.
    """

    id: str
    html: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    files: Iterable[tuple[str, str]] = ()
    styles: str = ""


def soft(text: str) -> str:
    """A paragraph in the background, of HTML."""
    return f'<p class="soft">{text}</p>'


def details(summary: str, html: str) -> str:
    """HTML that is shown when its summary is clicked."""
    return f"<details><summary>{summary}</summary>{html}</details>"


def figure(picture: Picture, caption: str, small: str = "", css: str = "") -> str:
    """A picture below its caption, both HTML; small: the caption's second line; css: classes of the whole."""
    small = f"<small>{small}</small>" if small else ""
    css = f' class="{css}"' if css else ""
    return f"<figure{css}><figcaption>{caption}{small}</figcaption>{picture.html()}</figure>"


def run_figure(look: Look, picture: Picture, small: str = "") -> str:
    """A picture about one run, which the legend hides with it."""
    return figure(picture, named(look), small, look.css)


def run_key(look: Look) -> Key:
    """A run's entry in the legend of a figure."""
    return Key(look.line, look.marker, look.label)
