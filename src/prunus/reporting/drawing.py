"""A chart taken apart into filled and stroked shapes and labels, with the colours for paper: for files of its own.

The page gives charts their colours by CSS classes, which follow the reader's colour scheme. A figure in a paper has
none, so classes are looked up here, and each shape carries its style.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from prunus.reporting.render.chart import swatch
from prunus.reporting.render.text import esc

INK, SOFT, GRID, WHITE = "#1b1f24", "#4a5159", "#dfe2e6", "#ffffff"
HUES = (INK, "#0067ab", "#c14a00", "#007d5b", "#9b3d86", "#7a6400", "#3f5a7d")  # as in page.css, light
HEAT = "#0067ab"
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 4), (2, 3.5), (9, 3, 2, 3))
# Classes of a group: colour and dash.
GROUPS: dict[str, tuple[str, tuple[float, ...]]] = {
    **{f"e{k}": (colour, DASHES[k]) for k, colour in enumerate((HUES[1], HUES[2], HUES[4], "#b23c00"))},
    "m0": (INK, ()),
    "m1": (HUES[2], DASHES[1]),
    "branch": (SOFT, ()),
}
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
WIDTHS = (
    "278 278 355 556 556 889 667 191 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556 556 "
    "556 556 278 278 584 584 584 556 1015 667 667 722 722 667 611 778 722 278 500 667 556 833 722 778 "
    "667 778 722 667 611 722 667 944 667 667 611 278 278 278 469 556 333 556 556 500 556 556 278 556 "
    "556 222 222 500 222 833 556 556 556 556 333 500 278 556 500 722 500 500 500 334 260 334 584 "
)  # of Helvetica's characters from the space on, in thousandths
_WIDTH = {chr(32 + k): int(width) / 1000 for k, width in enumerate(WIDTHS.split())}


class Shape(NamedTuple):
    """A path. steps: ("M", x, y), ("L", x, y), ("C", x1, y1, x2, y2, x, y) or ("Z",), all absolute."""

    steps: tuple[tuple, ...]
    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    dash: tuple[float, ...] = ()
    opacity: float = 1.0


class Label(NamedTuple):
    """A line of text; y is its base line; anchor as in SVG."""

    x: float
    y: float
    text: str
    size: float
    colour: str = SOFT
    anchor: str = "start"


class Drawing(NamedTuple):
    width: float
    height: float
    parts: tuple[Shape | Label, ...]

    def svg(self) -> str:
        """A file that any program draws alike: styles as attributes, no classes."""
        size = f'width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}">']
        parts.append(f'<rect width="{self.width:g}" height="{self.height:g}" fill="{WHITE}"/>')
        parts += [_shape_svg(part) if isinstance(part, Shape) else _label_svg(part) for part in self.parts]
        return "\n".join([*parts, "</svg>", ""])


def _shape_svg(shape: Shape) -> str:
    d = "".join(step[0] + ",".join(f"{value:g}" for value in step[1:]) for step in shape.steps)
    style = f'fill="{shape.fill or "none"}"'
    if shape.stroke:
        style += f' stroke="{shape.stroke}" stroke-width="{shape.width:g}"'
    if shape.dash:
        style += f' stroke-dasharray="{" ".join(f"{part:g}" for part in shape.dash)}"'
    if shape.opacity < 1:
        style += f' {"fill" if shape.fill else "stroke"}-opacity="{shape.opacity:g}"'
    return f'<path d="{d}" {style}/>'


def _label_svg(label: Label) -> str:
    anchor = f' text-anchor="{label.anchor}"' if label.anchor != "start" else ""
    place = f'x="{label.x:g}" y="{label.y:g}" font-size="{label.size:g}"{anchor}'
    return f'<text {place} fill="{label.colour}">{esc(label.text)}</text>'


def text_width(text: str, size: float) -> float:
    """Of text in Helvetica; what the font lacks counts as a digit."""
    return size * sum(_WIDTH.get(character, 0.556) for character in text)


def drawing(svg: str, legend: Sequence[tuple[str, int, str]] = ()) -> Drawing:
    """A chart that `svg` made, with its legend below: (classes, marker, name) each."""
    root = _parse(svg)
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    parts = list(_walk(root, (), 0.0, 0.0))
    x, y = 8.0, height + 12
    for css, marker, name in legend if len(legend) > 1 else ():
        space = 40 + text_width(name, 12) + 18
        if x + space > width and x > 8:
            x, y = 8.0, y + 19
        parts += _walk(_parse(swatch(css, marker)), (), x, y - 7)
        parts.append(Label(x + 40, y + 4.3, name, 12, INK))
        x += space
    return Drawing(width, y + 12 if len(legend) > 1 else height + 4, tuple(parts))


def _parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314  our own text, escaped


def _walk(element: ElementTree.Element, group: tuple[str, ...], dx: float, dy: float) -> Iterator[Shape | Label]:
    own = tuple((element.get("class") or "").split())
    if element.tag in ("svg", "g"):
        for child in element:
            yield from _walk(child, (*group, *own), dx, dy)
    elif element.tag == "text":
        size = 11.0 if "share" in own else 12.0 if "panel" in group else 13.0
        fall = float((element.get("dy") or "0").removesuffix("em")) * size
        colour = WHITE if "dark" in own else INK if "share" in own else SOFT
        x, y = (float(element.attrib[name]) for name in ("x", "y"))
        yield Label(x + dx, y + dy + fall, element.text or "", size, colour, element.get("text-anchor") or "start")
    elif element.tag in ("path", "rect"):
        move = re.match(r"translate\(([-\d.]+),([-\d.]+)\)", element.get("transform") or "")
        x, y = (dx + float(move[1]), dy + float(move[2])) if move else (dx, dy)
        yield _styled(_steps(element, x, y), own[0] if own else "", own, group)


def _styled(steps: tuple[tuple, ...], kind: str, own: tuple[str, ...], group: tuple[str, ...]) -> Shape:
    colour, dash = _colour(group)
    hollow = "pub" in group or "branch" in group
    if kind == "line":
        width = 1.4 if "pub" in group else 1.2 if "branch" in group else 2.6 if "c0" in group else 2.0
        return Shape(steps, None, colour, width, (1.5, 4) if "pub" in group else dash)
    if kind == "mark":
        return Shape(steps, WHITE if hollow else colour, colour if hollow else WHITE, 1.5 if hollow else 1.0)
    if kind == "heat":
        level = next((int(name[1:]) for name in own if re.fullmatch(r"h\d+", name)), 0)
        return Shape(steps, HEAT, opacity=max(0.04, level / 20 * 0.9))
    known = {
        "band": Shape(steps, colour, opacity=0.035 if "many" in group and "c0" not in group else 0.13),
        "whisker": Shape(steps, None, colour, 1.5, opacity=0.75),
        "grid": Shape(steps, None, GRID, 1.0),
        "gap": Shape(steps, None, WHITE, 3.0),
        "zero": Shape(steps, None, INK, 1.2),
        "zone": Shape(steps, INK, opacity=0.075),
        "gone": Shape(steps, GRID),
    }
    return known.get(kind, Shape(steps, None, SOFT, 1.0))


def _colour(group: tuple[str, ...]) -> tuple[str, tuple[float, ...]]:
    colour, dash = INK, ()
    for name in group:
        if name in GROUPS:
            return GROUPS[name]
        if re.fullmatch(r"c[0-6]", name):
            colour = HUES[int(name[1])]
        elif re.fullmatch(r"d[0-3]", name):
            dash = DASHES[int(name[1])]
    return colour, dash


def _steps(element: ElementTree.Element, dx: float, dy: float) -> tuple[tuple, ...]:
    if element.tag == "rect":
        x, y, w, h = (float(element.attrib[name]) for name in ("x", "y", "width", "height"))
        x, y = x + dx, y + dy
        return (("M", x, y), ("L", x + w, y), ("L", x + w, y + h), ("L", x, y + h), ("Z",))
    return tuple(_path(element.attrib["d"], dx, dy))


def _path(d: str, dx: float, dy: float) -> Iterator[tuple]:
    """Absolute steps of the commands that `svg` uses; arcs are half circles with level ends."""
    x, y = dx, dy
    for command, rest in re.findall(r"([MmLlHhVvAaZz])([^MmLlHhVvAaZz]*)", d):
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", rest)]
        kind, relative = command.upper(), command.islower()
        ox, oy = (x, y) if relative else (dx, dy)
        if kind == "Z":
            yield ("Z",)
        elif kind == "H":
            x = ox + numbers[0]
            yield ("L", x, y)
        elif kind == "V":
            y = oy + numbers[0]
            yield ("L", x, y)
        elif kind == "A":
            end = ox + numbers[5]
            yield from _half_circle(x, y, end)
            x = end
        else:
            for place in range(0, len(numbers), 2):
                x, y = ox + numbers[place], oy + numbers[place + 1]
                yield (kind if place == 0 else "L", x, y)
                ox, oy = (x, y) if relative else (dx, dy)


def _half_circle(x: float, y: float, end: float) -> Iterator[tuple]:
    """Two quarters, through the bottom when it goes right and through the top when it goes left."""
    r = (end - x) / 2
    k = 0.5523 * r
    yield ("C", x, y + k, x + r - k, y + r, x + r, y + r)
    yield ("C", x + r + k, y + r, end, y + k, end, y)
