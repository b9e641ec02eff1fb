"""The verdict on every run against the base, with the numbers that decide it."""

from collections.abc import Sequence
from typing import Any

from prunus.reporting import prose
from prunus.reporting.prose import repeats
from prunus.reporting.render.table import Column, Interval, Table, Word, difference
from prunus.reporting.render.text import count, esc, percent, points, probability
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, details, part, soft
from prunus.results.cells import Entry, RecipeVerdict
from prunus.results.contrasts import ENDS, STOPS
from prunus.results.verdicts import BETTER, ENOUGH, OPEN, UNFINISHED, WITHIN, WORSE
from prunus.results.words import in_words


def section(data: ReportData) -> Section:
    """The table of verdicts with what they rest on, and those on recipes; empty if there is only the base."""
    alone = "".join(soft(esc(f"{sentence}.")) for sentence in repeats(data.comparison))
    if not data.others:
        return Section("verdicts", part("verdicts", "Verdicts", "", alone) if alone else "")
    several = any(entry.macro for entry in data.comparison.others)
    over = " averaged over tasks" if several else ""
    where = f" The last two columns are for task <bdi>{esc(data.tasks[0])}</bdi>." if several else ""
    undecided = any(entry.verdict == OPEN for entry in data.comparison.others)
    settling = (
        " Beside cannot tell stands what detects a true difference as large as the observed one (or as the margin, if "
        "that is larger) with 80 % power: draws per problem, or problems with the present number of draws. Where these "
        "problems are enough for that, the true difference is probably smaller. No number of problems is sure to give "
        "another word."
    )
    runs = len(data.others)
    looks = data.comparison.looks
    tests = runs if looks is None else looks.comparisons
    corrected = f"corrected for {tests} comparisons (Holm), named or not" if tests > 1 else "for one variant"
    note = (
        f"Difference over the curve: accuracy minus the base's, averaged over log<sub>2</sub> budget{over}, paired by "
        f"problem, with a 95 % interval. All verdicts, p and MDE are {corrected}: on at most 2.5 % of such pages is "
        "any variant wrongly better, on 2.5 % wrongly worse, and on 5 % wrongly non-inferior, if the problems (or the "
        "groups of those that belong together) are independent of each other. Non-inferior, within the margin: a "
        f"loss of {data.comparison.margin.words()} or more is ruled out, by a bound that is valid for any number "
        "of problems. MDE, minimum detectable effect: the true difference that is detected with 80 % power. Scaling: "
        f"accuracy gained per doubling of the budget, in % of the base's. It is kept if this is at least "
        f"{100 * ENOUGH:g} %, and lost if it is less, each with 95 % confidence. Chains "
        f"that end by themselves: at the largest budget, with a margin of "
        f"{data.comparison.stop_margin.words(STOPS)}.{settling if undecided else ''}{where}"
    )
    table = verdict_table(data)
    seeds = recipe_table(data.comparison.recipes) if data.comparison.recipes else None
    more = "" if seeds is None else f"<h3>Recipes, over calibration seeds</h3>{seeds.html()}{soft(SEEDS)}"
    numbers = details("Verdicts in numbers", table.html() + soft(note))
    says = f"Of {runs} variants: {prose.counts(data.comparison.others)}." if runs > 1 else ""
    html = part("verdicts", "Verdicts", says, f"{alone}{numbers}{more}", TERMS)
    return Section("verdicts", html, tables=[table] if seeds is None else [table, seeds], name="Verdicts")


TERMS = (
    "<b>Non-inferior</b>: a loss of the margin or more is ruled out with 95 % confidence. <b>Worse</b>, <b>better</b>: "
    "accuracy is shown to be lower or higher. <b>Worse, within the margin</b>: lower, by less than the margin. "
    "<b>Cannot tell</b>: there are too few problems or draws to show any of these, no sign that there is no loss."
)


SEEDS = (
    "A verdict above is about one checkpoint; these are estimates of the recipe, of which each calibration seed "
    "makes another checkpoint. Seeds and problems are both random: the standard error has a part of each, and the "
    "interval is a t interval with the degrees of freedom (df) of Satterthwaite, which takes seeds to differ "
    "normally. A few seeds cannot show that no other one collapses, so a word other than cannot tell rests on bets "
    "with one value per seed, corrected for the number of recipes (Holm). From the number of seeds needed on, a "
    "recipe that changes nothing can have one."
)


def recipe_table(recipes: Sequence[RecipeVerdict]) -> Table:
    """The verdicts on recipes that have runs of several calibration seeds."""
    rows = [
        (
            f"{one.label}, over {len(one.seeds)} calibration seeds",
            [
                Word(one.verdict, "" if one.needed is None else f"{count(one.needed)} seeds needed"),
                difference(one), " ".join(map(points, one.each)),
                one.se, one.se_seeds, one.se_problems, one.freedom, one.n,
            ],
        )
        for one in recipes
    ]  # fmt: skip
    columns = [
        Column("recipe", "Recipe"), Column("verdict", "Verdict"), Column("difference", "Difference,|points", points),
        Column("each", "of each seed"), Column("se", "Standard error,|points", percent),
        Column("se_seeds", "of seeds", percent), Column("se_problems", "of problems", percent),
        Column("df", "df", count), Column("n", "Problems", count),
    ]  # fmt: skip
    return Table("recipes", "Recipes over calibration seeds", "data", columns, rows, keep=True)


def verdict_table(data: ReportData) -> Table:
    """Verdict, area, adjusted p, MDE, scaling, stopping, accuracy and tokens at the largest budget, one row per run."""
    task = data.tasks[0]
    budget = max((budget for one in data.runs for budget in one.cells(task)), default=0)
    rows = []
    for one in data.runs:
        entry, values = one.contrast, [None] * 6
        if entry is not None:
            cell = entry.primary
            values: list[Any] = [remark(entry), difference(cell)]
            p = None if entry.verdict == UNFINISHED else cell.p_adjusted
            values += [p, cell.mde, scaling_word(entry), stops_word(entry)]
        last = one.cells(task).get(budget)
        values += (
            [None, None] if last is None else [Interval(last.accuracy, last.low, last.high), last.tokens.total.mean]
        )
        rows.append((one.style, values))
    columns = [
        Column("run", "Model"), Column("verdict", "Verdict"),
        Column("difference", "Difference over|the curve, points", points),
        Column("p_adjusted", "p|adjusted", probability), Column("mde", "MDE,|points", percent),
        Column("scaling", "Scaling,|% kept"), Column("stops", "Chains end|by themselves, %"),
        Column("accuracy", f"Accuracy, %|at budget {budget}", percent),
        Column("tokens", f"Tokens used|at budget {budget}", count),
    ]  # fmt: skip
    return Table("verdicts", "Verdicts", "verdicts sortable", columns, rows, keep=True)


def remark(entry: Entry) -> Word:
    """The verdict, with what could decide an undecided run, how much of an unfinished run is there, or a caveat.

    Caveats: rows decided how many problems there are, chains are cut, and what single budgets say.
    """
    caveats = ["relies on cutting"] * entry.relies_on_cutting
    caveats += ["at every budget"] * (entry.whole_curve and entry.verdict in (BETTER, WITHIN, WORSE))
    caveats += [f"but {at.verdict} at {at.budget}, {points(at.difference)}" for at in entry.contradicted_at[:2]]
    cell = entry.primary
    numbers = (cell.settle.draws, cell.samples, "draws"), (cell.settle.problems, cell.all_problems, "problems")
    more = [f"{count(number)} {what}" for number, present, what in numbers if number and number > present]
    enough = cell.mde is not None and cell.mde <= cell.settle.effect
    if entry.unfinished:
        state, shown = entry.unfinished, in_words(entry.unfinished)
        caveats = [shown if state.mixed else f"{shown.removeprefix('unfinished, ')} problems"]
    elif entry.grown or entry.adaptive:
        caveats.insert(0, "limit or draws changed" if entry.grown else "collected adaptively")
    elif entry.verdict == OPEN and (enough or more):
        detects = "enough problems" if enough else f"about {' or '.join(more)}"
        caveats.insert(0, f"{detects} to detect {percent(cell.settle.effect)} points")
    return Word(entry.verdict, "; ".join(caveats))


def scaling_word(entry: Entry) -> Word | None:
    """The verdict on scaling (kept, lost or cannot tell), with the kept share of the base's slope."""
    slope = entry.scaling
    if slope is None or slope.word is None:
        return None
    share, low, high = map(percent, (slope.retention, slope.retention_low, slope.retention_high))
    return Word(slope.word, "" if slope.retention is None else f"{share}, {low} to {high}")


def stops_word(entry: Entry) -> Word | None:
    """The verdict on the share of chains that end by themselves, with that share and its change."""
    if entry.stops is None:
        return None
    cell = entry.stopping.endings[ENDS]
    return Word(entry.stops, f"{percent(cell.share)}, {points(cell.difference)}")
