"""Figures for papers: pictures with a legend as .svg and .pdf files.

On the page, CSS classes set the colours of pictures, which follow the reader's colour scheme. A figure in a paper has
no style sheet, so each shape gets the styles of its role and classes as attributes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prunus.errors import PrunusError, pip
from prunus.reporting.render.chart import Label, Picture, Shape, element, swatch
from prunus.reporting.render.text import esc

INK, SOFT, GRID, WHITE = "#1b1f24", "#4a5159", "#dfe2e6", "#ffffff"
# As in page.css, light.
TONES = {"t-base": INK, "t-ok": "#00694c", "t-open": "#7a5c00", "t-bad": "#b23c00", "t-none": "#586069"}
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 4), (2, 3.5), (9, 3, 2, 3))
# Class of a group: (colour, dash).
GROUPS: dict[str, tuple[str, tuple[float, ...]]] = {"m0": (INK, ()), "m1": (TONES["t-none"], DASHES[1])}
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
WIDTH = 0.58  # width of a letter relative to the font size, rather large: it only sets the spacing of the legend
POINTS = 0.75  # points per CSS pixel, since the size of a PDF is in points


class Key(NamedTuple):
    """An entry of a legend: the classes and the marker of a series, and its name."""

    css: str
    marker: int
    name: str


@dataclass(frozen=True)
class Figure:
    """A picture that `--figures` writes. name: of its files. legend: empty for a single line, which needs none."""

    name: str
    picture: Picture
    legend: Sequence[Key] = ()

    def svg(self, scale: float = 1.0) -> str:
        """An SVG file with styles as attributes, which all programs draw alike. scale: factor of width and height."""
        width, below = self.picture.width, self.picture.height
        parts = [_groups(self.picture)]
        x, y = 8.0, below + 12.0
        for key in self.legend if len(self.legend) > 1 else ():
            space = 40 + WIDTH * 12 * len(key.name) + 18
            if x + space > width and x > 8:
                x, y = 8.0, y + 19
            line = _groups(swatch(key.css, key.marker))
            parts.append(f'<g transform="translate({x:g},{y - 7:g})">{line}</g>')
            parts.append(f'<text x="{x + 40:g}" y="{y + 4.3:g}" font-size="12" fill="{INK}">{esc(key.name)}</text>')
            x += space
        height = y + 12 if len(self.legend) > 1 else below + 4
        size = f'width="{scale * width:g}" height="{scale * height:g}" viewBox="0 0 {width:g} {height:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}">'
        paper = f'<rect width="{width:g}" height="{height:g}" fill="{WHITE}"/>'
        return "\n".join([head, paper, *parts, "</svg>", ""])

    def pdf(self) -> bytes:
        """A PDF page of the figure's size with vector shapes, selectable text and embedded fonts."""
        return pdf_converter()(self.svg(POINTS))


def pdf_converter() -> Callable[[str], bytes]:
    """The function that turns SVG text into the bytes of a PDF. Raises PrunusError if its package is missing."""
    try:
        from vl_convert import svg_to_pdf
    except ImportError as error:
        raise PrunusError(f"--figures needs the extra for .pdf files: {pip('figures')}") from error
    return svg_to_pdf


def _groups(picture: Picture) -> str:
    parts = []
    for group in picture.groups:
        css = (*picture.css.split(), *group.css.split())
        parts += [element(shape, _style(shape, css)) for shape in group.shapes]
    return "\n".join(parts)


def _style(shape: Shape, group: tuple[str, ...]) -> str:
    """The style attributes of a shape, by its role and the classes of its group and picture."""
    role = shape.role
    if isinstance(shape, Label):
        return f'font-size="{12 if "panel" in group else 13}" fill="{SOFT}" '
    colour, dash = _colour(group)
    hollow = "pub" in group
    if role == "line":
        return _stroke(colour, 1.4, (1.5, 4)) if hollow else _stroke(colour, 2.6 if "t-base" in group else 1.6, dash)
    if role == "mark":
        fill, edge = (WHITE, colour) if hollow else (colour, WHITE)
        return f'fill="{fill}" stroke="{edge}" stroke-width="{1.5 if hollow else 1:g}" '
    known = {
        "band": _fill(colour, 0.13),
        "whisker": f'{_stroke(colour, 1.5)}stroke-opacity="0.75" ',
        "grid": _stroke(GRID, 1.0),
        "zero": _stroke(INK, 1.2),
        "zone": _fill(INK, 0.075),
    }
    return known.get(role, _stroke(SOFT, 1.0))


def _fill(colour: str, opacity: float) -> str:
    return f'fill="{colour}" fill-opacity="{opacity:g}" '


def _stroke(colour: str, width: float, dash: Sequence[float] = ()) -> str:
    dashes = f'stroke-dasharray="{" ".join(f"{part:g}" for part in dash)}" ' if dash else ""
    return f'fill="none" stroke="{colour}" stroke-width="{width:g}" {dashes}'


def _colour(group: tuple[str, ...]) -> tuple[str, tuple[float, ...]]:
    colour, dash = INK, ()
    for name in group:
        if name in GROUPS:
            return GROUPS[name]
        if name in TONES:
            colour = TONES[name]
        elif re.fullmatch(r"d[0-3]", name):
            dash = DASHES[int(name[1])]
    return colour, dash
