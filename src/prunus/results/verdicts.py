"""Verdicts of a comparison, from p-values that are corrected for the number of tests.

Each kind of claim is a family, corrected by Holm over the comparisons that could be shown (`family`): that a model is
better (2.5 %), worse (2.5 %), that its loss is smaller than the margin (5 %), that scaling is kept (5 %) or lost (5 %).
All single budgets of all models, with the areas of single tasks where there are several, are further such families.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import scipy

from prunus.plain_data import Record
from prunus.results.cells import AREA, SLOPE, Cell, Cells, Contradiction, Ending, Part
from prunus.results.family import Family
from prunus.results.vocabulary import Scaling, Verdict
from prunus.settings.margins import Margin
from prunus.statistics import betting, paired
from prunus.statistics.betting import ALPHA, two_sided
from prunus.statistics.paired import Floats

# What the cells of an unfinished run have instead of numbers on which a claim would rest.
NO_CLAIM = {
    **dict.fromkeys(("p", "p_better", "p_worse", "p_flip", "p_margin", "p_kept", "p_lost"), 1.0),
    "lower_bound": -1.0,
    "lower_bound_adjusted": -1.0,
    "upper_bound_adjusted": 1.0,
}
CLAIMS = ("p_better", "p_worse", "p_margin")
C = TypeVar("C", Cell, Ending)
S = TypeVar("S", bound=Record)


def verdict(cell: Cell | Ending) -> Verdict:
    """The verdict on a cell of a comparison, from its three adjusted p-values."""
    if cell.unfinished:
        return Verdict.UNFINISHED
    return word_of(cell.p_better_adjusted, cell.p_worse_adjusted, cell.p_margin_adjusted)


def word_of(p_better: float, p_worse: float, p_margin: float) -> Verdict:
    """The verdict from the adjusted p-values of the three claims."""
    better, worse, within = p_better <= ALPHA / 2, p_worse <= ALPHA / 2, p_margin <= ALPHA
    if better != worse:  # both would contradict each other
        return Verdict.BETTER if better else Verdict.WORSE_WITHIN_MARGIN if within else Verdict.WORSE
    return Verdict.NON_INFERIOR if within else Verdict.CANNOT_TELL


def deciding(cell: Cell | Ending, low: float, high: float, size: float) -> tuple[float, float]:
    """(low, high) of the difference, or of the gain of an ending: an interval that agrees with its verdict.

    low, high: bounds that hold for all comparisons together, by the tests on which the verdict rests. size: of the
    margin. Low is at least minus the margin where a loss of the margin is ruled out, and at most that elsewhere. High
    is at most 0 where the verdict is worse, low at least 0 where it is better, and 0 lies between them elsewhere.
    Bounds by Bonferroni can be a little wider than verdicts by Holm, and bounds of differences in points can say
    something else than the test of a relative margin.
    """
    value = cell.gain if isinstance(cell, Ending) else cell.difference
    better, worse = cell.p_better_adjusted <= ALPHA / 2, cell.p_worse_adjusted <= ALPHA / 2
    low, high = min(low, value), max(high, value)
    low = max(low, -size) if cell.p_margin_adjusted <= ALPHA else min(low, -size)
    low = max(low, 0.0) if better and not worse else min(low, 0.0)
    high = min(high, 0.0) if worse and not better else max(high, 0.0)
    return low, high


def wide_margin(margin: Margin, base_accuracy: float, base: str = "the base") -> str | None:
    """A warning where the margin is more than a third of the base's accuracy, so that staying within it says little.

    base_accuracy: of the primary contrast, the area over the budgets. base: what to call it. None where the margin is
    smaller.
    """
    if base_accuracy == 0:
        return (
            f"{base} solves nothing, so there is nothing to lose, and no model is called {Verdict.NON_INFERIOR}: choose"
            " budgets or problems at which something is solved"
        )
    size = margin.points(base_accuracy)
    if base_accuracy >= 3 * size:
        return None
    all_of_it = f"all of it, so no model is {Verdict.NON_INFERIOR}"
    lost = f"{100 * size / base_accuracy:.0f} % of it" if size < base_accuracy else all_of_it
    return (
        f"{base} solves {100 * base_accuracy:.1f} % on average over the budgets, and a loss of the margin,"
        f" {100 * size:g} points, would be {lost}: choose a smaller margin, or budgets at which more is solved"
    )


MOST = 0.5  # share of a model's chains that must end by themselves if it is said to stop
RARE = 1 / 3  # of the base's share of chains that end by themselves: a margin from this on says little


def rare_endings(margin: Margin, share: float, base: str = "the base") -> str | None:
    """A warning where the margin of endings is a third of the base's chains that end by themselves, or more.

    share: of the base's chains that end by themselves. None where the margin is smaller, or the base's chains all end.
    """
    size = margin.points(share)
    if size < RARE * share:
        return None
    if share == 0:
        return f"no chain of {base} ends by itself within the largest budget, so no model is shown to stop: raise it"
    lost = f"{100 * size / share:.0f} % of them" if size < share else "all of them"
    return (
        f"{100 * share:.1f} % of the chains of {base} end by themselves, and a loss of the margin,"
        f" {100 * size:g} points, would be {lost}: choose a smaller stop margin, or larger budgets"
    )


def still_stops(ends: Ending | None, word: Verdict | None, margin: Margin) -> bool:
    """Whether a model may be said to stop as the base does.

    That is where no loss is shown, most of its chains end by themselves, and the margin is small beside the base's.
    """
    if ends is None or word not in (Verdict.BETTER, Verdict.NON_INFERIOR):
        return False
    return ends.share >= MOST and rare_endings(margin, ends.base_share) is None


def without_claim(cell: S) -> S:
    """The cell of an unfinished run, whose p-values and bounds are replaced by values that claim nothing (NO_CLAIM)."""
    names = {field.name for field in fields(cell)}
    return replace(cell, unfinished=True, **{name: value for name, value in NO_CLAIM.items() if name in names})


def adjusted(cells: Sequence[C], family: Family, of: Sequence[tuple[int, Hashable]]) -> list[C]:
    """The cells with the p-values of their claims corrected over all of them (Holm). of: as of Family.adjusted."""
    columns = {name: np.array(family.adjusted([getattr(cell, name) for cell in cells], of)) for name in CLAIMS}
    both = two_sided(columns["p_better"], columns["p_worse"])
    return [
        replace(cell, p_adjusted=float(both[c]), **{f"{name}_adjusted": float(columns[name][c]) for name in CLAIMS})
        for c, cell in enumerate(cells)
    ]


def judged(runs: Sequence[Sequence[Cells]], family: Family) -> list[list[Part]]:
    """The parts of several runs, with the fields that depend on all runs that are compared together.

    These are adjusted p, q, and the word on scaling. runs: the cells of each task of a run, and last those of all of
    them if there are several. Its area is the primary contrast; areas of single tasks, and all single budgets, are
    details. The tests of each ending are a family, over all runs, tasks and budgets.
    """
    tests: dict[tuple[int, int, str, int], Any] = {
        (r, p, *place): cell
        for r, parts in enumerate(runs)
        for p, cells in enumerate(parts)
        for place, cell in cells.items()
    }
    families: dict[object, list[tuple[int, int, str, int]]] = {}
    slopes = [at for at in tests if at[2] == SLOPE and at[1] == len(runs[at[0]]) - 1]
    for r, p, kind, budget in tests:
        of = kind == AREA and p == len(runs[r]) - 1 if kind in ("", AREA) else kind
        families.setdefault(of, []).append((r, p, kind, budget))
    families.pop(SLOPE, None)
    for members in families.values():
        of = [(place[0], place[1:]) for place in members]
        tests |= zip(members, adjusted([tests[place] for place in members], family, of), strict=True)
    for over_tasks in (False, True):
        members = [at for at in tests if at[2] in ("", AREA) and (0 < at[1] == len(runs[at[0]]) - 1) == over_tasks]
        q = scipy.stats.false_discovery_control([tests[place].p for place in members]) if members else ()
        tests |= {place: replace(tests[place], q=float(value)) for place, value in zip(members, q, strict=True)}
    of = [(at[0], SLOPE) for at in slopes]
    both = (family.adjusted([getattr(tests[at], name) for at in slopes], of) for name in ("p_kept", "p_lost"))
    for at, kept, lost in zip(slopes, *both, strict=True):
        word = Scaling.UNFINISHED if tests[at].unfinished else scaling_word(kept, lost)
        tests[at] = replace(tests[at], p_kept_adjusted=float(kept), p_lost_adjusted=float(lost), word=word)
    return [
        [Part.of_cells({place: tests[r, p, *place] for place in cells}) for p, cells in enumerate(parts)]
        for r, parts in enumerate(runs)
    ]


def at_largest(runs: Sequence[Part], family: Family) -> list[dict[str, Ending]]:
    """The endings of each run at its largest budget, with verdicts corrected over the family for each ending."""
    endings = [dict(part.stopping[max(part.stopping)]) if part.stopping else {} for part in runs]
    for ending in {name for cells in endings for name in cells}:
        having = [run for run, cells in enumerate(endings) if ending in cells]
        cells = adjusted([endings[run][ending] for run in having], family, [(run, ending) for run in having])
        for run, cell in zip(having, cells, strict=True):
            endings[run][ending] = replace(cell, verdict=verdict(cell))
    return endings


def contradictions(verdict_of_run: Verdict, budgets: Mapping[int, Cell]) -> list[Contradiction]:
    """The budgets that contradict the verdict of a run."""
    return [
        Contradiction(budget=budget, difference=cell.difference, verdict=verdict(cell))
        for budget, cell in budgets.items()
        if verdict_of_run.is_contradicted_by(verdict(cell))
    ]


def at_every_budget(verdict_of_run: Verdict, budgets: Mapping[int, Cell]) -> bool:
    """Whether a run is better, or worse, and has a verdict in the same direction at each of several budgets."""
    directions = {verdict(cell).direction for cell in budgets.values()}
    return len(budgets) > 1 and verdict_of_run.direction != 0 and directions == {verdict_of_run.direction}


ENOUGH = 0.9  # smallest share of the base's slope at which scaling counts as kept


# Retention: a model's slope of accuracy per doubling of the budget, as a share of the base model's slope.
# Slopes are least-squares slopes on log2 of the budgets above 0, one per problem, paired. `base` and `other` hold a (P,
# C) array of slopes for each task, P problems by C pairs of models (one, except in simulations); a model's slope is the
# mean over tasks of the mean over problems.
# * The interval is Fieller's (1954): all ratios rho for which the mean of other - rho base is not significantly
#   different from 0, with Student's quantile. It is finite only where the base's own slope is clearly above 0;
#   elsewhere there is no scaling to keep, and no interval. Two pseudo-problems, one with the slope of a typical problem
#   and one with its negative, widen it for the reason that `paired` gives: without them it would be a point where no
#   problem differs.
# * *lost*: other - 0.9 base is below 0, and the base's slope above 0, by betting.
# * *kept*: other - 0.9 base and the base's slope are above 0, by betting. A t test makes this claim too easily with few
#   problems: where a tenth of the problems stop scaling, it says *kept* in up to half of the cases at n = 5, and
#   betting in none (docs/verdicts.md).


def retention(base: Sequence[Floats], other: Sequence[Floats]) -> tuple[Floats, Floats, Floats]:
    """(C,) ratio of other's slope to base's, low and high (95 %); nan unless base's slope is clearly above 0."""
    x, y, xx, xy, yy, extra = _moments(base, other)
    square = scipy.stats.t.isf(0.025, paired.freedom(base)) ** 2
    a, b, c = x**2 - square * xx, x * y - square * xy, y**2 - square * (yy + extra)
    clear = (a > square * extra) & (x > 0)
    a, root = np.where(clear, a, np.nan), np.sqrt(np.maximum(b**2 - a * c, 0.0))
    return y / np.where(clear, x, np.nan), (b - root) / a, (b + root) / a


def p_scaling(word: str, base: Sequence[Floats], other: Sequence[Floats], reach: float, draws: int = 1) -> Floats:
    """(C,) p-values, by betting, of what `kept` or `lost` (the word) would rule out.

    kept: other has at most 0.9 of base's slope, or base's is not above 0. lost: other has at least 0.9 of it, or base's
    is not above 0. reach: the largest absolute slope that a problem can have. draws: of each problem.
    """
    scale, sign = reach * (1 + ENOUGH), 1 if word == "kept" else -1
    apart = [
        sign * (other_slope - ENOUGH * base_slope) / scale for base_slope, other_slope in zip(base, other, strict=True)
    ]
    rising = [base_slope / reach for base_slope in base]
    return np.maximum(*(betting.p_value(strata, draws=draws) for strata in (apart, rising)))


def scaling_word(p_kept: float, p_lost: float) -> Scaling:
    """kept, lost or cannot tell, from the adjusted p-values."""
    return Scaling.KEPT if p_kept <= ALPHA else Scaling.LOST if p_lost <= ALPHA else Scaling.CANNOT_TELL


def _moments(base: Sequence[Floats], other: Sequence[Floats]) -> tuple[Floats, ...]:
    """(C,) each: means of base and other; covariances xx, xy, yy of these means; what pseudo-problems add to xx, yy.

    Variances are nan if a task has one problem.
    """
    moments = np.zeros((6, base[0].shape[1]))
    for x, y in zip(base, other, strict=True):
        n, square = len(x), x**2 + y**2
        typical = square.sum(axis=0) / np.maximum(2 * (square > 0).sum(axis=0), 1)
        dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
        with np.errstate(invalid="ignore"):
            variances = [
                (left * right).sum(axis=0) / np.float64(n - 1) / n for left, right in ((dx, dx), (dx, dy), (dy, dy))
            ]
        moments[:2] += np.stack([x.mean(axis=0), y.mean(axis=0)]) / len(base)
        moments[2:] += np.stack([*variances, 2 * typical / (n + 2) ** 2]) / len(base) ** 2
    return tuple(moments)
