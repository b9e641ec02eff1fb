"""The cells of a comparison: every contrast of two runs on the same problems and budgets.

Each run may have any number of draws: a problem's difference is the mean over the draws of a run minus the mean over
those of the other.

`paired` computes intervals, `betting` the p-values and bounds that verdicts rest on, or `exact` where both sides have
one outcome of each problem, and `anytime` all of these where rows decided how many problems were taken; they explain
why these methods are used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunus.plain_data import made
from prunus.questions import sampling_key
from prunus.results import verdicts
from prunus.results.cells import AREA, SLOPE, Cell, Cells, Ending, Needed, OfSet, Sized, Slope
from prunus.results.growth import Growth
from prunus.settings.budgets import AS_RUN, OFF, without_off
from prunus.settings.margins import Margin
from prunus.statistics import anytime, betting, coupling, exact, finite, metrics, paired, power
from prunus.statistics.anytime import Claims
from prunus.statistics.betting import direction_p
from prunus.statistics.paired import Floats
from prunus.store.rows import Table, sizes_of


@dataclass(frozen=True)
class Grown:
    """How problems were taken by a limit that grew.

    order: the problems of the task in the plan's order.
    """

    growth: Growth
    order: tuple[str, ...]


class Searched(NamedTuple):
    """Order in which `find` or `choose` took problems. seed: of a random order; None: the order of bets."""

    seed: int | None


@dataclass(frozen=True)
class Pair:
    """One task of two runs on the same problems, in the order in which bets take them, and budgets.

    adaptive: if rows decided how many problems were taken, the order in which that happened, or how a limit grew; else
    None.
    """

    base: Table
    other: Table
    adaptive: Searched | Grown | None = None

    @property
    def draws(self) -> int:
        """The larger of the two numbers of draws: 1 if each side has a single outcome for each problem."""
        return max(len(self.base.draws), len(self.other.draws))

    @property
    def matched(self) -> bool:
        """Whether both sides have equally many draws."""
        return len(self.base.draws) == len(self.other.draws)

    def at(self, budgets: Sequence[int]) -> "Pair":
        """The pair at some of its budgets."""
        base, other = (table.select(table.problems, budgets, table.draws) for table in (self.base, self.other))
        return Pair(base, other, self.adaptive)

    @property
    def shared_draws(self) -> list[int]:
        """The numbers of the draws that both sides have, which come from the same random numbers."""
        return sorted(set(self.base.draws) & set(self.other.draws))

    def draw_by_draw(self) -> "Pair":
        """The pair with only those draws that both sides have."""
        shared = self.shared_draws
        base, other = (table.select(table.problems, table.budgets, shared) for table in (self.base, self.other))
        return Pair(base, other, self.adaptive)


def draw_by_draw(pairs: Sequence[Pair]) -> list[Pair] | None:
    """The pairs with the matched draws alone; None where all draws are matched, or none is."""
    if pairs[0].matched or not pairs[0].shared_draws:
        return None
    return [pair.draw_by_draw() for pair in pairs]


def contrast_cells(pairs: Sequence[Pair], margin: Margin, resamples: int, claims: tuple[int, int] | None) -> Cells:
    """The cells of a task, or of several with equal weights, without what depends on other runs: adjusted p and q.

    claims: numbers of tests over which the p-values of budgets, and that of the area, are corrected; None for a run of
    which only p-values count: then there are no minimum detectable effects and no adjusted bounds. The cell of budget
    OFF is computed apart, so that it changes no other cell.
    """
    budgets = pairs[0].base.budgets
    if OFF in budgets and len(budgets) > 1:
        off, curve = (
            contrast_cells([pair.at(some) for pair in pairs], margin, resamples, claims)
            for some in ([OFF], without_off(budgets))
        )
        return {("", OFF): off["", OFF], **curve}
    weights_BC, several = _weights(budgets)
    base, other = _by_draw(pairs, weights_BC)
    matched, draws = pairs[0].matched, pairs[0].draws
    # Values that more draws of the other run make less noisy: differences if all draws are matched, else its own.
    varying = differences_of(base, other) if matched else other
    base_means, other_means = ([d.mean(axis=1) for d in side] for side in (base, other))
    strata = [d.mean(axis=1) for d in varying] if matched else differences_of(base_means, other_means)
    tested = paired.infer(strata, resamples)
    B, A = len(budgets), len(budgets) + 1  # contrasts of budgets, and with the area; a slope would be the last
    shares = [d[:, :A] for d in strata]  # differences of accuracies, which lie in [-1, 1]; no slopes
    details, primary = claims or (1, 1)
    claims_A = np.array([details] * B + [primary])
    base_C = paired.estimate(base_means)
    common = {
        "accuracy": paired.estimate(other_means),
        "base_accuracy": base_C,
        **{"p_flip" if name == "p" else name: column for name, column in tested.columns.items()},
    }
    one_outcome = np.full(A, is_one_outcome(pairs))
    one_outcome[-1] &= np.count_nonzero(weights_BC[:, B]) == 1
    bases, coupled = [d[:, :A] for d in base_means], None
    if (part := draw_by_draw(pairs)) is not None:
        bases_PA, others_PA = ([d.mean(axis=1)[:, :A] for d in side] for side in _by_draw(part, weights_BC))
        coupled = Coupled(differences_of(bases_PA, others_PA), bases_PA)
    mde_A = low_A = high_A = np.full(A, np.nan)
    if pairs[0].adaptive is None and claims is not None:  # it is of the tests for a fixed number of problems
        mde_A = power.minimum_detectable(shares, bases, claims_A, draws, one_outcome)
    if claims is not None:
        last = coupled and [d[:, B:] for d in coupled.gains]
        bounds = _bounds_of_all([d[:, B:] for d in shares], pairs, margin, primary, one_outcome[B:], last)
        low_A, high_A = (np.append(np.full(B, np.nan), bound) for bound in bounds)
    low_B, high_B = metrics.simultaneous_bands(tested.centre_C[:B], tested.draws_RC[:, :B])
    columns = {
        **{name: column[:A] for name, column in common.items()},
        "mde": mde_A,
        "lower_bound_adjusted": low_A,
        "upper_bound_adjusted": high_A,
        # Never narrower than a cell's own interval, which need not be symmetric.
        "band_low": np.minimum(low_B, tested.low[:B]),
        "band_high": np.maximum(high_B, tested.high[:B]),
        **_claimed(shares, bases, pairs, margin, one_outcome, B, coupled).columns,
    }
    margins_A = [margin.points(share) for share in base_C[:A]]
    effect_A = np.maximum(np.abs(tested.difference[:A]), margins_A)
    size = _sizes(pairs)
    needed = _needed([d[:, :, :A] for d in varying], shares, matched, effect_A, claims_A, mde_A, Sized(**size))
    cells: Cells = {}
    for c, place in enumerate([*(("", budget) for budget in budgets), (AREA, 0)]):
        names = [name for name in columns if c < B or not name.startswith("band_")]
        cells[place] = made(Cell, size, {name: float(columns[name][c]) for name in names}, settle=needed[c])
    if several:
        reach = float(weights_BC[:, -1].clip(0).sum())
        own = {name: column[-1:] for name, column in common.items()}
        own |= direction_p([d[:, -1:] / (2 * reach) for d in strata], draws)
        slopes = [d[:, -1:] for d in base_means], [d[:, -1:] for d in other_means]
        own |= dict(zip(("retention", "retention_low", "retention_high"), verdicts.retention(*slopes), strict=True))
        own |= {f"p_{word}": verdicts.p_scaling(word, *slopes, reach, draws) for word in ("kept", "lost")}
        slope = made(Slope, size, {name: float(column[0]) for name, column in own.items()})
        if pairs[0].adaptive is not None:  # none holds at any time
            slope = replace(slope, p_kept=1.0, p_lost=1.0, p_better=1.0, p_worse=1.0, p=1.0)
        cells[SLOPE, 0] = slope
    return cells


class Coupled(NamedTuple):
    """The gains and the base of `_claimed`, over the matched draws alone."""

    gains: Sequence[Floats]
    base: Sequence[Floats]


def sides(pairs: Sequence[Pair]) -> tuple[list[Table], list[Table]]:
    """The tables of the base, and those of the other run."""
    return [pair.base for pair in pairs], [pair.other for pair in pairs]


def differences_of(base: Sequence[Floats], other: Sequence[Floats]) -> list[Floats]:
    """The values of the other run minus those of the base, by task."""
    return [of_other - of_base for of_base, of_other in zip(base, other, strict=True)]


def _by_draw(pairs: Sequence[Pair], weights_BC: Floats) -> list[list[Floats]]:
    """(G, N, C) weighted sums over the budgets of each draw, by task: first of the base, then of the other run."""
    return [
        [table.by_group(table.correct.astype(float).transpose(0, 2, 1) @ weights_BC) for table in side]
        for side in sides(pairs)
    ]


def noise_in_common(pairs: Sequence[Pair]) -> float | None:
    """The share of the noise of the base's draws that the other run's matched draws have in common, in the area.

    It is estimated draw by draw; where a single draw is matched, from both sides' distance to the mean of the base's
    draws. None without matched draws, for a single draw of the base, and where nothing varies.
    """
    if not pairs[0].shared_draws:
        return None
    budgets = without_off(pairs[0].base.budgets) or pairs[0].base.budgets
    pairs, weights_BC = [pair.at(budgets) for pair in pairs], metrics.auc_weights(budgets)[:, None]
    base, _ = _by_draw(pairs, weights_BC)
    sides = _by_draw([pair.draw_by_draw() for pair in pairs], weights_BC)
    expected = [base] * 2 if len(pairs[0].shared_draws) == 1 else sides
    apart = [
        [(d - of.mean(axis=1, keepdims=True))[:, :, 0] for d, of in zip(side, means, strict=True)]
        for side, means in zip(sides, expected, strict=True)
    ]
    return coupling.noise_in_common(*apart)


def of_set(pair: Pair, size: int, margin: Margin, comparisons: int) -> OfSet:
    """The bound of the area over the set of `size` problems of which these, with one outcome each, are a sample.

    comparisons: how many bounds hold together (Bonferroni).
    """
    budgets = without_off(pair.base.budgets) or pair.base.budgets
    weights_B = metrics.auc_weights(budgets)
    base, other = (
        table.select(sorted(table.problems, key=sampling_key), budgets, table.draws).correct.astype(float)
        for table in (pair.base, pair.other)
    )
    differences_P = (other - base)[:, :, 0] @ weights_B
    single = np.count_nonzero(weights_B) == 1
    bound, within = finite.bound(differences_P, size, margin.size, betting.ALPHA / comparisons, bool(single))
    return OfSet(size=size, lower_bound=min(bound, float(differences_P.mean())), within_margin=within)


def _claimed(
    gains: Sequence[Floats],
    base: Sequence[Floats],
    pairs: Sequence[Pair],
    margin: Margin,
    one_outcome: NDArray[np.bool_],
    bands: int = 0,
    coupled: Coupled | None = None,
    bounds: bool = True,
) -> Claims:
    """P-values of gains, (G, C) of each task in [-1, 1], and lower bounds, which take longest: -1 without `bounds`.

    base: the base's shares in [0, 1], alike. one_outcome: whether a contrast has one outcome of each problem on both
    sides, by contrast; only of a single task without groups. Where rows decided how many problems were taken, all
    numbers hold whatever ended the collection, and there are always lower bounds, intervals (low, high), and intervals
    that hold for `bands` contrasts together.
    """
    how, draws = pairs[0].adaptive, pairs[0].draws
    values, null = anytime.exceeding(gains, base, margin)
    matched, exceeding = (coupled.gains, anytime.exceeding(*coupled, margin)[0]) if coupled else (None, None)
    if how is None:
        p_margin = np.empty(len(one_outcome))
        single = one_outcome & (not margin.relative)
        p_margin[single] = exact.p_value(*_counts(gains, single), len(gains[0]), margin.size)
        several = exceeding and [stratum[:, ~single] for stratum in exceeding]
        p_margin[~single] = betting.p_value([stratum[:, ~single] for stratum in values], null, draws, several)
        bound = np.full(len(one_outcome), -1.0)
        if bounds:
            bound = _lower_bound(gains, pairs, margin, betting.ALPHA, one_outcome, matched)
        p = direction_p(gains, draws, one_outcome, matched)
        claims = Claims(**p, p_margin=p_margin, lower_bound=bound)
    else:
        claims = any_time(gains, pairs, margin.size, max(1, bands), matched)
        p_margin = claims.p_margin
        if margin.relative and isinstance(how, Searched):
            names = [pair.base.groups for pair in pairs]
            rounds, dense = (anytime.in_rounds(side, names, how.seed) for side in (gains, base))
            p_margin = np.exp(-anytime.log_e_values(rounds, margin.size, dense)[0][-1])
        elif margin.relative:
            p_margin = any_time(values, pairs, null, matched=exceeding).p_margin
        mean_C = np.mean([gain.mean(axis=0) for gain in gains], axis=0)
        _, low, high = anytime.with_estimate(mean_C, claims.low, claims.high)
        _, band_low, band_high = anytime.with_estimate(mean_C, claims.band_low, claims.band_high)
        together = (band_low, band_high) if bands else (None, None)
        claims = Claims(*claims[:5], low, high, *together)
    # Where losing everything would be within the margin nothing is claimed of it.
    covered_C = np.array([margin.covers(share) for share in paired.estimate(base)])
    return claims._replace(p_margin=np.where(covered_C, 1.0, p_margin))


def is_one_outcome(pairs: Sequence[Pair]) -> bool:
    """Whether each problem has a single outcome on both sides: a draw each, of a single task, without groups."""
    return pairs[0].draws == 1 and len(pairs) == 1 and not pairs[0].base.grouped


def claims_at_budgets(pairs: Sequence[Pair], margin: Margin) -> Claims:
    """The p-values at each budget of a task, or of several with equal weights; without bounds."""
    weights_BB = np.eye(len(pairs[0].base.budgets))

    def differences(some: Sequence[Pair]) -> Coupled:
        base, other = ([draws.mean(axis=1) for draws in side] for side in _by_draw(some, weights_BB))
        return Coupled(differences_of(base, other), base)

    (gains, base), part = differences(pairs), draw_by_draw(pairs)
    coupled = None if part is None else differences(part)
    one_outcome = np.full(len(weights_BB), is_one_outcome(pairs))
    return _claimed(gains, base, pairs, margin, one_outcome, coupled=coupled, bounds=False)


def _counts(strata: Sequence[Floats], columns: NDArray[np.bool_]) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """How many problems are lost, and how many are gained, in these columns of a task with one outcome of each."""
    changes = strata[0][:, columns]
    return (changes < 0).sum(axis=0), (changes > 0).sum(axis=0)


def _lower_bound(
    strata: Sequence[Floats],
    pairs: Sequence[Pair],
    margin: Margin,
    alpha: float,
    one_outcome: NDArray[np.bool_],
    matched: Sequence[Floats] | None,
) -> Floats:
    """(C,) lower bounds of the differences, for a fixed number of problems; at most the estimates, for readers."""
    bound, nulls, others = np.empty(len(one_outcome)), [-margin.size], [stratum[:, ~one_outcome] for stratum in strata]
    bound[one_outcome] = exact.lower_bound(*_counts(strata, one_outcome), len(strata[0]), alpha, nulls)
    part = matched and [stratum[:, ~one_outcome] for stratum in matched]
    bound[~one_outcome] = betting.lower_bound(others, alpha, pairs[0].draws, nulls, part)
    return bound if matched is None else np.minimum(bound, paired.estimate(strata))


def _bounds_of_all(
    strata: Sequence[Floats],
    pairs: Sequence[Pair],
    margin: Margin,
    comparisons: int,
    one_outcome: NDArray[np.bool_],
    matched: Sequence[Floats] | None,
) -> tuple[Floats, Floats]:
    """(C,) lower and upper bounds of C contrasts that hold for so many comparisons together (Bonferroni).

    strata: (problems, C) differences of each task. one_outcome: (C,) whether a contrast has one draw per problem.
    matched: differences over matched draws alone.

    Their levels are those of verdicts: 5 % for the loss that is ruled out, 2.5 % for the loss that is shown.
    """
    if pairs[0].adaptive is not None:  # bands are two-sided
        low = any_time(strata, pairs, margin.size, comparisons / 2, matched).band_low
        high = any_time(strata, pairs, margin.size, comparisons, matched).band_high
        assert low is not None and high is not None
        return low, high
    level = betting.ALPHA / comparisons
    turned, turned_matched = ([-differences for differences in side] for side in (strata, matched or ()))
    high = -_lower_bound(turned, pairs, Margin(0.0), level / 2, one_outcome, turned_matched or None)
    return _lower_bound(strata, pairs, margin, level, one_outcome, matched), high


def any_time(
    strata: Sequence[Floats],
    pairs: Sequence[Pair],
    margin: float,
    columns: float = 1,
    matched: Sequence[Floats] | None = None,
) -> Claims:
    """`anytime.infer` of the differences (G, C) of each pair, in the order in which groups of problems were taken.

    matched: the differences over matched draws alone.
    """
    how, names = pairs[0].adaptive, [pair.base.groups for pair in pairs]
    assert how is not None
    sides = [strata] if matched is None else [strata, matched]
    if isinstance(how, Searched):
        (rounds, *parts), first = [anytime.in_rounds(side, names, how.seed) for side in sides], 0
    else:
        orders = [pair.adaptive.order for pair in pairs if isinstance(pair.adaptive, Grown)]
        rest = names, orders, how.growth.limits, pairs[0].draws
        ordered = [anytime.in_plan_order(side, *rest) for side in sides]
        (rounds, *parts), first = [values for values, _ in ordered], ordered[0][1]
    rounds = coupling.mixed(rounds, parts[0]) if parts else rounds
    return anytime.infer(rounds, margin, columns, first, 1.0 if isinstance(how, Searched) else how.growth.share)


def _weights(budgets: Sequence[int]) -> tuple[Floats, bool]:
    """(B, C) weights over budgets of every contrast: each budget, the area, and the slope where it is defined."""
    slope = metrics.slope_weights(budgets)
    several = bool(np.isfinite(slope).all())
    columns = [np.eye(len(budgets)), metrics.auc_weights(budgets)[:, None], slope[:, None]]
    return np.concatenate(columns[: 2 + several], axis=1), several


def _sizes(pairs: Sequence[Pair]) -> dict[str, int]:
    """The fields of a Sized record of these pairs together."""
    sizes, draws = sizes_of([pair.base for pair in pairs]), len(pairs[0].other.draws)
    return sizes if pairs[0].matched else sizes | {"samples": draws, "base_samples": len(pairs[0].base.draws)}


def _needed(
    varying: Sequence[Floats],
    means: Sequence[Floats],
    matched: bool,
    effect_A: Floats,
    claims_A: NDArray[np.int_],
    mde_A: Floats,
    size: Sized,
) -> list[Needed]:
    """Numbers of draws and of problems, each enough by itself, with which contrasts of these sizes would be detected.

    varying, means: as strata and means of `power.variance_components`.

    Numbers follow from an approximation that detects smaller effects than the test does. So each effect is multiplied
    by the ratio of both detectable effects, mde_A being the test's: where it is the effect, present problems are
    enough.
    """
    error_A = paired.standard_error(paired.with_pseudo_problems(means))
    step = power.one_draw(varying) / varying[0].shape[1]
    approximate_A = power.detectable(claims_A, paired.freedom(means)) * error_A + step
    aim_A = effect_A * np.where(np.isfinite(mde_A) & (mde_A > 0), approximate_A / mde_A, 1.0)
    given = None if matched else means
    draws_A = power.draws_needed(varying, aim_A, claims_A, given)
    groups_A = power.problems_needed(varying, aim_A, claims_A, given)
    problems_A = np.ceil(groups_A * size.all_problems / size.n)
    needs = []
    for effect, draws, problems in zip(effect_A, draws_A, problems_A, strict=True):
        note = None
        if isnan(draws):
            note = "one draw of each problem does not show how much draws vary"
        elif draws == inf:
            note = "no number of draws is enough: the problems differ too much, or there is no effect to find"
        numbers = {"draws": draws, "problems": problems}
        whole = {name: int(number) if isfinite(number) else None for name, number in numbers.items()}
        needs.append(Needed(effect=float(effect), **whole, note=note))
    return needs


# Whether a run still stops: how its chains end under each budget, compared with those of a base by problem. Every
# ending is a share in [0, 1] of each problem's draws, so the tests and bounds of accuracies apply to it.


@dataclass(frozen=True)
class Kind:
    """Way of ending. words: a table's heading for it. values: (P, B, N) shares of a table's draws, over its budgets.

    sign: 1 if more of it is better, -1 if less is. `values` is given a table of budgets that count, smallest first.
    """

    words: str
    sign: int
    values: Callable[[Table], NDArray[Any]]


def _lost(table: Table) -> NDArray[np.bool_]:
    """Whether the chain's answer was right under a smaller budget and is wrong now."""
    solved = np.logical_or.accumulate(table.correct, axis=1)
    before = np.concatenate([np.zeros_like(solved[:, :1]), solved[:, :-1]], axis=1)
    return before & ~table.correct


def _budget_used(table: Table) -> Floats:
    """Thinking tokens as a share of the budget, at most 1: under native control an engine may exceed it."""
    return np.minimum(1.0, table.values("thinking_tokens") / _budgets(table))


def _budgets(table: Table) -> NDArray[np.int_]:
    return np.array(table.budgets)[:, None]


ENDS, USED = "ends", "budget_used"
STOPS = "the base's chains that end by themselves"
ENDINGS = {
    ENDS: Kind("stops by itself", 1, lambda table: table.values("ended") == "natural"),
    "loops": Kind("loops", -1, lambda table: table.values("loops")),
    "lost": Kind("lost again", -1, _lost),
    "unanswered": Kind("no answer", -1, lambda table: table.values("status") == "no_answer"),
    "truncated": Kind("answer cut", -1, lambda table: table.values("answer_truncated")),
    "leaked": Kind("leaked", -1, lambda table: metrics.leaked(table.values("answer_tokens"), _budgets(table))),
    USED: Kind("budget used", -1, _budget_used),
}


def stop_cells(
    pairs: Sequence[Pair],
    margin: Margin,
    resamples: int,
    same_chains: bool,
    comparisons: int | None = None,
    imported: bool = False,
) -> Cells:
    """The cells of all endings at the positive budgets of a task, or of several with equal weights.

    Empty if a log does not say how every draw ended. A relative margin is a share of the base's draws that do well:
    that end by themselves, do not loop.

    comparisons: number of comparisons for which the bounds at the largest budget hold together; None: no such bounds.
    imported: whether a run is a log of another tool, which has ENDS and loops only.
    same_chains: whether the budgets share their chains; without it there is no `lost`.
    """
    known = not any(np.isnan(table.forced.astype(float)).any() for pair in pairs for table in (pair.base, pair.other))
    budgets = [budget for budget in pairs[0].base.budgets if budget > 0 or budget == AS_RUN]
    if not (budgets and known):
        return {}
    endings = {name: ending for name, ending in ENDINGS.items() if same_chains or name != "lost"}
    if imported:
        endings = {name: ENDINGS[name] for name in (ENDS, "loops")}
    signs = np.repeat([ending.sign for ending in endings.values()], len(budgets))

    def compared(some: Sequence[Pair]) -> tuple[list[Floats], list[Floats], Coupled]:
        """Shares of the base and of the other run, and the gains beside what the base does well."""
        base, other = ([_columns(table, budgets, list(endings.values())) for table in side] for side in sides(some))
        gains = [difference * signs for difference in differences_of(base, other)]
        return base, other, Coupled(gains, [np.where(signs > 0, share, 1 - share) for share in base])

    base, other, (gains, good) = compared(pairs)
    tested, part = paired.infer(differences_of(base, other), resamples), draw_by_draw(pairs)
    coupled = None if part is None else compared(part)[2]
    one_outcome = np.repeat([is_one_outcome(pairs) and name != USED for name in endings], len(budgets))
    claimed = _claimed(gains, good, pairs, margin, one_outcome, coupled=coupled)
    if claimed.low is not None and claimed.high is not None:
        low, high = np.sort([signs * claimed.low, signs * claimed.high], axis=0)
        claimed = claimed._replace(low=low, high=high)
    shares = {"share": other, "base_share": base, "gain": gains}
    columns = {name: paired.estimate(values) for name, values in shares.items()} | claimed.columns
    columns["bound"] = signs * columns.pop("lower_bound")
    if comparisons is not None:
        last = np.arange(len(endings)) * len(budgets) + len(budgets) - 1
        at_last, matched = [gain[:, last] for gain in gains], coupled and [gain[:, last] for gain in coupled.gains]
        bounds = _bounds_of_all(at_last, pairs, margin, comparisons, one_outcome[last], matched)
        for name, bound in zip(("gain_low", "gain_high"), bounds, strict=True):
            columns[name] = np.full(len(signs), np.nan)
            columns[name][last] = bound
    cells = tested.cells(**columns)
    size = _sizes(pairs)
    return {
        (name, budget): made(Ending, size, cell)
        for b, budget in enumerate(budgets)
        for name, cell in zip(endings, cells[b :: len(budgets)], strict=True)
    }


def _columns(table: Table, budgets: Sequence[int], endings: Sequence[Kind]) -> Floats:
    """(G, C) mean over draws of every ending at every budget; the budgets of an ending are adjacent."""
    positive = table.select(table.problems, budgets, table.draws)
    values = [ending.values(positive).mean(axis=2, dtype=float) for ending in endings]
    return table.by_group(np.concatenate(values, axis=1))


def without_claims(cells: Cells) -> Cells:
    """The cells of an unfinished run, with nothing claimed; the bounds of its endings are the worst possible change."""
    result = {place: verdicts.without_claim(cell) for place, cell in cells.items()}
    for place, cell in result.items():
        if isinstance(cell, Ending):
            result[place] = replace(cell, bound=-float(ENDINGS[place[0]].sign))
    return result


def tokens_per_draw(pairs: Sequence[Pair]) -> dict[str, float | None]:
    """Tokens at the largest budget, as the fields of `cells.Stopping`; all tasks have the same weight.

    tokens_ratio: per draw, as a multiple of the base's. per_correct, base_per_correct: tokens per correct draw of each
    run; None if it has no correct draw, or its tokens are not known.
    """
    (base, base_correct), (other, other_correct) = (
        np.mean([[t.by_group(values[:, -1]).mean() for values in (t.used, t.correct)] for t in tables], axis=0)
        for tables in sides(pairs)
    )

    def per_correct(used: float, correct: float) -> float | None:
        return float(used / correct) if used > 0 and correct else None

    return {
        "tokens_ratio": float(other / base) if base else None,
        "per_correct": per_correct(other, other_correct),
        "base_per_correct": per_correct(base, base_correct),
    }
