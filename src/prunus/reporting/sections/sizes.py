"""Accuracy against the bytes that an engine loads of each model, with the Pareto front."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prunus.reporting.render.chart import Frame, Group, Line, Path, Picture, Point, accuracy_axis, chart, linear_axis
from prunus.reporting.render.figure import Figure
from prunus.reporting.render.table import RUN, Column, Interval, Table
from prunus.reporting.render.text import percent
from prunus.reporting.report_data import ReportData, ReportedRun
from prunus.reporting.section import Section, details, figure, run_key, soft
from prunus.results.summary import Area

KINDS = ("quantised", "scales", "embeddings", "head", "others")
NOTE = (
    "An engine loads these bytes, counted from the tensors of each model: a zero takes what any weight takes. Accuracy "
    "is the area under accuracy over log<sub>2</sub> of the budget, with its 95 % interval. The thin line is the "
    "front: the models than which, by the estimates, none is both smaller and at least as accurate."
)


def section(data: ReportData) -> Section:
    """A chart and a table for each task; empty if no two models are known to differ in bytes."""
    html, figures, tables = "", [], []
    for task in data.tasks:
        known = [(one, area) for one in data.drawn if one.run.nbytes and (area := area_of(one, task)) is not None]
        if len({one.run.nbytes for one, _ in known}) < 2:
            continue
        picture, table = scatter(known, task), size_table(data, task, front(known))
        figures.append(Figure(f"bytes-{task}", picture, [run_key(one.look) for one, _ in known]))
        tables.append(table)
        html += f"<section><h2>{data.title('Accuracy against bytes', task)}</h2>{figure(picture, 'All budgets')}"
        html += f"{soft(NOTE)}{details('Bytes in numbers', table.html())}</section>"
    return Section("bytes", html, figures, tables)


Known = Sequence[tuple[ReportedRun, Area]]


def area_of(one: ReportedRun, task: str) -> Area | None:
    """The area of a run on a task; None while no problem is complete."""
    return one.summary.tasks[task].auc if task in one.summary.tasks else None


def front(known: Known) -> list[tuple[int, float, str]]:
    """(bytes, area, id) of the runs than which no smaller one, nor one of the same size, is more accurate; by bytes."""
    found: list[tuple[int, float, str]] = []
    for size, lost, run in sorted((one.run.nbytes or 0, -area.value, one.run.run_id) for one, area in known):
        if not found or -lost > found[-1][1]:
            found.append((size, -lost, run))
    return found


def scatter(known: Known, task: str) -> Picture:
    """Each run's area over its bytes with its interval, and the front as steps."""
    lines = []
    for one, area in known:
        size, interval = (one.run.nbytes or 0) / 1e6, f"{percent(area.low)} to {percent(area.high)}"
        note = f"{size:,.1f} MB\n{one.look.label}\n{percent(area.value)} % ({interval})"
        spot = Point(size, 100 * area.value, 100 * area.low, 100 * area.high, note)
        lines.append(Line(one.look.css, [spot], one.look.marker))
    largest = max(line.points[0].x for line in lines)
    x_axis, y_axis = linear_axis(0, largest, "Megabytes that an engine loads"), accuracy_axis(lines)
    picture, frame = chart(lines, x_axis, y_axis, f"Accuracy on {task} against bytes", whiskers=True), Frame()
    ends = [(frame.x(x_axis.place(size / 1e6)), frame.y(y_axis.place(100 * area))) for size, area, _ in front(known)]
    (x, y), *rest = ends
    steps = Path("margin", f"M{x:.1f},{y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in rest))
    return replace(picture, groups=[picture.groups[0], Group("", [steps]), *picture.groups[1:]])


def size_table(data: ReportData, task: str, best: Sequence[tuple[int, float, str]]) -> Table:
    """Area, bytes and their kinds, one row per run; a cell of what is not known is empty."""
    rows, on_front = [], {run for _, _, run in best}
    for one in data.runs:
        kinds: Mapping[str, int] = one.run.model.get("bytes") or {}
        area = area_of(one, task)
        shown = None if area is None else Interval(area.value, area.low, area.high)
        sizes = [one.run.nbytes, *(kinds.get(kind) for kind in KINDS)]
        rows.append((one.look, [shown, *sizes, "yes" if one.run.run_id in on_front else None]))
    columns = [RUN, Column("area", "Area, %", percent), Column("bytes", "MB", megabytes)]
    columns += [Column(kind, f"{kind.capitalize()},|MB", megabytes) for kind in KINDS]
    return Table(f"bytes-{task}", f"Bytes on {task}", "data sortable", [*columns, Column("front", "Front")], rows)


def megabytes(size: int) -> str:
    """`134.5`."""
    return f"{size / 1e6:,.1f}"
