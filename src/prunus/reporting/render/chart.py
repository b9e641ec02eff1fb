"""Charts as pictures: lines with bands over a budget, log or linear axis. CSS classes set colours and dashes.

A picture is complete without scripts, so it can be printed, scaled and read by a test; scripts only add a readout.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import scipy

from prunus.reporting.render.text import esc
from prunus.settings.budgets import OFF
from prunus.store.characters import MINUS, one_line

# Pictures made of shapes. The role of a shape decides its style.
# On the page, CSS sets the style (`Picture.html`); figures for papers have styles of their own (`render/figure.py`).

Number = int | float


class Stroke(NamedTuple):
    """A path. role: `line`, `band`, `grid`, ... d: its steps in SVG's notation. at: position of its origin.

    note: text of its tooltip.
    """

    role: str
    d: str
    at: tuple[Number, Number] | None = None
    note: str = ""


class Box(NamedTuple):
    """A rectangle; role and note as for a Stroke."""

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


Shape = Stroke | Box | Label


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


MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",  # circle
    "M-3.7,-3.7h7.4v7.4h-7.4z",  # square
    "M0,-5l4.7,8.2h-9.4z",  # triangle
    "M0,-5.2l5.2,5.2l-5.2,5.2l-5.2,-5.2z",  # diamond
    "M0,5l4.7,-8.2h-9.4z",  # triangle, point down
)


class Point(NamedTuple):
    """One value with its interval. note: three lines for the readout: position, name and value."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    note: str = ""


class Line(NamedTuple):
    """One series. css: its classes (`run r3`). marker: index of its marker. name: shown at its end by some frames."""

    css: str
    points: Sequence[Point]
    marker: int = 0
    name: str = ""


def lines_of(points: Mapping[int, Point], css: str, marker: int, name: str = "") -> list[Line]:
    """A run's points by budget as one line, and that of budget OFF, which is not on the curve, as another."""
    apart = [point for budget, point in points.items() if budget == OFF]
    joined = [point for budget, point in points.items() if budget != OFF]
    return [
        Line(css, spots, marker, text) for spots, text in ((apart, "" if joined else name), (joined, name)) if spots
    ]


@dataclass(frozen=True)
class Axis:
    """A scale from values to positions. low, high: in log2 units if log is set.

    apart: positions of budgets beyond breaks of a log axis, 0 and OFF, in its units.
    """

    title: str
    ticks: tuple[tuple[float, str], ...]
    low: float
    high: float
    log: bool = False
    apart: Mapping[float, float] = field(default_factory=dict)

    def place(self, value: float) -> float:
        """The position of a value: 0 at the start of the axis, 1 at its end."""
        if self.log:
            value = math.log2(value) if value > 0 else self.apart.get(value, self.low)
        return (value - self.low) / (self.high - self.low)


def budget_axis(budgets: Sequence[int]) -> Axis:
    """A log2 axis with a tick at every budget.

    0 is about one doubling left of the smallest, beyond a break, and OFF is left of both, beyond another one.
    """
    positive = sorted(budget for budget in budgets if budget > 0)
    low, high = (math.log2(positive[0]), math.log2(positive[-1])) if positive else (0.0, 0.0)
    step = max(1.0, 0.16 * (high - low))
    apart: dict[float, float] = {}
    for budget in [one for one in (0, OFF) if one in budgets]:
        low = apart[budget] = low - step
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    ticks = tuple((float(b), str(b)) for b in sorted(budgets))
    return Axis("Thinking budget, tokens", ticks, low, high, log=True, apart=apart)


def log_axis(values: Sequence[float], title: str) -> Axis:
    """A log2 axis over positive values, with ticks at powers of 2, or of 4 if these would be too dense."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.log2(min(positive)), math.log2(max(positive))
    low, high = (low - 0.1, high + 0.1) if high - low > 0.5 else (low - 1, high + 1)
    step = 1 if high - low <= 9 else 2
    powers = range(math.ceil(low), math.floor(high) + 1, step)
    return Axis(title, tuple((2.0**p, f"{2.0**p:g}") for p in powers), low, high, log=True)


def linear_axis(low: float, high: float, title: str, wanted: int = 5, sign: bool = False) -> Axis:
    """A linear axis that covers [low, high], with about `wanted` round ticks. sign: show + before positive ticks."""
    span = max(high - low, 1e-9)
    raw = span / wanted
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [step * k for k in range(first, last + 1)]
    return Axis(title, tuple((v, _tick(v, sign)) for v in values), values[0], values[-1])


def accuracy_axis(lines: Iterable[Line], wanted: int = 5) -> Axis:
    """A linear axis in percent from 0 to the highest point or interval."""
    ends = [value for line in lines for point in line.points for value in (point.y, point.high) if math.isfinite(value)]
    return linear_axis(0, min(100.0, max([*ends, 1.0])), "Accuracy, %", wanted)


def _tick(value: float, sign: bool) -> str:
    value = round(value, 6)
    return f"{'+' if sign and value > 0 else MINUS if value < 0 else ''}{abs(value):g}"


@dataclass(frozen=True)
class Frame:
    """The position of the plot within the picture, in view-box units.

    inset: horizontal distance of the first and last point from the frame. names: the number of letters at most of the
    names at the ends of lines, 0 for none. css: classes of the picture.
    """

    width: int = 640
    height: int = 390
    left: int = 50
    right: int = 14
    top: int = 34
    bottom: int = 56
    inset: int = 12
    names: int = 0
    css: str = ""

    def x(self, share: float) -> float:
        return self.left + self.inset + share * (self.width - self.left - self.right - 2 * self.inset)

    def y(self, share: float) -> float:
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


PANEL = Frame(width=330, height=230, left=52, right=8, top=32, bottom=46, inset=9, css="panel")
# One picture in two sizes, of which the page shows the one that its width has room for.
BOTH = (
    Frame(width=500, height=330, left=42, right=10, top=30, bottom=46, names=28, css="broad"),
    Frame(width=350, height=270, left=40, right=8, top=32, bottom=46, inset=8, names=18, css="narrow"),
)
LETTER, APART = 7.6, 16.0  # largest width of a letter, and smallest distance of names, in view-box units


def chart(
    lines: Sequence[Line],
    x_axis: Axis,
    y_axis: Axis,
    label: str,
    *,
    frame: Frame | None = None,
    whiskers: bool = False,
    zone: tuple[float, float] | None = None,
    zero_line: bool = False,
    steps: Sequence[tuple[float, float]] = (),
    css: str = "",
) -> Picture:
    """A picture of lines over two axes.

    label: for screen readers. whiskers: intervals as bars instead of bands. zone: y range that is shaded (a margin).
    zero_line: draw a line at y = 0. steps: points joined by a thin line in steps. css: further classes of the picture.
    """
    frame = frame or Frame()
    shown = [line for line in lines if line.points]
    names = [one_line(line.name, frame.names) for line in shown if line.name and frame.names]
    if names:
        frame = replace(frame, right=frame.right + int(6 + LETTER * max(map(len, names))))
    back = _grid(x_axis, y_axis, frame)
    if zone is not None:
        low, high = (min(1.0, max(0.0, y_axis.place(value))) for value in zone)
        width, height = frame.width - frame.left - frame.right, frame.y(low) - frame.y(high)
        back.append(Box("zone", frame.left, frame.y(high), width, height))
    if zero_line:
        y = frame.y(y_axis.place(0.0))
        back.append(Stroke("zero", f"M{frame.left},{y:.1f}H{frame.width - frame.right}"))
    if steps:
        (x, y), *rest = ((frame.x(x_axis.place(x)), frame.y(y_axis.place(y))) for x, y in steps)
        back.append(Stroke("margin", f"M{x:.1f},{y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in rest)))
    groups = [
        Group("", back),
        *(Group(line.css, _interval(line, x_axis, y_axis, frame, whiskers)) for line in shown),
        *(_names(shown, x_axis, y_axis, frame) if names else ()),
        *(Group(line.css, _curve(line, x_axis, y_axis, frame)) for line in shown),
    ]
    css = " ".join(filter(None, ("chart", frame.css, css)))
    return Picture(css, frame.width, frame.height, groups, label)


def _names(lines: Sequence[Line], x_axis: Axis, y_axis: Axis, frame: Frame) -> list[Group]:
    """The names of lines beside their ends, moved apart as little as possible; the last lines, if there is no room."""
    room = int((frame.height - frame.bottom - frame.top) // APART) + 1
    named = [line for line in lines if line.name and math.isfinite(line.points[-1].y)][-room:]
    named.sort(key=lambda line: -line.points[-1].y)
    ends = [(frame.x(x_axis.place(p.x)), frame.y(y_axis.place(p.y))) for p in (line.points[-1] for line in named)]
    # Distances of at least APART, with the least squares of moves, are isotonic regression after subtracting them.
    moved = scipy.optimize.isotonic_regression([y - APART * k for k, (_, y) in enumerate(ends)]).x if ends else ()
    lowest, x = frame.height - frame.bottom - APART * (len(named) - 1), frame.width - frame.right + 8
    groups = []
    for k, (line, (end, y), free) in enumerate(zip(named, ends, moved, strict=True)):
        place = max(float(frame.top), min(lowest, float(free))) + APART * k
        leader = Stroke("leader", f"M{end:.1f},{y:.1f}L{frame.width - frame.right},{y:.1f}L{x - 2},{place:.1f}")
        groups.append(Group(line.css, [leader, Label("name", x, place, one_line(line.name, frame.names), 0.35)]))
    return groups


def _grid(x_axis: Axis, y_axis: Axis, frame: Frame) -> list[Shape]:
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    most = int(right / LETTER)  # letters of a title within the picture
    shapes: list[Shape] = [Label("axis-title", 0, frame.top - 15, one_line(y_axis.title, most))]
    for value, text in y_axis.ticks:
        y = frame.y(y_axis.place(value))
        shapes.append(Stroke("grid", f"M{frame.left},{y:.1f}H{right}"))
        shapes.append(Label("tick", frame.left - 7, y, text, 0.35, "end"))
    shapes.append(Stroke("base-line", f"M{frame.left},{bottom}H{right}"))
    wide = (LETTER + 1) * max((len(text) for _, text in x_axis.ticks), default=0) + 6
    every = max(1, math.ceil(len(x_axis.ticks) * wide / (right - frame.left)))
    for index, (value, text) in enumerate(x_axis.ticks):
        x = frame.x(x_axis.place(value))
        shapes.append(Stroke("tick-mark", f"M{x:.1f},{bottom}v5"))
        if (len(x_axis.ticks) - 1 - index) % every == 0 or value in x_axis.apart:
            shapes.append(Label("tick", x, bottom + 8, text, 0.9, "middle"))
    for (value, _), (beside, _) in pairwise(x_axis.ticks):
        if value in x_axis.apart:
            x = (frame.x(x_axis.place(value)) + frame.x(x_axis.place(beside))) / 2
            shapes.append(Stroke("gap", f"M{x - 3:.1f},{bottom}h6"))
            shapes.append(Stroke("break", f"M{x - 6:.1f},{bottom + 5}l6,-10M{x:.1f},{bottom + 5}l6,-10"))
    shapes.append(Label("axis-title", right, frame.height - 5, one_line(x_axis.title, most), anchor="end"))
    return shapes


def _pieces(line: Line, x_axis: Axis) -> list[list[Point]]:
    """Lists of points to be joined by a line; a budget beyond a break of the axis is a list of its own."""
    apart = [[point] for point in line.points if point.x in x_axis.apart]
    joined = [point for point in line.points if point.x not in x_axis.apart]
    return [*apart, joined] if joined else apart


def _interval(line: Line, x_axis: Axis, y_axis: Axis, frame: Frame, whiskers: bool) -> list[Shape]:
    shapes: list[Shape] = []
    for piece in _pieces(line, x_axis):
        ends = [
            (frame.x(x_axis.place(p.x)), frame.y(y_axis.place(p.low)), frame.y(y_axis.place(p.high)))
            for p in piece
            if math.isfinite(p.low) and math.isfinite(p.high)
        ]
        if ends and (whiskers or len(ends) == 1):
            shapes.append(Stroke("whisker", "".join(f"M{x:.1f},{low:.1f}V{high:.1f}" for x, low, high in ends)))
        elif ends:
            upper = "L".join(f"{x:.1f},{high:.1f}" for x, _, high in ends)
            lower = "L".join(f"{x:.1f},{low:.1f}" for x, low, _ in reversed(ends))
            shapes.append(Stroke("band", f"M{upper}L{lower}Z"))
    return shapes


def _curve(line: Line, x_axis: Axis, y_axis: Axis, frame: Frame) -> list[Shape]:
    shapes: list[Shape] = []
    for piece in _pieces(line, x_axis):
        positions = [(frame.x(x_axis.place(p.x)), frame.y(y_axis.place(p.y))) for p in piece]
        if len(positions) > 1:
            shapes.append(Stroke("line", f"M{'L'.join(f'{x:.1f},{y:.1f}' for x, y in positions)}"))
        marker = MARKERS[line.marker % len(MARKERS)]
        shapes += [Stroke("mark", marker, at, point.note) for at, point in zip(positions, piece, strict=True)]
    return shapes


def swatch(css: str, marker: int) -> Picture:
    """The line and marker of a series, for the legend."""
    shapes = [Stroke("line", "M1,7H27"), Stroke("mark", MARKERS[marker % len(MARKERS)], (14, 7))]
    return Picture(f"swatch {css}", 28, 14, [Group("", shapes)])


def forest(rows: Sequence[tuple[float, float, float]], margin: float) -> list[Picture]:
    """A small picture for each (difference, low, high), all on the same axis, with a line at 0 and the margin shaded.

    The axis has room for the intervals that reach into the margin; an arrow stands for one that is beyond its end.
    """
    near = [abs(end) for row in rows for end in row if row[2] > -margin and math.isfinite(end)]
    reach = max([*near, 3 * margin, 0.001]) * 1.05
    width, height = 116, 18

    def at(value: float) -> float:
        return width / 2 + max(-1.0, min(1.0, value / reach)) * (width / 2 - 3)

    pictures = []
    for difference, low, high in rows:
        shapes = [
            Box("zone", at(-margin), 0, at(0) - at(-margin), height),
            Stroke("grid", f"M2,{height / 2}H{width - 2}"),
            Stroke("zero", f"M{at(0):.1f},0V{height}"),
        ]
        if all(math.isfinite(value) for value in (difference, low, high)):
            outside = abs(difference) > reach
            shapes.append(Stroke("whisker", f"M{at(low):.1f},{height / 2}H{at(high):.1f}"))
            turned = "M-2,0l7,-5v10z" if difference < 0 else "M2,0l-7,-5v10z"
            shapes.append(Stroke("mark", turned if outside else MARKERS[0], (at(difference), height / 2)))
        pictures.append(Picture("forest", width, height, [Group("", shapes)]))
    return pictures
