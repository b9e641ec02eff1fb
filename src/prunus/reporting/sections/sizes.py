"""Accuracy against the bytes of each model, of its weights and the cache of a chain, with the Pareto front."""

from collections.abc import Mapping, Sequence
from functools import partial

from prunus.reporting.render.chart import Frame, Line, Picture, Point, accuracy_axis, chart, linear_axis
from prunus.reporting.render.figure import Figure
from prunus.reporting.render.table import RUN, Column, Interval, Table
from prunus.reporting.render.text import esc, joined, percent
from prunus.reporting.report_data import FIT, ReportData, ReportedRun
from prunus.reporting.section import Section, adapted, details, part_of, run_key
from prunus.results.verdicts import verdict
from prunus.statistics.metrics import Estimate

KINDS = ("quantised", "scales", "embeddings", "head", "others")
NOTE = (
    "Bytes of weights are those that an engine loads, counted from the tensors of each model: a zero takes what any "
    "weight takes. Those of a cache follow from the configuration and the types in which it is kept. Accuracy is the "
    "area under accuracy over log<sub>2</sub> of the budget, with its 95 % interval. On the front of the estimates are "
    "the models than which, by the estimates, none is both smaller and at least as accurate."
)


def section(data: ReportData) -> Section:
    """A chart and a table for each task; empty if no two models are known to differ in bytes."""
    html, figures, tables = "", [], []
    for task in data.tasks:
        known = [(one, area) for one in data.drawn if one.nbytes and (area := area_of(one, task)) is not None]
        if len({one.nbytes for one, _ in known}) < 2:
            continue
        tables.append(size_table(data, task, front(known)))
        picture = partial(scatter, known, task, f"Megabytes of weights{' and cache' * (data.tokens is not None)}")
        figures.append(Figure(f"bytes-{task}", picture(), [run_key(one.style) for one, _ in known]))
        shown = adapted(picture, "All budgets", "95 % bars; the thin line is the front of the estimates")
        shown += details("Bytes in numbers", tables[-1].html())
        html += part_of(
            data,
            task,
            "bytes",
            "Accuracy against bytes",
            esc(_smaller(data, task)),
            shown,
            f"Counted: {esc(counted(data))}. {NOTE}",
        )
    return Section("bytes", html, figures, tables, name="Bytes")


Known = Sequence[tuple[ReportedRun, Estimate]]


def area_of(one: ReportedRun, task: str) -> Estimate | None:
    """The area of a run on a task; None while no problem is complete."""
    return one.summary.tasks[task].auc if task in one.summary.tasks else None


def front(known: Known) -> list[tuple[int, float, str]]:
    """(bytes, area, id) of the runs than which no smaller one, nor one of the same size, is more accurate; by bytes."""
    points: list[tuple[int, float, str]] = []
    for size, lost, run in sorted((one.nbytes or 0, -area.value, one.run.run_id) for one, area in known):
        if not points or -lost > points[-1][1]:
            points.append((size, -lost, run))
    return points


def _smaller(data: ReportData, task: str) -> str:
    """A sentence on the variants that are smaller than the base, and that are shown to lose less than the margin."""
    whole, margin = data.base.nbytes, data.comparison.margin.words(f"what {data.base.style.label} solves")
    smaller = [
        (one, part) for one in data.others if one.nbytes and whole and one.nbytes < whole and (part := one.part(task))
    ]
    if not smaller:
        return ""
    fit = sorted((one.nbytes or 0, one.style.label) for one, part in smaller if verdict(part.area) in FIT)
    if not fit:
        return f"Of no smaller variant is a loss of {margin} or more ruled out."
    named = [f"{label} ({megabytes(size)} of {megabytes(whole or 0)} MB)" for size, label in fit]
    return f"Smaller, and a loss of {margin} or more is ruled out: {joined(named)}."


def counted(data: ReportData) -> str:
    """What the bytes of a run are of."""
    if data.tokens is None:
        return "weights that an engine loads"
    return f"weights and the cache of a chain of {data.tokens:,} tokens, the longest prompt and the largest budget"


def scatter(known: Known, task: str, what: str, frame: Frame | None = None) -> Picture:
    """Each run's area over its bytes with its interval, and the front as steps."""
    lines = []
    for one, area in known:
        size, interval = (one.nbytes or 0) / 1e6, f"{percent(area.low)} to {percent(area.high)}"
        note = f"{size:,.1f} MB\n{one.style.label}\n{percent(area.value)} % ({interval})"
        spot = Point(size, 100 * area.value, 100 * area.low, 100 * area.high, note)
        lines.append(Line(one.style.css, [spot], one.style.marker, one.style.label))
    largest = max(line.points[0].x for line in lines)
    x_axis, y_axis = linear_axis(0, largest, what), accuracy_axis(lines)
    steps = [(size / 1e6, 100 * area) for size, area, _ in front(known)]
    label = f"Accuracy on {task} against bytes"
    return chart(lines, x_axis, y_axis, label, frame=frame, whiskers=True, steps=steps)


def size_table(data: ReportData, task: str, best: Sequence[tuple[int, float, str]]) -> Table:
    """Area, bytes and their kinds, one row per run; a cell of what is not known is empty."""
    rows, on_front = [], {run for _, _, run in best}
    for one in data.runs:
        kinds: Mapping[str, int] = one.run.model.get("bytes") or {}
        area = area_of(one, task)
        shown = None if area is None else Interval(area.value, area.low, area.high)
        cache = None if data.tokens is None or one.run.cache is None else one.run.cache
        kept = [None, None] if cache is None else [cache.nbytes(data.tokens or 0), cache.per_token]
        sizes = [one.nbytes, *(kinds.get(kind) for kind in KINDS), *kept]
        rows.append((one.style, [shown, *sizes, "yes" if one.run.run_id in on_front else None]))
    columns = [RUN, Column("area", "Area, %", percent), Column("bytes", "MB", megabytes)]
    columns += [Column(kind, f"{kind.capitalize()},|MB", megabytes) for kind in KINDS]
    columns += [Column("cache", "Cache,|MB", megabytes), Column("cache_per_token", "Cache per|token, kB", kilobytes)]
    return Table(
        f"bytes-{task}", f"Bytes on {task}", "data sortable", [*columns, Column("front", "Front of|estimates")], rows
    )


def kilobytes(size: float) -> str:
    """`36.9`."""
    return f"{size / 1e3:,.1f}"


def megabytes(size: int) -> str:
    """`134.5`."""
    return f"{size / 1e6:,.1f}"
