"""The page of a choice: accuracy against seconds and against memory with the limits, and a table of all choices.

It is made from choice.json alone, in the style of the report (reporting/page.py), and loads nothing.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from prunus.disk import show_bytes
from prunus.reporting.render.chart import Axis, Frame, Line, Picture, Point, accuracy_axis, chart, linear_axis, log_axis
from prunus.reporting.render.table import Column, Interval, RunStyle, Table
from prunus.reporting.render.text import NBSP, esc, percent, top, whole_page
from prunus.reporting.section import adapted, details, note_list, part
from prunus.results.vocabulary import LossGroup
from prunus.studies.choose.limits import DRAWN, KNOWN, LIMITS, Limit
from prunus.studies.choose.outcome import CHOSEN, FITS, WORSE
from prunus.studies.choose.records import Choice, ChoiceRow, Cost, Form

STYLES = (
    ".limit .mark,.limit .whisker{display:none}.limit .line{stroke:var(--bad);stroke-dasharray:5 4}"
    ".limit text{fill:var(--bad)}.taken .mark{stroke:var(--ink);stroke-width:2.5}"
    ".pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:1rem}"
    ".choices td:last-child,.choices th:last-child{text-align:left}"
)
FIT = (CHOSEN, FITS, WORSE)
EQUALS = 7  # that cost no more and are shown at once, those with the highest accuracies first
LOGARITHMIC = 12  # largest ratio of values on a linear axis


def page(data: Choice) -> str:
    """The HTML of the page of a choice."""
    shown = data.shown
    assert shown.chosen is not None
    title = f"{shown.chosen.name} is chosen"
    if shown.chosen.accuracy is not None:
        title += f": it solves {percent(shown.chosen.accuracy)} %"
    body = f"{_top(data, title)}<main>{_table(data)}{_charts(data)}{_costs(data)}{_meaning(data)}</main>"
    return whole_page(title, body, {"choice": data.to_json()}, STYLES)


def _top(data: Choice, title: str) -> str:
    declared, shown = data.declared, data.shown
    sizes = ", ".join(f"{task}, {len(names)} problems" for task, names in declared.problems.items())
    users = f" · {declared.users} users at once" if declared.users > 1 else ""
    most = " and ".join(limit.most_words(declared) for limit in (*KNOWN, *DRAWN) if limit.of(declared) < math.inf)
    facts = f"prunus choose · {esc(declared.engine)} · <bdi>{esc(sizes)}</bdi> · at most {esc(most)}{users}"
    lead = f"{sentence(shown.claims[0].partition('; ')[0])} {sentence(shown.claims[1])}"  # the rest stands below
    (chosen,) = [row for row in shown.choices if row.state == CHOSEN]
    if chosen.seconds is not None and chosen.p95 is not None:
        lead += f" An answer takes {chosen.seconds:.3g} s on average, and 95 % of them at most {chosen.p95:.3g} s."
        lead += " So not all keep the limit." * (chosen.p95 > declared.seconds)
    return top(facts, title, lead, [sentence(note) for note in shown.notes])


def sentence(text: str) -> str:
    """A text as a sentence, which begins with a capital unless it begins with a name."""
    first = text[:1].upper() if text.partition(" ")[0].isalpha() else text[:1]
    return f"{first}{text[1:].removesuffix('.')}."


def styles_of(data: Choice) -> dict[str, RunStyle]:
    """The style of each form by its run: the chosen one has a colour, the others dashes and markers."""
    chosen, tones = data.shown.chosen and data.shown.chosen.run, (LossGroup.NOT_FINISHED, LossGroup.RULED_OUT)
    return {
        form.run: RunStyle(place, form.name, tones[form.run == chosen], place % 4, place % 5)
        for place, form in enumerate(data.declared.forms)
    }


def _charts(data: Choice) -> str:
    known = [row for row in data.shown.choices if row.accuracy is not None and row.seconds is not None]
    pictures = [
        adapted(partial(_scatter, data, known, limit), limit.heading)
        for limit in LIMITS
        if limit.of(data.declared) < math.inf
    ]
    terms = (
        "Lines join the budgets of a form. The dashed line is the limit, and the stepped one the front: the choices"
        " than which, by the estimates, none costs less and solves more. The chosen one has a thick rim, and a bar of"
        " what the rows leave open. Choices that do not fit are in the table only."
    )
    drawn = f'<div class="pair">{"".join(pictures)}</div>'
    return part("front", "Accuracy against what it costs", "", drawn, terms)


def _scatter(data: Choice, known: Sequence[ChoiceRow], bound: Limit, frame: Frame) -> Picture:
    """Accuracy over what choices cost, a line for each form and number of votes; the front; the limit."""
    styles, lines = styles_of(data), list[Line]()
    limit, title = bound.of(data.declared) / bound.scale, bound.axis

    def cost(row: ChoiceRow) -> float:
        return bound.value(row) / bound.scale

    several = len({form.model for form in data.declared.forms}) > 1
    for run, style in sorted(styles.items(), key=lambda item: item[1].tone == LossGroup.RULED_OUT):
        for votes in data.declared.votes:
            rows = sorted((row for row in known if row.run == run and row.votes == votes), key=cost)
            spots = [_point(row, cost(row)) for row in rows]
            if spots:
                name = (
                    (f"{rows[0].model} " if several else "") + rows[0].form + (f", {votes} votes" if votes > 1 else "")
                )
                lines.append(Line(style.css, spots, style.marker, name))
            lines += [
                Line(f"{style.css} taken", [spot._replace(low=100 * row.low, high=100 * row.high)], style.marker)
                for row, spot in zip(rows, spots, strict=True)
                if row.state == CHOSEN and row.low is not None and row.high is not None
            ]
    y_axis = accuracy_axis(lines)
    values = [spot.x for line in lines for spot in line.points]
    x_axis = _axis(values, limit, title)
    if limit <= 3 * max(values):
        note = f"{limit:,.4g}\nThe limit\n{title}"
        ends = [Point(limit, y, note=note) for y in (y_axis.low, y_axis.high)]
        lines.append(Line("limit", ends, name="your limit"))
    steps = [(x, 100 * y) for x, y in front([(cost(row), row.accuracy or 0.0) for row in known])]
    return chart(lines, x_axis, y_axis, f"Accuracy against {title.lower()}", frame=frame, steps=steps)


def _axis(values: Sequence[float], limit: float, title: str) -> Axis:
    shown = [*values, limit] if limit <= 3 * max(values) else [*values]
    if max(shown) > LOGARITHMIC * min(shown):
        return log_axis(shown, title)
    return linear_axis(0, max(shown), title)


def _point(row: ChoiceRow, x: float) -> Point:
    accuracy = row.accuracy or 0.0
    between = f" ({percent(row.low)} to {percent(row.high)})"
    note = f"{row.seconds:.3g} s, {show_bytes(row.bytes)}\n{row.name}\n{percent(accuracy)} %{between}"
    return Point(x, 100 * accuracy, note=note)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Pareto front of points (cost, accuracy): those than which none costs no more and has more accuracy."""
    found = list[tuple[float, float]]()
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or accuracy > found[-1][1]:
            found.append((cost, accuracy))
    return found


def _table(data: Choice) -> str:
    """Tables of the chosen choice with others that cost no more and are not told apart from it, and, folded, of all."""
    rows = data.shown.choices
    (chosen,) = [row for row in rows if row.state == CHOSEN]
    cheaper = [
        row for row in rows if row.state == FITS and row.bytes <= chosen.bytes and _seconds(row) <= _seconds(chosen)
    ]
    fit = sum(row.state in FIT for row in rows)
    more = f"; the {EQUALS} that solve most are shown" * (len(cheaper) > EQUALS)
    says = f"Of {len(rows)} choices, {fit} fit. " + (
        f"{len(cheaper)} of these cost no more and are not told apart from it{more}."
        if cheaper
        else "None is as good and cheaper."
    )
    sure = f"{100 - 100 * data.declared.alpha:g}{NBSP}%"
    says += f" Below each accuracy stands what the rows leave open, with {sure} confidence for all choices together."
    first = choice_table(
        data,
        [chosen, *sorted(cheaper, key=lambda row: (-(row.accuracy or 0.0), _seconds(row)))[:EQUALS]],
        "The choice and its cheaper equals",
        "equals",
        " cards",
    )
    every = choice_table(data, rows, "All choices", "choices")
    return part("choices", "The choice, and what costs less", says, first.html() + details("All choices", every.html()))


def _seconds(row: ChoiceRow) -> float:
    return math.inf if row.seconds is None else row.seconds


def choice_table(data: Choice, shown: Sequence[ChoiceRow], title: str, name: str, css: str = "") -> Table:
    """A row for each of these choices; columns that say the same of all of them are left out."""
    styles, rows = styles_of(data), list[tuple[RunStyle | str, list[Any]]]()
    votes = len(data.declared.votes) > 1
    problems = len({row.problems for row in data.shown.choices}) > 1
    for row in shown:
        worse = None if row.better_by is None or row.state == CHOSEN else row.better_by
        solved = None if row.accuracy is None else Interval(row.accuracy, row.low, row.high)
        numbers = [row.budget, *[row.votes] * votes, row.bytes, row.seconds, row.p95, solved, worse]
        state = "★ chosen" if row.state == CHOSEN else row.state
        rows.append((styles[row.run], [*numbers, *[row.problems] * problems, state]))
    columns = [
        Column("form", "Model and form"),
        Column("budget", "Budget|tokens"),
        *[Column("votes", "Votes")] * votes,
        Column("bytes", "Memory", show_bytes),
        Column("seconds", "Seconds|mean", lambda value: f"{value:.3g}"),
        Column("p95", "Seconds|95 %", lambda value: f"{value:.3g}"),
        Column("accuracy", "Solved|%", percent),
        Column("better_by", "Better by|points, at most", lambda value: f"{100 * value:.1f}"),
        *[Column("problems", "Problems")] * problems,
        Column("state", ""),
    ]
    return Table(name, title, f"data choices sortable{css}", columns, rows, keep=True)


def _costs(data: Choice) -> str:
    """What was measured of each form, and how."""
    styles, rows = styles_of(data), list[tuple[RunStyle | str, list[Any]]]()
    for form in data.declared.forms:
        if (cost := data.costs.forms.get(form.run)) is not None:
            rows.append((styles[form.run], _measured(form, cost)))
    columns = [
        Column("form", "Model and form"),
        Column("weights", "Weights", show_bytes),
        Column("constant", "Engine|itself", show_bytes),
        Column("peak", "Peak of|the test", show_bytes),
        Column("prompt", "Prompt|tokens/s", lambda value: f"{value:,.0f}"),
        Column("decode", "Decode|tokens/s", lambda value: f"{value:,.1f}"),
        Column("deep", "At the largest|budget", lambda value: f"{value:,.1f}"),
        Column("date", "Date"),
    ]
    table = Table("speeds", "Speeds", "data sortable", columns, rows, keep=True)
    machine = ", ".join(f"{key} {value}" for key, value in data.costs.machine.data.items() if value is not None)
    engines = sorted(
        {f"{key} {value}" for cost in data.costs.forms.values() for key, value in cost.engine.data.items()}
    )
    says = f"Measured on <bdi>{esc(machine)}</bdi>, three times in turn with the others; the median is taken."
    folded = table.html() + note_list(map(sentence, engines))
    return part("speeds", "What the forms take", says, details("Speeds and memory of every form", folded))


def _measured(form: Form, cost: Cost) -> list[Any]:
    timing = cost.times[0]
    rates = (
        timing.chains * timing.prompt_tokens / timing.prompt_seconds,
        timing.chains / timing.first,
        timing.chains / timing.last,
    )
    return [form.bytes, cost.constant, cost.peak, *rates, cost.date[:10]]


def _meaning(data: Choice) -> str:
    declared, shown = data.declared, data.shown
    alpha, total = f"{100 * declared.alpha:g}{NBSP}%", max(1, shown.full_tokens)
    lines = [
        f"Each claim is false with a probability of {alpha} at most, although it was looked at again and again, and"
        " whichever choice the rows made us take.",
        f"Which choices fit is decided by the tokens of the first {declared.pilot} rounds of problems, which are not"
        " bet on.",
        "It holds for problems like those of the set, taken in an order that follows from"
        f" {f'seed {declared.seed}' if declared.questions is None else 'their questions'}; with this sampling and"
        " grader.",
        f"It took {shown.tokens:,} tokens, {percent(shown.tokens / total)} % of what all forms that were evaluated"
        " would have taken on all problems (estimated from the rows).",
        "Seconds are those of a speed test, for the tokens of the stored chains, and for this machine alone.",
        "prunus verify choice.json --store STORE computes the claims again from the rows.",
    ]
    more = details("What this rests on", note_list(map(sentence, lines)))
    return part("meaning", "What is claimed", "", note_list(map(sentence, [*shown.claims, *shown.notes])) + more)
