"""The first screen: a list of the variants in three groups by what is known of their loss, and the curves."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from prunus.reporting.prose import original, remarks
from prunus.reporting.render.chart import Scale, size_bar
from prunus.reporting.render.table import Column, Interval, Table, Word, decided, difference, slug
from prunus.reporting.render.text import NBSP, count, esc, percent, points, probability
from prunus.reporting.report_data import ReportData, ReportedRun
from prunus.reporting.section import Section, adapted, details, soft
from prunus.reporting.sections.budgets import accuracy_against_budget
from prunus.results.cells import AsGood, Entry, RecipeVerdict
from prunus.results.contrasts import ENDS
from prunus.results.order import settled_by, two_digits
from prunus.results.verdicts import ENOUGH
from prunus.results.vocabulary import LossGroup, Verdict
from prunus.results.words import as_good_in_words, interval_in_words, loss_in_words, stops_less_often
from prunus.step import in_brief


def section(data: ReportData) -> Section:
    """The list of variants beside the chart of each task, of which one is shown at a time."""
    figures = "".join(_figure(data, task) for task in data.tasks if data.has_curve(task))
    rows, tables = "", list[Table]()
    if data.others:
        tables = [verdict_table(data)]
        folded = tables[0].html() + soft(_note(data))
        if data.comparison.recipes:
            tables.append(recipe_table(data.comparison.recipes))
            folded += f"<h3>Recipes, over calibration seeds</h3>{tables[1].html()}{soft(SEEDS)}"
        rows = f'<div class="rows">{_list(data)}{details("All numbers", folded)}</div>'
    html = f'<section id="result" class="result" aria-label="Result">{rows}{figures}</section>'
    return Section("result", html, tables=tables, name="Result")


def _figure(data: ReportData, task: str) -> str:
    """The curves of a task, and what the loss of a variant means in tokens."""
    arrow = None if len(data.tasks) > 1 else data.arrow
    small = ""
    if arrow is not None and arrow.as_good is not None and arrow.as_good.estimate is not None:
        like = arrow.as_good
        small = (
            f"with {like.largest} tokens, <bdi>{esc(arrow.style.label)}</bdi> solves what {esc(original(data))} solves"
            f" with about {two_digits(like.estimate or 0.0)} (arrow)"
        )
    if len(data.in_charts) < len(data.runs):
        small += "; " * bool(small) + "without variants that are not finished"
    title = data.title("Problems solved, by thinking tokens allowed", task)
    return adapted(partial(accuracy_against_budget, data, task), title, small, data.css(task))


class ListColumn(NamedTuple):
    """A column of the list. css: its class. head: HTML. cells: the HTML for each variant; empty where it is unknown."""

    css: str
    head: str
    cells: Sequence[str]


def _list(data: ReportData) -> str:
    """The variants with their bars, in groups."""
    entries = data.comparison.others
    places = [place for columns in COLUMNS for place in columns(data)]
    heads = "".join(f'<th scope="col" class="{place.css}">{place.head}</th>' for place in places)
    body = ""
    rows = zip(data.others, entries, range(len(entries)), strict=True)
    for group, members in groupby(rows, key=lambda row: row[1].verdict.group):
        some = list(members)
        text = group.heading(data.comparison.margin).replace("the original", original(data))
        more = settled_by([entry for _, entry, _ in some]) if group is LossGroup.NOT_DECIDED else ""
        small = f" <small>{esc(more)} probably would</small>" if more else ""
        sign = f"{group.sign} " if group.sign else ""
        title = f'<tr class="group"><th colspan="{len(places) + 1}" scope="rowgroup">{sign}{esc(text)}{small}</th></tr>'
        body += f'<tbody class="t-{group}">{title}{"".join(_row(data, *row, places) for row in some)}</tbody>'
    first = '<th scope="col" class="n">Variant</th>'
    return (
        f'<table class="list" aria-label="Variants"><thead><tr>{first}{heads}</tr></thead>{body}</table>'
        f"{_all(data)}{soft(_how_to_read(data))}"
    )


def _all(data: ReportData) -> str:
    """A box that shows the rows of every variant in all lists, where some are hidden at first."""
    if not any(run.style.rest for run in data.others):
        return ""
    box = '<input type="checkbox" id="all" autocomplete="off">'
    return f'<p class="all screen"><label>{box} Show all {len(data.others)} variants</label></p>'


def _row(data: ReportData, run: ReportedRun, entry: Entry, at: int, places: Sequence[ListColumn]) -> str:
    name = f"run-{slug(run.run.run_id)}"
    star = ' <span class="star" title="the smallest of which a loss of the limit is ruled out">★</span>'
    did = f"<small><bdi>{esc(in_brief(run.run.model.manifest.history))}</bdi></small>"
    link = f'<a href="#{name}"><bdi>{esc(run.style.label)}</bdi></a>{star if at == data.chosen else ""}'
    head = f'<th scope="row" class="n">{link}{did}</th>'
    cells = "".join(f'<td class="{place.css}">{place.cells[at]}</td>' for place in places)
    return f'<tr class="{run.style.css} keep" id="{name}">{head}{cells}</tr>'


def _scale(data: ReportData) -> Scale:
    """The scale of the bars, in points."""
    entries = data.comparison.others
    ends = [decided(entry) for entry in entries]
    near = [end for entry, both in zip(entries, ends, strict=True) for end in both if entry.verdict != Verdict.WORSE]
    every = [end for both in ends for end in both] + [entry.primary.difference for entry in entries]
    return Scale.of(data.margin_points, *([end for end in some if math.isfinite(end)] for some in (near, every)))


def _change(data: ReportData) -> list[ListColumn]:
    """A bar with the interval that decides."""
    scale, bars = _scale(data), list[str]()
    for run, entry in zip(data.others, data.comparison.others, strict=True):
        limit, measured = entry.margin.points(entry.primary.base_accuracy), entry.primary.difference
        between = interval_in_words(entry) or "unknown"
        label = f"{run.style.label}: measured {points(measured)} points, 95 % range {between}"
        bars.append(scale.bar(measured, *decided(entry), limit, label).html())
    return [ListColumn("d", f"Change of accuracy, points{scale.head().html()}", bars)]


def _measured(data: ReportData) -> list[ListColumn]:
    """The change that was measured, the loss in words, and caveats."""
    cells = []
    for entry in data.comparison.others:
        loss = loss_in_words(entry).removesuffix(" points")
        small = "".join(f"<small>{esc(text)}</small>" for text in (loss, *remarks(entry)) if text)
        cells.append(f"<b>{points(entry.primary.difference)}</b>{small}")
    return [ListColumn("v", "measured", cells)]


def _memory(data: ReportData) -> list[ListColumn]:
    """The bytes, else the parameters, as shares of the original's; no column where neither is known."""
    for name, of, unit in (("Memory", "nbytes", megabytes), ("Parameters", "parameters", count)):
        sizes, whole = [getattr(run, of) for run in data.others], getattr(data.base, of)
        if whole and any(size and size != whole for size in sizes):
            cells = [
                f"{size_bar(n / whole).html()}<span>{100 * n / whole:.0f}{NBSP}%</span>" if n else "" for n in sizes
            ]
            return [ListColumn("s", f"{name}<small>of {unit(whole)}</small>", cells)]
    return []


def megabytes(size: int) -> str:
    """`3.85 MB`, `1.2 GB`."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= power:
            return f"{float(f'{size / power:.3g}'):g}{NBSP}{unit}"
    return f"{size}{NBSP}bytes"


def _as_good(data: ReportData) -> list[ListColumn]:
    found = [run.as_good for run in data.others]
    if not any(found):
        return []
    largest = max(like.largest for like in found if like)
    head = f"As good as<br>{esc(original(data))} at<small>tokens, of {largest}</small>"
    return [ListColumn("t", head, [_tokens(like, original(data)) for like in found])]


def _tokens(like: AsGood | None, who: str) -> str:
    """`≈ 130`, and the interval below it. who: the base, named on narrow screens, which have no heads."""
    if like is None:
        return ""
    shown = as_good_in_words(like)
    low = "" if like.low is None else f"over {like.low}" if like.high is None else f"{like.low} to {like.high}"
    between = low or ("" if like.high is None else f"below {like.high}")
    return f"<i>= {esc(who.removeprefix('the '))} at </i><span>{shown}</span><i> tokens</i><small>{between}</small>"


def _per_solved(data: ReportData) -> list[ListColumn]:
    """Tokens per solved problem at the largest budget."""
    found = [entry.stopping for entry in data.comparison.others]
    if not any(of.per_correct for of in found):
        return []
    own = max((of.base_per_correct or 0.0 for of in found), default=0.0)
    head = f"Tokens per<br>solution<small>{esc(original(data).removeprefix('the '))} {count(own)}</small>"
    return [ListColumn("q", head, [count(of.per_correct) if of.per_correct else "" for of in found])]


def _stops(data: ReportData) -> list[ListColumn]:
    """Answers that stop by themselves at the largest budget: counts if runs have equally many answers, else shares."""
    ends = [entry.stopping.endings.get(ENDS) for entry in data.comparison.others]
    known = [cell for cell in ends if cell]
    if not known:
        return []
    single = len(data.tasks) == 1 and all(cell.samples == 1 and cell.problems is None for cell in known)
    same = single and len({cell.n for cell in known}) == 1
    cells = []
    for entry, cell in zip(data.comparison.others, ends, strict=True):
        fewer = "<small>fewer</small>" if stops_less_often(entry) else ""
        number = "" if cell is None else f"{round(cell.share * cell.n)}" if same else f"{percent(cell.share)}{NBSP}%"
        cells.append(number and f"<span>{number}</span>{fewer}")
    of = known[0].n if same else f"{original(data)}: {percent(known[0].base_share)}{NBSP}%"
    return [ListColumn("e", f"Stops by<br>itself<small>{'of ' * same}{esc(of)}</small>", cells)]


# Columns of the list, each a function of the data of the page; it returns no column where nothing is known.
COLUMNS = (_memory, _change, _measured, _as_good, _per_solved, _stops)


def _how_to_read(data: ReportData) -> str:
    text = (
        f"<b>Dot</b>: measured. <b>Bar</b>: what the data leave open, each end with 95{NBSP}% confidence. Right of the"
        " limit: no loss that matters; left of 0: worse."
    )
    return text + " Left of the double line: coarser." * (_scale(data).far is not None)


SEEDS = (
    "A verdict above is about one checkpoint; these are estimates of the recipe, of which each calibration seed "
    "makes another checkpoint. Seeds and problems are both random: the standard error has a part of each, and the "
    "interval is a t interval with the degrees of freedom (df) of Satterthwaite, which takes seeds to differ "
    "normally. A few seeds cannot show that no other one collapses, so a word other than not decided rests on bets "
    "with one value per seed, corrected for the number of recipes (Holm). From the number of seeds needed on, a "
    "recipe that changes nothing can have run."
)


def recipe_table(recipes: Sequence[RecipeVerdict]) -> Table:
    """The verdicts on recipes that have runs of several calibration seeds."""
    rows = [
        (
            f"{run.label}, over {len(run.seeds)} calibration seeds",
            [
                Word(run.verdict.shown, "" if run.needed is None else f"{count(run.needed)} seeds needed"),
                difference(run), " ".join(map(points, run.each)),
                run.se, run.se_seeds, run.se_problems, run.freedom, run.n,
            ],
        )
        for run in recipes
    ]  # fmt: skip
    columns = [
        Column("recipe", "Recipe"), Column("verdict", "Verdict"), Column("difference", "Difference,|points", points),
        Column("each", "of each seed"), Column("se", "Standard error,|points", percent),
        Column("se_seeds", "of seeds", percent), Column("se_problems", "of problems", percent),
        Column("df", "df", count), Column("n", "Problems", count),
    ]  # fmt: skip
    return Table("recipes", "Recipes over calibration seeds", "data", columns, rows, keep=True)


def verdict_table(data: ReportData) -> Table:
    """Verdict, range, the range of stopping, what it rests on, and scaling, a row per run."""
    rows = []
    for run in data.runs:
        entry, values = run.contrast, [None] * 7
        if entry is not None:
            cell, ends = entry.primary, entry.stopping.endings.get(ENDS)
            p = None if entry.verdict == Verdict.UNFINISHED else cell.p_margin_adjusted
            values: list[Any] = [remark(entry), Interval(cell.difference, *decided(entry)), difference(cell)]
            values += [p, cell.mde]
            word = entry.stops.shown if entry.stops else ""
            stops = ends and Interval(ends.difference, ends.gain_low, ends.gain_high, word)
            values += [scaling_word(entry), stops]
        rows.append((run.style, values))
    columns = [
        Column("run", "Variant"), Column("verdict", "Verdict"),
        Column("difference", "Change, points|(range that decides)", points),
        Column("bootstrap", "alone|(bootstrap)", points),
        Column("p_margin", "p of a loss|of the limit", probability), Column("mde", "MDE,|points", percent),
        Column("scaling", "Scaling,|% kept"), Column("stops", "Stops by itself,|change, points", points),
    ]  # fmt: skip
    return Table("verdicts", "Verdicts", "verdicts sortable", columns, rows, keep=True)


def _note(data: ReportData) -> str:
    several = any(entry.macro for entry in data.comparison.others)
    over = " averaged over tasks" if several else ""
    looks, runs = data.comparison.looks, len(data.others)
    tests = runs if looks is None else looks.comparisons
    corrected = f"corrected for {tests} comparisons (Holm), named or not" if tests > 1 else "for one variant"
    return (
        f"Change of accuracy, averaged over log<sub>2</sub> budget{over}, paired by problem. The range that decides "
        "rests on the tests of the verdict; the bootstrap (BCa) is an interval of this comparison alone, and decides "
        f"nothing. Verdicts, p and MDE are {corrected}: on at most 2.5 % of such pages is any variant wrongly better, "
        "on 2.5 % wrongly worse, and on 5 % of them a loss wrongly ruled out, if the problems (or the groups of those "
        "that belong together) are independent of each other. MDE: the true loss that is detected with 80 % power. "
        f"Scaling: accuracy gained per doubling of the budget, in % of the original's; kept if at least "
        f"{100 * ENOUGH:g} %."
    )


def remark(entry: Entry) -> Word:
    """The verdict, with caveats."""
    return Word(entry.verdict.shown, "; ".join(remarks(entry)))


def scaling_word(entry: Entry) -> Word | None:
    """The verdict on scaling (kept, lost or not decided), with the kept share of the base's slope."""
    slope = entry.scaling
    if slope is None or slope.word is None:
        return None
    share, low, high = map(percent, (slope.retention, slope.retention_low, slope.retention_high))
    return Word(slope.word.shown, "" if slope.retention is None else f"{share}, {low} to {high}")
