"""Pictures made of shapes. The role of a shape decides its style.

On the page, CSS sets the style (`Picture.html`); figures for papers have styles of their own (`render/figure.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prunus.reporting.render.text import esc

Number = int | float


class Path(NamedTuple):
    """A path. role: `line`, `band`, `grid`, ... d: its steps in SVG's notation. at: position of its origin.

    note: text of its tooltip.
    """

    role: str
    d: str
    at: tuple[Number, Number] | None = None
    note: str = ""


class Box(NamedTuple):
    """A rectangle; role and note as for a Path."""

    role: str
    x: Number
    y: Number
    width: Number
    height: Number
    note: str = ""


class Label(NamedTuple):
    """A line of text. drop: distance of its baseline below y, in font sizes. anchor: as in SVG."""

    role: str
    x: Number
    y: Number
    text: str
    drop: float = 0.0
    anchor: str = "start"
    note: str = ""


Shape = Path | Box | Label


class Group(NamedTuple):
    """The shapes of one series. css: classes for its colour and dash, and those by which the legend hides it."""

    css: str
    shapes: Sequence[Shape]


@dataclass(frozen=True)
class Picture:
    """Groups of shapes on an area of width x height.

    css: classes of the whole picture. label: for screen readers; without one it is an ornament within a line of text.
    The shapes of a group without classes belong to the picture itself.
    """

    css: str
    width: Number
    height: Number
    groups: Sequence[Group]
    label: str = ""

    def html(self) -> str:
        """The <svg> element for the page, which CSS styles."""
        size = f'viewBox="0 0 {self.width} {self.height}"'
        if self.label:
            attributes = f'{size} role="img" aria-label="{esc(self.label)}"'
        else:
            attributes = f'{size} width="{self.width}" height="{self.height}" aria-hidden="true"'
        return f'<svg class="{self.css}" {attributes}>{"".join(map(_group, self.groups))}</svg>'


def _group(group: Group) -> str:
    shapes = "".join(element(shape, f'class="{shape.role}" ', shape.note) for shape in group.shapes)
    return f'<g class="{group.css}">{shapes}</g>' if group.css else shapes


def element(shape: Shape, style: str, note: str = "") -> str:
    """A shape as an SVG element. style: further attributes. note: text of its tooltip."""
    if isinstance(shape, Label):
        drop = f' dy="{f"{shape.drop:g}".removeprefix("0")}em"' if shape.drop else ""
        anchor = f' text-anchor="{shape.anchor}"' if shape.anchor != "start" else ""
        return f'<text {style}x="{place(shape.x)}" y="{place(shape.y)}"{drop}{anchor}>{esc(shape.text)}</text>'
    if isinstance(shape, Box):
        x, y, width, height = map(place, shape[1:5])
        tag, where = "rect", f'x="{x}" y="{y}" width="{width}" height="{height}"'
    else:
        move = "" if shape.at is None else f'transform="translate({place(shape.at[0])},{place(shape.at[1])})" '
        tag, where = "path", f'{move}d="{shape.d}"'
    return f"<{tag} {style}{where}{f'><title>{esc(note)}</title></{tag}>' if note else '/>'}"


def place(value: Number) -> str:
    """A coordinate as text; numbers that are not whole are rounded to a tenth of a pixel."""
    return str(value) if isinstance(value, int) else f"{value:.1f}"
