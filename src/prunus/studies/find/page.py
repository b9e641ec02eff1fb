"""The page of a search: the ladder with its decisions, how the bounds went, accuracies, and what it cost.

It is made from the certificate alone, in the style of the report (reporting/page.py), and loads nothing.
"""

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from prunus.cards.certified import about_searches, claims_of_found
from prunus.disk import show_bytes, write_text
from prunus.reporting.prose import sentence
from prunus.reporting.render.chart import (
    PANEL,
    Line,
    Picture,
    Point,
    accuracy_axis,
    budget_axis,
    chart,
    linear_axis,
)
from prunus.reporting.render.table import BASE, Column, Interval, RunStyle, Table, Word
from prunus.reporting.render.text import NBSP, count, esc, one_line, percent, points, short, top, whole_page
from prunus.reporting.section import adapted, details, hint, note_list, part, run_figure, soft
from prunus.results.certificate import (
    Certificate,
    Declaration,
    DeclaredLadder,
    Endings,
    SearchResult,
    ShownLadder,
    ShownRung,
)
from prunus.results.contrasts import ENDINGS
from prunus.results.ladder import ACCURACY, ENDPOINTS
from prunus.results.vocabulary import LossGroup, RungVerdict
from prunus.results.words import beside
from prunus.settings.margins import Margin
from prunus.statistics.anytime import with_estimate
from prunus.step import in_brief
from prunus.studies.find.certificate import caution, dense_area, stops

NAME = "find.html"
UNITS = ("kB", "MB", "GB")
UNREACHED = "not looked at"
STYLES = (
    ".certified{color:var(--ok)}.certified::before{content:'\\2713'}"
    ".refused{color:var(--bad)}.refused::before{content:'\\2717'}"
    ".not-looked-at{color:var(--soft);font-weight:400}"
    ".path .mark{fill-opacity:0;stroke-opacity:0}"
    ".ladder td:nth-child(3),.ladder th:nth-child(3){text-align:left}.ladder td:nth-child(3) small{white-space:normal}"
)


def write_page(data: Certificate, file: Path) -> None:
    """Write the page of a certificate to a file."""
    write_text(file, page(data))


def page(data: Certificate) -> str:
    """The HTML of the page of a certificate."""
    declared, shown = data.declared, data.shown
    title = _title(declared, shown, data.endings)
    body = f"{_top(data, title)}<main>{_glance(declared, shown)}{_paths(declared, shown)}{_meaning(data)}</main>"
    return whole_page(title, body, {"certificate": data.to_json()}, STYLES)


def _title(declared: Declaration, shown: SearchResult, ended: Endings | None) -> str:
    found = shown.found
    if found is None:
        return f"No rung was certified: {one_line(declared.model.name)} stays as it is"
    area = dense_area(declared, shown)
    if area is not None and declared.margin.covers(area):
        return f"{one_line(found.name)} is certified for a limit of all that the original solves"
    if not stops(declared, ended):
        return f"{one_line(found.name)} still solves, and stops as seldom as the original"
    return f"{one_line(found.name)} still solves and still stops"


def _top(data: Certificate, title: str) -> str:
    declared, shown = data.declared, data.shown
    draws, sizes = declared.samples, {task: len(names) for task, names in declared.problems.items()}
    groups = f" in {declared.number_of_groups} groups" if declared.groups else ""
    of_dense = f" ({declared.base_samples} of the original)" if declared.base_samples is not None else ""
    facts = (
        f"prunus find · <bdi>{esc(declared.model.name)}</bdi> · "
        f"<bdi>{esc(', '.join(f'{task}, {number} problems' for task, number in sizes.items()) + groups)}</bdi> × "
        f"{draws} answer{'' if draws == 1 else 's'}{of_dense} · budgets {esc(', '.join(map(str, declared.budgets)))}"
    )
    found, whole = shown.found, declared.model.size
    lead = f"Losses of {_losses(declared)}, were not ruled out for any rung."
    if found:
        (rung,) = [rung for rung in shown.rungs if rung.run == found.run]
        size = in_brief(rung.recipe) or f"{_share(found.removed)}{NBSP}% of the weights are zero or removed"
        size = f"{size[:1].upper()}{size[1:]}; what memory it takes was not looked at"
        if whole is not None and found.size is not None:
            size = "It has {} of the original's {}".format(*(short(n, UNITS) for n in (found.size, whole)))
            size += "" if declared.model.tokens is None else f", with the cache of {declared.model.tokens:,} tokens"
        sure = f"{100 - 100 * declared.alpha:g}{NBSP}% confidence"
        lead = f"{size}. Losses of {_losses(declared)}, are ruled out with {sure}."
    warning = caution(declared, shown, data.endings)
    notes = [sentence(warning[0].upper() + warning[1:])] if warning is not None else []
    return top(facts, title, lead, notes)


def _share(removed: float) -> str:
    return f"{100 * removed:.3g}"


def _losses(declared: Declaration) -> str:
    """The two losses that are ruled out for a certified rung."""
    accuracy = amount(declared.margin, "accuracy", "what the original solves")
    ends = amount(declared.stop_margin, "answers that stop by themselves", "its answers that stop by themselves")
    return f"{accuracy} or more, and of {ends} or more"


def amount(margin: Margin, of: str, base: str) -> str:
    """`2 points of accuracy`, or `5 % of what the original solves`, for a margin as it is declared."""
    return margin.words(base) if margin.relative else f"{margin.words()} of {of}"


def styles_of(declared: Declaration, shown: SearchResult) -> dict[str, RunStyle]:
    """The style of every declared rung by its run: the colour of its decision, dashes and markers along its ladder."""
    words, styles, index = {rung.run: rung.word for rung in shown.rungs}, dict[str, RunStyle](), 0
    for ladder in declared.ladders:
        for place, rung in enumerate(ladder.rungs):
            index += 1
            word = words.get(rung.run)
            tone = LossGroup.NOT_FINISHED if word is None else word.group
            styles[rung.run] = RunStyle(index, rung.name, tone, place % 4, 1 + place % 4)
    return styles


def _dense(declared: Declaration) -> RunStyle:
    return RunStyle(0, f"{declared.model.name}, the original", BASE)


def _glance(declared: Declaration, shown: SearchResult) -> str:
    """The ladders with what was decided, and the curves."""
    alpha = declared.alpha / len(declared.ladders)
    rungs, looked_at = len(declared.rungs), len(shown.rungs)
    terms = (
        f"Rungs are tried in this order, until one is not certified: {looked_at} of {rungs} were looked at. "
        "Differences, in points, have bounds that hold after any number of problems, each with "
        f"{100 * (1 - alpha):g}{NBSP}% confidence."
    )
    tables = []
    for ladder, seen in zip(declared.ladders, shown.ladders, strict=True):
        title = f"<bdi>{esc(ladder.name)}</bdi>" if len(declared.ladders) > 1 else "The ladder"
        tables.append(f'<div class="head"><h2>{title}</h2>{hint(terms) if not tables else ""}</div>')
        tables.append(ladder_table(declared, shown, ladder, seen).html())
    return (
        '<section id="ladder" class="result" aria-label="The ladder">'
        f'<div class="rows">{"".join(tables)}</div>{_curves(declared, shown)}</section>'
    )


def ladder_table(declared: Declaration, shown: SearchResult, ladder: DeclaredLadder, seen: ShownLadder) -> Table:
    """One row per declared rung: what it removes (its bytes, if the ladder is by bytes), decision, bounds, tokens."""
    every, styles = {rung.run: rung for rung in seen.rungs}, styles_of(declared, shown)
    whole = declared.model.size
    first = [whole or 0.0, None, None, None, None, shown.dense.tokens]
    rows: list[tuple[RunStyle | str, list[Any]]] = [(_dense(declared), first)]
    for rung in ladder.rungs:
        style, reached = styles[rung.run], every.get(rung.run)
        size = rung.removed if whole is None else (reached or rung).size
        if reached is None:
            rows.append((style, [size, Word(UNREACHED), None, None, None, None]))
            continue
        why = reached.why or ", ".join(_words(end) for end in reached.failed)
        ends = [Interval(*with_estimate(*reached.path.by(end)[-1])) if reached.rounds else None for end in ENDPOINTS]
        decision = Word(reached.word.shown, why)
        rows.append((style, [size, decision, *ends, reached.problems, reached.tokens]))
    columns = [
        Column("rung", "Rung"),
        Column("removed", "To remove, %", _share) if whole is None else Column("bytes", "Bytes", show_bytes),
        Column("decision", "Decision"),
        Column("accuracy", f"Accuracy|change{_kept(declared.margin)}", beside(declared.margin)),
        Column("ends", f"Stops by itself|change{_kept(declared.stop_margin)}", beside(declared.stop_margin)),
        Column("problems", "Problems|needed", count),
        Column("tokens", "Tokens", count),
    ]
    return Table(f"ladder-{ladder.name}", f"Decisions of {ladder.name}", "data ladder cards", columns, rows, keep=True)


def _kept(margin: Margin) -> str:
    """Addition to the heading of a column for a relative margin: the share of the dense model's result; else empty."""
    return f" over {100 - 100 * margin.size:g} % of the original" if margin.relative else ""


def _words(end: str) -> str:
    return end if end == ACCURACY else ENDINGS[end].words


def _paths(declared: Declaration, shown: SearchResult) -> str:
    """The bounds over the problems, two panels for each rung that was looked at."""
    styles, panels = styles_of(declared, shown), []
    limits = {end: declared.margin if end == ACCURACY else declared.stop_margin for end in ENDPOINTS}
    margins = {end: 0.0 if margin.relative else margin.size for end, margin in limits.items()}
    least = {
        end: f"{100 - 100 * margin.size:g} % of the original's" for end, margin in limits.items() if margin.relative
    }
    for rung, end in product(shown.rungs, ENDPOINTS):
        if rung.rounds:
            decisive = rung.certified or end in rung.failed
            decision = rung.word if decisive else RungVerdict.CANNOT_TELL
            small = esc(f"{_words(end)}: {decision.shown}")
            panels.append(run_figure(styles[rung.run], path(rung, end, margins[end], styles), small))
    if not panels:
        return ""
    several = len(declared.problems) > 1
    note = (
        "Difference from the original after each "
        + ("round with problems of every task" if several else "problem")
        + ", in points, with the bounds that hold at all times at once. The shaded zone is your limit: a rung is "
        "certified when the lower bounds of both endpoints lie within it or above, and refused when an upper bound is "
        "below it."
    )
    if least:
        which = " and ".join(
            _words(end) if len(least) == 1 else f"{text} ({_words(end)})" for end, text in least.items()
        )
        note += f" With a limit relative to the original, the difference is from what is to be kept of it: {which}."
    return part("paths", "How it was decided", "", f'<div class="panels">{"".join(panels)}</div>', note)


def path(rung: ShownRung, end: str, margin: float, styles: Mapping[str, RunStyle]) -> Picture:
    """Chart of the bounds of an endpoint of a rung over the rounds; too wide ones are left out, the limit is shaded."""
    numbers = [[100 * value for value in with_estimate(*row)] for row in rung.path.by(end)]
    reach = max([300 * margin, 1.0, *(1.2 * abs(value) for value in numbers[-1])])
    style = styles[rung.run]

    spots = []
    for t, (estimate, low, high) in zip(rung.path.rounds, numbers, strict=True):
        note = f"After {t}\n{style.label}\n{points(estimate / 100)} ({points(low / 100)} to {points(high / 100)})"
        shown = -reach <= low and high <= reach  # bounds that are wider are not drawn
        ends = (low, high) if shown else (math.nan, math.nan)
        spots.append(Point(float(t), max(-reach, min(reach, estimate)), *ends, note))
    last = rung.path.rounds[-1]
    return chart(
        [Line(style.css, spots, style.marker)],
        linear_axis(0, max(2, last), "Problems", 4),
        linear_axis(-reach, reach, "Points", 4, sign=True),
        f"{style.label}: bounds of {_words(end)} over problems",
        frame=PANEL,
        zone=(-100 * margin, 0.0),
        zero_line=True,
        css="path",
    )


def _curves(declared: Declaration, shown: SearchResult) -> str:
    """Accuracy over budget of the dense model and of the rungs that were looked at."""
    rungs = [rung for rung in shown.rungs if rung.accuracy]
    if not rungs:
        return ""
    styles, longest = styles_of(declared, shown), max(rungs, key=lambda rung: rung.looked)
    lines = []
    for style, values in [
        (_dense(declared), longest.dense_accuracy or []),
        *((styles[rung.run], rung.accuracy or []) for rung in rungs),
    ]:
        spots = {
            budget: _spot(budget, style.label, *with_estimate(*value))
            for budget, value in zip(declared.budgets, values, strict=True)
            if budget > 0
        }
        name = style.label if style.index else "the original"
        lines += [Line(style.css, list(spots.values()), style.marker, name)] if spots else []
    if not lines:
        return ""
    positive = [budget for budget in declared.budgets if budget > 0]
    axes = (budget_axis(positive), accuracy_axis(lines), "Problems solved, by thinking tokens allowed")
    terms = (
        f"Each over the problems that it was evaluated on. Bars: what the rows leave open, each alone with 95{NBSP}%"
        " confidence. The differences in the table are paired, so they are known better than two bars suggest."
    )
    title = f"Accuracy against the thinking budget{hint(terms)}"
    return adapted(lambda frame: chart(lines, *axes, frame=frame, whiskers=True), title)


def _spot(budget: int, name: str, accuracy: float, low: float, high: float) -> Point:
    note = f"Budget {budget}\n{name}\n{percent(accuracy)} % ({percent(low)} to {percent(high)})"
    return Point(float(budget), 100 * accuracy, 100 * low, 100 * high, note)


def _meaning(data: Certificate) -> str:
    """What is claimed and what is not, which searches came before, and how to check it."""
    declared, shown = data.declared, data.shown
    certified, refused = (
        sum(rung.word == word for rung in shown.rungs) for word in (RungVerdict.CERTIFIED, RungVerdict.REFUSED)
    )
    share = shown.tokens / max(1, shown.full_grid_tokens)
    claims = [f"{claim.removesuffix('.')}." for claim in claims_of_found(shown)]
    lines = [
        f"The probability that any of the certified rungs ({certified}) loses a limit or more is at most "
        f"{100 * declared.alpha:g} %, for any number of rungs, and although it was looked at after every problem; "
        "with other searches the probabilities add up.",
        *(f"{line}." for line in about_searches(data)),
        "Each claim is about one checkpoint, not about its recipe with other calibration data.",
        "This holds for problems like those of the problem set, which were taken in a random order that follows from "
        f"seed {declared.seed}; under these budgets, this sampling and this grader.",
        "It assumes that groups of problems are independent of each other, and counts each group as one."
        if declared.groups
        else "It assumes that problems are independent of each other.",
        "It says nothing about other tasks, larger budgets, speed or safety. A refused rung "
        f"({refused}) is shown to lose more; one that is not decided may be harmless, with too few problems for it.",
        f"The search took {count(shown.tokens)} tokens, {percent(share)} % of the {count(shown.full_grid_tokens)}"
        " that all rungs and the original in full would have taken (estimated from the rows).",
        "prunus verify certificate.json --store STORE computes all of this again from the rows of the store.",
    ]
    more = details("What this rests on, and what it does not say", note_list(lines))
    return part("meaning", "What is claimed", "", (note_list(claims) if claims else soft("Nothing.")) + more)
