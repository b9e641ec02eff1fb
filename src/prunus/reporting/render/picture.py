"""Pictures as shapes: what is drawn, where, and as what.

The page shows them coloured by CSS (`Picture.html`), a paper's figure has colours of its own (`render/figure.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prunus.reporting.render.text import esc

Number = int | float


class Path(NamedTuple):
    """A path. role: what it is (`line`, `band`, `grid`), which decides its style. d: its steps, as SVG writes them.

    at: where its origin lies. note: what a pointer on it reads.
    """

    role: str
    d: str
    at: tuple[Number, Number] | None = None
    note: str = ""


class Box(NamedTuple):
    """A rectangle; role and note as of a Path."""

    role: str
    x: Number
    y: Number
    width: Number
    height: Number
    note: str = ""


class Label(NamedTuple):
    """A line of text. drop: how far its base line lies below y, in heights of the font. anchor: as in SVG."""

    role: str
    x: Number
    y: Number
    text: str
    drop: float = 0.0
    anchor: str = "start"
    note: str = ""


Shape = Path | Box | Label


class Group(NamedTuple):
    """Shapes of one series. css: classes that give its colour and dash, and let the legend hide it."""

    css: str
    shapes: Sequence[Shape]


@dataclass(frozen=True)
class Picture:
    """css: classes of the whole. label: what a screen reader says; without one it is an ornament in a line of text.

    A group without classes belongs to the picture itself.
    """

    css: str
    width: Number
    height: Number
    groups: Sequence[Group]
    label: str = ""

    def html(self) -> str:
        """One <svg> for the page; style comes from CSS."""
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
    """A shape as an SVG element with these attributes besides its own."""
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
    """A coordinate: whole numbers as they are, others to a tenth of a pixel."""
    return str(value) if isinstance(value, int) else f"{value:.1f}"
