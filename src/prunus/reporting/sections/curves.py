"""The curves of a report, from what `summarise` and `compare` return. Each function gives one or more <svg>.

Summaries and looks are in the same order, the base first. Numbers that are not known (None) are left out of curves.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from prunus.reporting.labels import Look
from prunus.reporting.published import Match, about
from prunus.reporting.render.chart import PANEL, Axis, Line, Point, budget_axis, chart, linear_axis, log_axis
from prunus.reporting.render.text import count, percent, points
from prunus.reporting.report_data import Data, View, band_of, cells_of, float_of
from prunus.results.metrics import LEAK_RULE

MANY = 5  # curves in one chart from which on only the base's band is plain to see
ENDINGS = {
    "forced": "stopped by the budget",
    "no_answer": "no answer found",
    "truncated": "answer cut at its cap",
    "leaked": f"leaked: answer longer than {LEAK_RULE}",
}


def bands_text(cells: Iterable[Data]) -> str:
    """What the bands of these cells cover."""
    return "for all budgets at once" if any("band_low" in cell for cell in cells) else "each budget by itself"


def accuracy_against_budget(view: View, task: str) -> str:
    """Accuracy in percent with 95 % bands over log2 of the budget; 0 apart; published figures hollow and dotted."""
    lines = [
        *_published_lines(view.published_on(task)),
        *(Line(look.css, _accuracies(look, cells_of(summary, task)), look.marker) for look, summary in _pairs(view)),
    ]
    budgets = sorted({int(point.x) for line in lines for point in line.points})
    label = f"Accuracy on {task} against thinking budget"
    return chart(lines, budget_axis(budgets), _accuracy_axis(lines), label, css="many" if len(lines) > MANY else "")


def accuracy_against_tokens(view: View, task: str) -> str:
    """The same accuracies over the mean tokens that were used, thinking and answer, with 95 % bars."""
    lines = []
    for look, summary in _pairs(view):
        cells = cells_of(summary, task)
        used = {budget: cell["tokens"]["total"]["mean"] for budget, cell in cells.items()}
        moved = [
            point._replace(x=used[int(point.x)], note=f"{point.note}, {count(used[int(point.x)])} tokens")
            for point in _accuracies(look, cells, together=False)
        ]
        lines.append(Line(look.css, moved, look.marker))
    axis = log_axis(
        [point.x for line in lines for point in line.points], "Mean tokens used per draw (thinking + answer)"
    )
    return chart(lines, axis, _accuracy_axis(lines), f"Accuracy on {task} against tokens used", whiskers=True)


def _published_lines(matches: Sequence[Match]) -> list[Line]:
    """One line for each run and source, in the run's colour."""
    groups: dict[tuple[Look, str], list[Point]] = {}
    for match in matches:
        cell = match.theirs
        name = f"{match.look.label}, {about()['sources'][cell.source]['name']}"
        note = f"Budget {cell.budget}\n{name}\n{percent(cell.accuracy)} %"
        point = Point(float(cell.budget), 100 * cell.accuracy, math.nan, math.nan, note)
        groups.setdefault((match.look, cell.source), []).append(point)
    sources = list(about()["sources"])
    return [Line(f"{look.css} pub", spots, sources.index(source)) for (look, source), spots in groups.items()]


def differences(view: View, task: str, look: Look, entry: Data) -> str:
    """One panel: accuracy minus the base's in points, with its 95 % band; the margin is shaded."""
    line = Line(look.css, _differences(view, task, look, entry), look.marker)
    label = f"{look.label}: difference on {task} against thinking budget"
    x_axis, y_axis = _difference_axes(view, [line], "Points")
    zone = (-100 * view.margin, 0.0)
    return chart([line], x_axis, y_axis, label, frame=PANEL, zone=zone, zero_line=True, css="panel")


def all_differences(view: View, task: str) -> str:
    """The differences of all runs in one chart."""
    lines = [
        Line(look.css, _differences(view, task, look, entry), look.marker)
        for look, entry in zip(view.looks, view.entries, strict=True)
        if entry is not None and task in entry["tasks"]
    ]
    x_axis, y_axis = _difference_axes(view, lines, f"Accuracy minus that of {view.base.label}, points")
    label = f"Differences on {task} against thinking budget"
    return chart(lines, x_axis, y_axis, label, zone=(-100 * view.margin, 0.0), zero_line=True)


def _differences(view: View, task: str, look: Look, entry: Data) -> list[Point]:
    found = []
    for budget, cell in sorted(view.contrasts(entry, task).items()):
        low, high = (max(-100.0, min(100.0, 100 * end)) for end in band_of(cell))
        interval = f"{points(cell['low'])} to {points(cell['high'])}"
        note = f"Budget {budget}\n{look.label}\n{points(cell['difference'])} points ({interval})"
        found.append(Point(float(budget), 100 * cell["difference"], low, high, note))
    return found


def _difference_axes(view: View, lines: Sequence[Line], title: str) -> tuple[Axis, Axis]:
    spots = [point for line in lines for point in line.points]
    edge = 100 * view.margin * 1.5
    ends = [value for point in spots for value in (point.y, point.low, point.high) if math.isfinite(value)]
    y_axis = linear_axis(max(-100.0, min([*ends, -edge, -1])), min(100.0, max([*ends, edge, 1])), title, 4, sign=True)
    return budget_axis(sorted({int(point.x) for point in spots})), y_axis


def endings(task: str, look: Look, summary: Data) -> str:
    """One panel: shares of draws by how they ended, over the budget; an ending that never happens has no line."""
    cells = cells_of(summary, task)
    lines = []
    for index, (ending, words) in enumerate(ENDINGS.items()):
        found = [(budget, cell[ending]) for budget, cell in cells.items()]
        if any(share > 0 for _, share in found):
            notes = [f"Budget {budget}\n{words.split(':')[0]}\n{percent(share)} %" for budget, share in found]
            values = zip(found, notes, strict=True)
            spots = [Point(float(b), 100 * share, math.nan, math.nan, note) for (b, share), note in values]
            lines.append(Line(f"e{index}", spots, index))
    axis = linear_axis(0, 100, "Percent of draws", wanted=4)
    label = f"{look.label}: how draws on {task} ended"
    return chart(lines, budget_axis(list(cells)), axis, label, frame=PANEL, css="panel")


def _pairs(view: View) -> list[tuple[Look, Data]]:
    """The base comes last, so that it is drawn on top."""
    pairs = list(zip(view.looks, view.summaries, strict=True))
    return [*pairs[1:], pairs[0]]


def _accuracies(look: Look, cells: Mapping[int, Data], together: bool = True) -> list[Point]:
    """together: with bands for all budgets at once, where there are any."""
    found = []
    for budget, cell in cells.items():
        low, high = band_of(cell) if together else (float_of(cell["low"]), float_of(cell["high"]))
        interval = f"{percent(cell['low'])} to {percent(cell['high'])}"
        note = f"Budget {budget}\n{look.label}\n{percent(cell['accuracy'])} % ({interval})"
        found.append(Point(float(budget), 100 * cell["accuracy"], 100 * low, 100 * high, note))
    return found


def _accuracy_axis(lines: Sequence[Line]) -> Axis:
    ends = [value for line in lines for point in line.points for value in (point.y, point.high) if math.isfinite(value)]
    return linear_axis(0, min(100.0, max([*ends, 1.0])), "Accuracy, %")
