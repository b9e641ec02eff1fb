"""The one style of the charts in docs/images: an SVG file of charts side by side, readable on white and on dark pages.

The background is transparent, and all colours have about the same contrast to white as to black.
"""

from collections.abc import Sequence

from prunus.reporting.render.chart import Axis, Frame, Line, chart
from prunus.reporting.render.text import esc

INK = "#747c86"
COLOURS = (INK, "#3583d6", "#d06a22", "#2c9a6c", "#b45cc4", "#9a8416", "#cf5069")  # the first is of the dense model
STYLE = (
    f"text {{ font: 13px system-ui, sans-serif; fill: {INK} }} .axis-title, .name {{ font-weight: 600 }}"
    f" .grid {{ stroke: {INK}; stroke-opacity: .25 }} .base-line, .tick-mark {{ stroke: {INK}; fill: none }}"
    " .line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round }"
    " .whisker { stroke: var(--c); stroke-opacity: .5; fill: none } .mark, .name { fill: var(--c) }"
    " .band { fill: var(--c); fill-opacity: .12 } .c0 .line { stroke-width: 3 } .c0 .mark { fill: none } "
    + " ".join(f".c{index} {{ --c: {colour} }}" for index, colour in enumerate(COLOURS))
)
FRAME = Frame(width=560, height=340, names=24)


def figure(charts: Sequence[tuple[Sequence[Line], Axis, Axis]], label: str, frame: Frame = FRAME) -> str:
    """Return the SVG file of charts, each of (lines, x axis, y axis), side by side. label: what they show.

    Lines have the classes c0 (dense) to c6, and their names at their ends; a line of two points without a mark is flat.
    """
    width, parts = frame.width + 20, list[str]()
    for index, (lines, x_axis, y_axis) in enumerate(charts):
        picture = chart(lines, x_axis, y_axis, label, frame=frame, whiskers=True).html()
        place = f'x="{index * width}" width="{frame.width}" height="{frame.height}"'
        parts.append(picture.replace("<svg ", f"<svg {place} ", 1))
    size = f'viewBox="0 0 {width * len(charts) - 20} {frame.height}" width="{width * len(charts) - 20}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} height="{frame.height}" role="img" aria-label="{esc(label)}">'
    )
    return f"{head}<style>{STYLE}</style>{''.join(parts)}</svg>\n"
