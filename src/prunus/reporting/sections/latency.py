"""Accuracy against latency: the seconds that an answer takes if it is decoded alone."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.reporting.labels import Look
from prunus.reporting.render.chart import Axis, Line, Point, accuracy_axis, chart, lines_of
from prunus.reporting.render.figure import Figure
from prunus.reporting.render.picture import Picture
from prunus.reporting.render.table import RUN, Column, Interval
from prunus.reporting.render.table import Table as Displayed
from prunus.reporting.render.text import DASH, esc, percent, points, probability
from prunus.reporting.report_data import ReportData, ReportedRun, float_of
from prunus.reporting.section import Section, details, figure, run_key, soft
from prunus.results.latency import Speed, affordable, by_budget, contrast, deadlines
from prunus.results.table import Table

BUSY = 0.1  # relative difference between rounds of a measurement above which a warning is shown


@dataclass(frozen=True)
class TimedRun:
    """A run whose speed was measured. tables: complete problems, by task. seconds: of a draw, by task and budget."""

    reported: ReportedRun
    speed: Speed
    tables: Mapping[str, Table]
    seconds: Mapping[str, Mapping[int, Mapping[str, float]]]

    @property
    def look(self) -> Look:
        return self.reported.look


@dataclass(frozen=True)
class Timings:
    """The runs that were timed on one machine, the base first if it is among them. without: labels of other runs."""

    machine: str
    runs: Sequence[TimedRun]
    without: Sequence[str]


def section(data: ReportData) -> Section:
    """The curve, the accuracy by deadline, and the speeds; empty if no run was timed."""
    timed = timings(data)
    if timed is None:
        return Section("seconds")
    clocks = {str(run.speed.how.get("clock")) for run in timed.runs}
    clock = "CPU time, which is wall time on an idle machine" if clocks == {"cpu"} else "wall time"
    note = (
        "The latency of each answer if it were decoded alone; the evaluation itself decodes many chains at once. It is "
        f"the time per token at each context length ({clock}), measured for each model on {timed.machine}, summed over "
        "the tokens of a draw. The prompt is read in one step, and all other tokens are decoded one by one."
    )
    deadline = (
        "Accuracy of each run at the largest budget at which 95 % of its draws finish before the deadline, so that a "
        "faster model may think longer. Differences are paired by problem and ignore the error of the measured speeds."
    )
    spread = max(float_of(run.speed.how.get("spread")) for run in timed.runs)
    if spread > BUSY:
        note += (
            f" The machine was busy: the same tokens took up to {percent(spread)} % longer in one round than in "
            "another, so differences of this size between runs mean nothing."
        )
    lacking = f" Not timed on it: {', '.join(timed.without)}." if timed.without else ""
    body, figures, tables = "", [], []
    for task in data.tasks:
        if not any(run.seconds.get(task) for run in timed.runs):
            continue
        picture, by_deadline, every = (
            seconds_chart(timed, task),
            deadline_table(timed, task),
            seconds_table(timed, task),
        )
        figures.append(Figure(f"accuracy-seconds-{task}", picture, [run_key(run.look) for run in timed.runs]))
        tables += [by_deadline, every]
        caption = f"{data.title('Accuracy', task)} against seconds"
        body += (
            f"{figure(picture, caption, '95 % bars; one point per budget')}<h3>{data.title('By a deadline', task)}</h3>"
            f"{soft(deadline)}{by_deadline.html()}{details('Seconds in numbers', every.html())}"
        )
    html = f'<section id="seconds"><h2>Accuracy against seconds</h2>{soft(esc(note + lacking))}{body}</section>'
    return Section("seconds", html, figures, tables)


def timings(data: ReportData) -> Timings | None:
    """The timings from the machine on which most runs of the report were timed; None if no run was timed."""
    counts = Counter(machine for one in data.runs for machine in one.speeds)
    if not counts:
        return None
    machine = max(sorted(counts), key=counts.__getitem__)
    runs = []
    for one in data.runs:
        if (speed := one.speeds.get(machine)) is None:
            continue
        whole = {}
        for task, table in one.tables.items():
            problems = table.complete()
            if problems and task in speed.prompts:
                whole[task] = table.select(problems, table.budgets, table.draws)
        seconds = {task: by_budget(table, speed, task) for task, table in whole.items()}
        runs.append(TimedRun(one, speed, whole, seconds))
    return Timings(machine, runs, [one.look.label for one in data.runs if machine not in one.speeds])


def seconds_text(value: float | None) -> str:
    """Seconds as text with about two significant digits: 0.052, 1.3, 12."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def seconds_chart(timed: Timings, task: str) -> Picture:
    """Accuracy over the mean seconds of a draw, one point per budget, with 95 % bars."""
    lines: list[Line] = []
    for run in [*timed.runs[1:], *timed.runs[:1]]:  # the base on top
        spots = {
            budget: Point(
                run.seconds[task][budget]["mean"], 100 * cell.accuracy, 100 * cell.low, 100 * cell.high,
                f"{seconds_text(run.seconds[task][budget]['mean'])} s\n{run.look.label}\nbudget {budget}: "
                f"{percent(cell.accuracy)} %",
            )
            for budget, cell in run.reported.cells(task).items()
            if budget in run.seconds.get(task, {})
        }  # fmt: skip
        lines += lines_of(spots, run.look.css, run.look.marker)
    times = [point.x for line in lines for point in line.points]
    return chart(lines, seconds_axis(times), accuracy_axis(lines), f"Accuracy on {task} against seconds", whiskers=True)


def seconds_axis(values: Sequence[float]) -> Axis:
    """A log2 axis with ticks at 1, 2 and 5 times powers of 10."""
    low, high = math.log2(min(values)), math.log2(max(values))
    low, high = (low - 0.1, high + 0.1) if high - low > 0.5 else (low - 1, high + 1)
    powers = range(math.floor(low * math.log10(2)), math.ceil(high * math.log10(2)) + 1)
    steps = [round(factor * 10.0**power, 9) for power in powers for factor in (1, 2, 5)]
    ticks = tuple((step, f"{step:g}") for step in steps if low <= math.log2(step) <= high)
    return Axis("Mean seconds of a draw, decoded alone", ticks, low, high, log=True)


def seconds_table(timed: Timings, task: str) -> Displayed:
    """The speed of each run, and the seconds of a draw at each budget."""
    rows = []
    for run in timed.runs:
        speed = run.speed
        shown = {context: 1000 * seconds for context, seconds in zip(speed.contexts, speed.decode, strict=True)}
        first, last = min(shown), max(shown)
        how = speed.how
        for budget, cell in run.seconds.get(task, {}).items():
            ours = run.reported.cells(task).get(budget)
            accuracy = ours and ours.accuracy
            values: list[Any] = [budget, cell["mean"], cell["p95"], accuracy, first, shown[first], last, shown[last]]
            rows.append((run.look, [*values, str(how.get("dtype")), str(how.get("kernel", "torch"))]))
    columns = [
        RUN, Column("budget", "Budget"), Column("seconds", "Seconds|of a draw", seconds_text),
        Column("seconds_p95", "95th|percentile", seconds_text), Column("accuracy", "Accuracy,|%", percent),
        Column("context", "Shortest|context"), Column("first", "ms per|token", seconds_text),
        Column("last_context", "Longest|context"), Column("last", "ms per|token", seconds_text),
        Column("dtype", "Dtype"), Column("kernel", "Kernel of|Linears"),
    ]  # fmt: skip
    return Displayed(f"seconds-{task}", f"Seconds on {task}", "data seconds sortable", columns, rows)


def deadline_table(timed: Timings, task: str) -> Displayed:
    """For each deadline, every run's accuracy at the largest budget that meets it, and the difference from the base."""
    ends = [cell["p95"] for run in timed.runs for cell in run.seconds.get(task, {}).values()]
    rows = []
    for deadline in deadlines(min(ends), max(ends)) if ends else []:
        for run in timed.runs:
            budget = affordable(run.seconds.get(task, {}), deadline)
            if budget is None:
                rows.append((run.look, [deadline, *[None] * 4]))
                continue
            cell = run.reported.cells(task)[budget]
            accuracy = Interval(cell.accuracy, cell.low, cell.high)
            rows.append((run.look, [deadline, budget, accuracy, *against_base(timed, run, task, deadline, budget)]))
    columns = [
        RUN, Column("deadline", "Deadline, s", seconds_text), Column("budget", "Budget|that fits"),
        Column("accuracy", "Accuracy, %", percent), Column("difference", "Minus the base's,|points", points),
        Column("p", "p", probability),
    ]  # fmt: skip
    return Displayed(f"deadlines-{task}", f"By a deadline on {task}", "data deadlines sortable", columns, rows)


def against_base(timed: Timings, run: TimedRun, task: str, deadline: float, budget: int) -> list[Any]:
    """[difference, p] from the base at the base's own affordable budget; Nones for the base, or if it has none."""
    base = timed.runs[0]
    theirs = affordable(base.seconds.get(task, {}), deadline)
    if base.look.index != 0 or run is base or theirs is None or task not in base.tables:
        return [None, None]
    ours, other = base.tables[task], run.tables[task]
    problems = [problem for problem in ours.problems if problem in set(other.problems)]
    draws = [draw for draw in ours.draws if draw in other.draws]
    if not problems or not draws:
        return [None, None]
    pair = (ours.select(problems, ours.budgets, draws), other.select(problems, other.budgets, draws))
    found = contrast(*pair, (theirs, budget))
    return [Interval(found["difference"], found["low"], found["high"]), found["p"]]
