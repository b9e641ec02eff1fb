"""Charts as pictures: lines with bands over a budget, log or linear axis. CSS classes set colours and dashes.

A picture is complete without scripts, so it can be printed, scaled and read by a test; scripts only add a readout.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import scipy

from prunus.reporting.render.text import esc
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


@dataclass(frozen=True)
class Axis:
    """A scale from values to positions. low, high: in log2 units if log is set."""

    title: str
    ticks: tuple[tuple[float, str], ...]
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """The position of a value: 0 at the start of the axis, 1 at its end."""
        if self.log:
            value = math.log2(value) if value > 0 else self.low
        return (value - self.low) / (self.high - self.low)


def budget_axis(budgets: Sequence[int]) -> Axis:
    """A log2 axis with a tick at every budget above 0; others are no part of a curve."""
    budgets = sorted(budget for budget in budgets if budget > 0) or [1]
    low, high = math.log2(budgets[0]), math.log2(budgets[-1])
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    return Axis("Thinking tokens allowed", tuple((float(b), str(b)) for b in budgets), low, high, log=True)


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
    return linear_axis(0, min(100.0, max([*ends, 1.0])), "Problems solved, %", wanted)


def _tick(value: float, sign: bool) -> str:
    value = round(value, 6)
    return f"{'+' if sign and value > 0 else MINUS if value < 0 else ''}{abs(value):g}"


@dataclass(frozen=True)
class Frame:
    """The position of the plot within the picture, in view-box units.

    inset: horizontal distance of the first and last point from the frame. names: most letters of a line's name; 0: no
    names. css: classes of the picture.
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
# The two sizes in which a picture is drawn; the page shows the size for which its width has room.
BOTH = (
    Frame(width=640, height=400, left=36, right=6, top=30, bottom=46, inset=8, names=30, css="broad"),
    Frame(width=350, height=300, left=36, right=10, top=30, bottom=46, inset=8, names=18, css="narrow"),
)
# Where a name may stand beside the end of its line.
BESIDE = (
    *((9, 0, "start"), (-9, 0, "end"), (0, -13, "middle"), (0, 13, "middle")),
    *((6, -11, "start"), (6, 11, "start"), (-6, -11, "end"), (-6, 11, "end")),
)
LETTER, APART = 7.9, 15.5  # largest width of a letter, and smallest distance of names, in view-box units


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
    arrow: tuple[float, float, float] | None = None,
    css: str = "",
) -> Picture:
    """A picture of lines over two axes.

    label: for screen readers. whiskers: intervals as bars instead of bands. zone: y range that is shaded (a margin).
    zero_line: draw a line at y = 0. arrow: from x to x at a height. steps: points joined by a thin line in steps. css:
    further classes of the picture.
    """
    frame = frame or Frame()
    shown = [line for line in lines if line.points]
    texts = shortened([line.name for line in shown], frame.names)
    beside = [len(text) for line, text in zip(shown, texts, strict=True) if text and _at_end(line, x_axis)]
    if beside:
        frame = replace(frame, right=frame.right + int(6 + LETTER * max(beside)))
    back = _grid(x_axis, y_axis, frame)
    if zone is not None:
        low, high = (min(1.0, max(0.0, y_axis.place(value))) for value in zone)
        width, height = frame.width - frame.left - frame.right, frame.y(low) - frame.y(high)
        back.append(Box("zone", frame.left, frame.y(high), width, height))
    if zero_line:
        y = frame.y(y_axis.place(0.0))
        back.append(Stroke("zero", f"M{frame.left},{y:.1f}H{frame.width - frame.right}"))
    paths = [[(frame.x(x_axis.place(p.x)), frame.y(y_axis.place(p.y))) for p in line.points] for line in shown]
    paths += [
        [(frame.x(x_axis.place(p.x)), frame.y(y_axis.place(y))) for y in (p.low, p.high)]
        for line in shown
        for p in line.points
        if math.isfinite(p.low + p.high)
    ]
    if steps:
        spots = [(frame.x(x_axis.place(x)), frame.y(y_axis.place(y))) for x, y in steps]
        corners = [spots[0], *(corner for (_, y), (x, to_y) in pairwise(spots) for corner in ((x, y), (x, to_y)))]
        back.append(Stroke("margin", f"M{'L'.join(f'{x:.1f},{y:.1f}' for x, y in corners)}"))
        paths.append(corners)
    groups = [
        Group("", back),
        *(Group(line.css, _interval(line, x_axis, y_axis, frame, whiskers)) for line in shown),
        *(Group(line.css, _curve(line, x_axis, y_axis, frame)) for line in shown),
        *_names([*zip(shown, texts, strict=True)], paths, x_axis, y_axis, frame),
    ]
    if arrow is not None:
        start, end = (frame.x(x_axis.place(x)) for x in arrow[:2])
        y = frame.y(y_axis.place(arrow[2]))
        shapes = [Stroke("arrow", f"M{start - 7:.1f},{y:.1f}H{end + 9:.1f}")]
        groups.append(Group("", [*shapes, Stroke("tip", f"M{end + 2:.1f},{y:.1f}l8,-4v8z")]))
    css = " ".join(filter(None, ("chart", frame.css, css)))
    return Picture(css, frame.width, frame.height, groups, label)


def shortened(names: Sequence[str], most: int) -> list[str]:
    """The names with at most `most` letters each; longer ones lose their middle, in such a way that no two are equal.

    most: 0 for no names at all.
    """
    found = list[str]()
    for name in names:
        text = cut = one_line(name, 200)
        for end in range(max(1, most // 2), most):
            cut = text if len(text) <= most else f"{text[: most - end - 1].rstrip()}…{text[-end:].lstrip()}"
            if cut not in found:
                break
        found.append(cut if text and most else "")
    return found


def _at_end(line: Line, x_axis: Axis) -> bool:
    """Whether the name of a line stands in the margin, since the line ends at the end of the axis."""
    return x_axis.place(line.points[-1].x) > 0.999


def _names(
    named: Sequence[tuple[Line, str]],
    paths: Sequence[Sequence[tuple[float, float]]],
    x_axis: Axis,
    y_axis: Axis,
    frame: Frame,
) -> list[Group]:
    """The names of lines: in the margin, moved apart as little as possible, or else beside the end of the line.

    If the margin has room for fewer names, only the last lines are named there. A name beside an end is left out if it
    would lie on another such name or on any of the paths (corners of lines in view-box units).
    """
    named = [(line, text) for line, text in named if text and math.isfinite(line.points[-1].y)]
    room = int((frame.height - frame.bottom - frame.top) // APART) + 1
    margin = sorted((pair for pair in named if _at_end(pair[0], x_axis)), key=lambda pair: -pair[0].points[-1].y)
    kept = [line for line, _ in named if _at_end(line, x_axis)][-room:]
    margin = [(line, text) for line, text in margin if any(line is other for other in kept)]
    ends = [frame.y(y_axis.place(line.points[-1].y)) for line, _ in margin]
    # The least-squares moves that leave distances of at least APART are isotonic regression after subtracting these.
    moved = scipy.optimize.isotonic_regression([y - APART * k for k, y in enumerate(ends)]).x if ends else ()
    lowest, x = frame.height - frame.bottom - APART * (len(margin) - 1), frame.width - frame.right + 4
    groups = []
    for k, ((line, text), free) in enumerate(zip(margin, moved, strict=True)):
        place = max(float(frame.top), min(lowest, float(free))) + APART * k
        groups.append(Group(line.css, [Label("name", x, place, text, 0.35)]))
    taken = [(x - 5, y - 5, x + 5, y + 5) for path in paths for x, y in path]
    taken += [(x - 1, y - 1, x + 1, y + 1) for path in paths for x, y in _along(path)]
    for line, text in reversed([pair for pair in named if not _at_end(pair[0], x_axis)]):
        end = frame.x(x_axis.place(line.points[-1].x)), frame.y(y_axis.place(line.points[-1].y))
        width = 1.08 * LETTER * len(text)  # where a picture is shown smaller, its letters are not
        for dx, dy, anchor in BESIDE:
            x, y = end[0] + dx, end[1] + dy
            left = x - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
            box = (left, y - 7, left + width, y + 7)
            inside = left >= frame.left and box[2] <= frame.width and frame.top <= box[1] <= frame.height - frame.bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                groups.append(Group(line.css, [Label("name", x, y, text, 0.35, anchor)]))
                break
    return groups


def _along(path: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of a line, at most 4 units from each other."""
    found = list[tuple[float, float]]()
    for (x, y), (to_x, to_y) in pairwise(path):
        steps = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / 4))
        found += [(x + (to_x - x) * k / steps, y + (to_y - y) * k / steps) for k in range(steps + 1)]
    return found


def _overlap(box: Sequence[float], other: Sequence[float]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


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
        if (len(x_axis.ticks) - 1 - index) % every == 0:
            shapes.append(Label("tick", x, bottom + 8, text, 0.9, "middle"))
    shapes.append(Label("axis-title", right, frame.height - 5, one_line(x_axis.title, most), anchor="end"))
    return shapes


def _interval(line: Line, x_axis: Axis, y_axis: Axis, frame: Frame, whiskers: bool) -> list[Shape]:
    ends = [
        (frame.x(x_axis.place(p.x)), frame.y(y_axis.place(p.low)), frame.y(y_axis.place(p.high)))
        for p in line.points
        if math.isfinite(p.low) and math.isfinite(p.high)
    ]
    if ends and (whiskers or len(ends) == 1):
        return [Stroke("whisker", "".join(f"M{x:.1f},{low:.1f}V{high:.1f}" for x, low, high in ends))]
    upper = "L".join(f"{x:.1f},{high:.1f}" for x, _, high in ends)
    lower = "L".join(f"{x:.1f},{low:.1f}" for x, low, _ in reversed(ends))
    return [Stroke("band", f"M{upper}L{lower}Z")] if ends else []


def _curve(line: Line, x_axis: Axis, y_axis: Axis, frame: Frame) -> list[Shape]:
    positions = [(frame.x(x_axis.place(p.x)), frame.y(y_axis.place(p.y))) for p in line.points]
    path = f"M{'L'.join(f'{x:.1f},{y:.1f}' for x, y in positions)}"
    marker = MARKERS[line.marker % len(MARKERS)]
    marks = [Stroke("mark", marker, at, point.note) for at, point in zip(positions, line.points, strict=True)]
    return [*([Stroke("line", path)] if len(positions) > 1 else []), *marks]


def swatch(css: str, marker: int) -> Picture:
    """The line and marker of a series, for the legend."""
    shapes = [Stroke("line", "M1,7H27"), Stroke("mark", MARKERS[marker % len(MARKERS)], (14, 7))]
    return Picture(f"swatch {css}", 28, 14, [Group("", shapes)])


@dataclass(frozen=True)
class Scale:
    """The axis of bars of changes in points: linear near the limit, and coarser left of a seam if losses are large.

    low, high: ends of the linear part; far: the lower end of the coarse one, None without it. limit: the loss that is
    tolerated. All are shares.
    """

    limit: float
    low: float
    high: float
    far: float | None

    WIDTH, SEAM = 252.0, 92.0

    @classmethod
    def of(cls, limit: float, near: Iterable[float], all_ends: Iterable[float]) -> "Scale":
        """The scale for bars with these ends. near: the ends that the linear part should hold."""
        unit = max(limit, 0.002)
        near, every = [*near, -2 * unit], [*all_ends, -2 * unit, 1.4 * unit]
        low = max(min(near), -6 * unit) * 1.03
        far = min(every)
        return cls(limit, low, max(every) * 1.03, far * 1.03 if far < low else None)

    def x(self, value: float) -> float:
        """The position of a change."""
        start = 4.0 if self.far is None else self.SEAM
        if self.far is not None and value < self.low:
            share = (max(value, self.far) - self.far) / (self.low - self.far)
            return 4.0 + share * (self.SEAM - 6.0)
        return start + (min(value, self.high) - self.low) / (self.high - self.low) * (self.WIDTH - 4.0 - start)

    def head(self) -> Picture:
        """The ticks, with the limit and 0 in words."""
        at = {"limit": self.x(-self.limit), "original": self.x(0.0)}
        apart = at["original"] - at["limit"]
        beside = min(12.0, apart / 2 - 2), max(-6.0, 2 - apart / 2)
        sides = [("end", beside[0]), ("start", beside[1])] if apart < 46 else [("middle", 0.0)] * 2
        shapes: list[Shape] = []
        for (word, x), (anchor, move), value in zip(at.items(), sides, (-self.limit, 0.0), strict=True):
            if word == "limit" and self.limit <= 0:
                continue
            shapes.append(Label("strong", x + move, 10, word, anchor=anchor))
            shapes.append(Label("strong", x + move, 24, _tick(100 * value, True), anchor=anchor))
        taken = [(x - 34, x + 34) for x in at.values()]
        for value in self._ticks():
            x, text = self.x(value), _tick(100 * value, True)
            half = 4 + 3.4 * len(text)
            x = min(max(x, half), self.WIDTH - half)
            if all(x + half < low or high < x - half for low, high in taken):
                taken.append((x - half, x + half))
                shapes.append(Label("tick", x, 24, text, anchor="middle"))
        return Picture("scale", self.WIDTH, 28, [Group("", shapes)], "")

    def _ticks(self) -> list[float]:
        """Values at which there may be a number: round ones, the outermost first."""
        near = linear_axis(100 * self.low, 100 * self.high, "", 6).ticks
        found = [value / 100 for value, _ in near if self.low <= value / 100 <= self.high]
        if self.far is not None:
            far = linear_axis(100 * self.far, 100 * self.low, "", 2).ticks
            found += [value / 100 for value, _ in far if self.far <= value / 100 < self.low]
        return sorted(found, key=lambda value: -abs(value - (self.low + self.high) / 2))

    def bar(self, difference: float, low: float, high: float, limit: float, label: str) -> Picture:
        """A bar from low to high with a dot at the difference, over the zone of tolerated changes. nan: no bar."""
        height, zero, edge = 26, self.x(0.0), self.x(-limit)
        shapes: list[Shape] = [Box("zone", edge, 0, self.WIDTH - edge, height)]
        if self.far is not None:
            shapes.append(Stroke("seam", f"M{self.SEAM - 2},0v{height}M{self.SEAM + 1},0v{height}"))
        shapes += [Stroke("zero", f"M{zero:.1f},0v{height}"), Stroke("limit-line", f"M{edge:.1f},0v{height}")]
        if math.isfinite(low) and math.isfinite(high):
            shapes.append(Stroke("bar", f"M{self.x(low):.1f},{height // 2}H{self.x(high):.1f}"))
        if math.isfinite(difference):
            shapes.append(Stroke("mark", MARKERS[0], (self.x(difference), height / 2)))
        return Picture("bar-of", self.WIDTH, height, [Group("", shapes)], label)


def stacked(shares: Sequence[tuple[str, float]], label: str) -> Picture:
    """A bar of shares that add up to 1, each with the class of its part."""
    shapes, x = list[Shape](), 0.0
    for role, share in shares:
        shapes.append(Box(role, x, 0, 240 * share, 12))
        x += 240 * share
    return Picture("stacked", 240, 12, [Group("", shapes)], label)


def size_bar(share: float) -> Picture:
    """A bar for the memory of a variant as a share of the original's, which fills the box."""
    shapes: list[Shape] = [Box("whole", 0, 0, 56, 5), Box("part", 0, 0, 56 * min(1.0, share), 5)]
    return Picture("size", 56, 5, [Group("", shapes)])
