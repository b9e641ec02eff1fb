"""Bounds and p-values, by betting, for the mean of bounded differences; they are valid for any number of problems.

A gambler bets, problem after problem, that the mean is above m, and chooses each amount before seeing the next
difference. If the mean is m or less, the wealth K is a supermartingale that starts at 1, so it ever reaches 1/alpha
with probability alpha at most (Ville's inequality), whatever the distribution: for 2 problems as for 2000, and also
where a rare large loss was not sampled, which no bootstrap accounts for (docs/verdicts.md).

The number of problems T is fixed beforehand, so the gambler aims at the goal G = 1/alpha. With wealth K before problem
t the bet is sqrt(2 log(G / K) / (v (T - t))), v the mean square so far, and once the goal is reached nothing more is
bet (Voracek and Orabona 2025, "STaR-Bets", arXiv:2505.22422). This has nearly the power of a z-test: it finds 70 % of
the losses of which sign flips find 73 % (200 problems, one draw), and bets that do not aim find 58 %. As bets depend on
the level, a p-value is the smallest of LEVELS at which, and at all larger ones, the gambler who aims at that level
succeeds; a lower bound is the largest of a grid of means that is rejected with all smaller ones.

`strata` are the tasks, as in `paired`: a (P, C) array of differences in [-1, 1] each, P problems by C contrasts; the
mean is that over tasks of the mean over problems. The order of the problems must not depend on the differences:
`prunus.questions.order_of_bets` gives it.

Several tasks with a draw per problem, of which the smallest has at least 1/ALIKE of the problems of the largest, are
bet on in rounds with problems of every task. Otherwise the wealth is the product of one wealth per task, (1 + 9 K) / 10
each: a tenth of the money is never bet. This is sharper where differences are small or rounds would be few. How the
mean splits among tasks is not known, so the bound is the smallest mean over tasks of per-task bounds, over all ways to
share log(1/alpha) among the tasks. These bets do not aim: they are the predictable plug-in bets of Waudby-Smith and
Ramdas, JRSS-B 2024, arXiv:2010.09686, truncated so that no bet can lose more than 3/4 of the wealth; this is the
one-sided half of their method.
"""

from collections.abc import Sequence
from math import ceil, log, sqrt

import numpy as np
from numpy.typing import NDArray

from prunus.statistics import paired
from prunus.statistics.coupling import mixed
from prunus.statistics.paired import Floats

ALPHA = 0.05
AIMED = 0.99  # largest share of the wealth that one aimed bet can lose
UNSURE = 0.25  # mean square of the differences before the first one, which counts as one problem
ALIKE = 4  # with one draw, tasks whose numbers of problems differ by no more than this factor are bet on in rounds
MANY = 16  # levels include alpha / k for up to this many tests, one- and two-sided, so that corrections lose nothing
LEVELS = np.unique([*1.5 ** -np.arange(36.0), *(ALPHA / s / k for s in (1, 2) for k in range(1, MANY + 1))])[::-1]
MEANS = np.linspace(-1, 1, 402)[1:-1] ** 3  # grid of mean differences for bounds, densest around no difference
LARGEST_STAKE = 0.75  # largest share of the wealth that a bet that does not aim can lose
HALVINGS = 24  # steps of bisection of [-1, 1]: bounds to a ten-millionth
KEPT = 0.1  # share of the money that is never bet, where there are several tasks
STEP = 0.02  # grid of log wealth for sharing it among tasks
SMALLEST = 1e-6  # p-values of several tasks are not computed below this
NULLS = (np.linspace(-1, 1, 801) ** 3 + 1) / 2  # grid of null means in [0, 1], densest around no difference


def lower_bound(
    strata: Sequence[Floats],
    alpha: float = ALPHA,
    draws: int = 1,
    nulls: Sequence[float] = (),
    matched: Sequence[Floats] | None = None,
) -> Floats:
    """(C,) lower bounds of the mean difference; each holds with probability 1 - alpha for any number of problems.

    -1 where nothing is ruled out. draws: of each problem. nulls: means that are tried besides those of the grid.
    matched: differences over matched draws, where strata has those over all draws (`coupling`).
    """
    taken = _weighted(strata, matched)
    if (rounds := in_rounds(taken, draws)) is None:
        bounds_SC = _shared_out([(task + 1) / 2 for task in taken], alpha, log(1 / alpha))
        return 2 * bounds_SC[-1] - 1
    means = np.unique([*MEANS, *nulls])
    return largest_mean(means, reaches(rounds, means[:, None], np.full((1, 1), log(1 / alpha))))


def p_value(
    strata: Sequence[Floats],
    margin: float = 0.0,
    draws: int = 1,
    matched: Sequence[Floats] | None = None,
) -> Floats:
    """(C,) p-values of "the mean difference is -margin or less": small where the loss is below the margin.

    They are valid at any level, so Holm's correction may be applied. matched: as for lower_bound.
    """
    taken = _weighted(strata, matched)
    if (rounds := in_rounds(taken, draws)) is None:
        bounds_SC = _shared_out([(task + 1) / 2 for task in taken], ALPHA, log(1 / SMALLEST))
        wealth = np.arange(len(bounds_SC)) * STEP  # logarithms, from 0 on
        above_SC = bounds_SC > (1 - margin) / 2
        return np.exp(-np.where(above_SC, wealth[:, None], 0.0).max(axis=0))
    return smallest_level(reaches(rounds, np.full((1, 1), -margin), -np.log(LEVELS)[:, None]))


def smallest_level(reached_LC: NDArray[np.bool_]) -> Floats:
    """(C,) the smallest of LEVELS at which, and at all larger ones, the goal is reached; at level 1 it always is."""
    return LEVELS[np.logical_and.accumulate(reached_LC, axis=0).sum(axis=0) - 1]


def largest_mean(means_G: Floats, rejected_GC: NDArray[np.bool_]) -> Floats:
    """(C,) the largest of these means that is rejected with all smaller ones; -1 if there is none."""
    count_C = np.logical_and.accumulate(rejected_GC, axis=0).sum(axis=0)
    return np.where(count_C > 0, means_G[count_C - 1], -1.0)


def reaches(differences_TC: Floats, nulls: Floats, goals: Floats) -> NDArray[np.bool_]:
    """(G, C) whether the gambler who bets that a mean is above a null reaches a goal, a logarithm of wealth.

    nulls, goals: arrays that broadcast to (G, C).
    """
    if nulls.shape[1] == goals.shape[1] == 1:  # equal contrasts, of which stopping has many, are computed once
        differences_TC, column_C = np.unique(differences_TC, axis=1, return_inverse=True)
        return (aimed_wealth(differences_TC, nulls, goals) >= goals)[:, column_C]
    return aimed_wealth(differences_TC, nulls, goals) >= goals


def aimed_wealth(differences_TC: Floats, nulls: Floats, goals: Floats) -> Floats:
    """(G, C) logarithm of the final wealth of the gambler of `reaches`, who bets no more once the goal is reached."""
    T, shape = len(differences_TC), np.broadcast_shapes(nulls.shape, goals.shape, differences_TC[:1].shape)
    logs_GC, squares_GC, bets_GC = np.zeros(shape), np.full(shape, UNSURE), np.empty(shape)
    most = AIMED / (1 + nulls)
    for t, difference_C in enumerate(differences_TC):
        above = difference_C - nulls
        np.subtract(goals, logs_GC, out=bets_GC)
        np.maximum(bets_GC, 0.0, out=bets_GC)
        bets_GC /= squares_GC
        bets_GC *= 2 * (t + 1) / (T - t)
        np.sqrt(bets_GC, out=bets_GC)
        np.minimum(bets_GC, most, out=bets_GC)
        bets_GC *= above
        logs_GC += np.log1p(bets_GC, out=bets_GC)
        squares_GC += above**2
    return logs_GC


def bets(scaled: Sequence[Floats], alpha: float) -> list[Floats]:
    """(T, C) bets of each task, a bet on each value from the values before it.

    For one task sqrt(2 log(1/alpha) / (v n)), v the variance so far; for several sqrt(2 log(1/alpha)) / (n sqrt(sum of
    their v/n)), which suits their mean; each v is taken after the same share of its task.
    """
    sizes = list(map(len, scaled))
    variances = [variance_before(values) for values in scaled]
    by_task = []
    for n in sizes:
        t = np.arange(n)
        spread_TC = sum(v[t * other // n] / other for v, other in zip(variances, sizes, strict=True))
        by_task.append(sqrt(2 * log(1 / alpha)) / (n * np.sqrt(spread_TC)))
    return by_task


def variance_before(scaled_TC: Floats) -> Floats:
    """(T, C) variance of the values before each, regularised by a first pseudo-value of variance 1/4."""
    t_T1 = np.arange(1, len(scaled_TC) + 1)[:, None]
    mean_TC = (0.5 + np.cumsum(scaled_TC, axis=0)) / (t_T1 + 1)
    variance_TC = (0.25 + np.cumsum((scaled_TC - mean_TC) ** 2, axis=0)) / (t_T1 + 1)
    return np.concatenate([np.full((1, scaled_TC.shape[1]), 0.25), variance_TC[:-1]])


def steps(scaled_TC: Floats, bets_TC: Floats, null: Floats, most: float | Floats = LARGEST_STAKE) -> Floats:
    """(T, C) increments of log wealth, which decrease in the null means (C,) in (0, 1].

    most: largest share of the wealth that a bet can lose; or (T, 1) of every bet.
    """
    return np.log1p(np.minimum(bets_TC, most / null) * (scaled_TC - null))


def log_wealth(scaled_TC: Floats, bets_TC: Floats, null_C: Floats, most: float | Floats = LARGEST_STAKE) -> Floats:
    """(C,) logarithm of the largest wealth reached by betting against these null means; at least 0."""
    return np.maximum(np.cumsum(steps(scaled_TC, bets_TC, null_C, most), axis=0).max(axis=0), 0.0)


def bound(scaled_TC: Floats, bets_TC: Floats, alpha: float, most: float | Floats = LARGEST_STAKE) -> Floats:
    """(C,) the largest null mean that is rejected at alpha, by bisection; 0 if none is."""
    low_C, high_C = np.zeros(scaled_TC.shape[1]), np.ones(scaled_TC.shape[1])
    for _ in range(HALVINGS):
        middle_C = (low_C + high_C) / 2
        rejected_C = log_wealth(scaled_TC, bets_TC, middle_C, most) >= log(1 / alpha)
        low_C, high_C = np.where(rejected_C, middle_C, low_C), np.where(rejected_C, high_C, middle_C)
    return low_C


def interval(values_TC: Floats, alpha: float, rounds: int) -> tuple[Floats, Floats]:
    """(C,) lower and (C,) upper bounds of the means of values in [0, 1], each wrong with probability alpha / 2.

    They hold at any time. rounds: the most that there can be, for which the bets are sized.
    """
    ends = list[Floats]()
    for scaled_TC in (values_TC, 1 - values_TC):
        bets_TC = np.sqrt(2 * log(2 / alpha) / (variance_before(scaled_TC) * rounds))
        ends.append(bound(scaled_TC, bets_TC, alpha / 2))
    return ends[0], 1 - ends[1]


def _shared_out(scaled: Sequence[Floats], alpha: float, most: float) -> Floats:
    """(S, C) smallest mean over tasks that is not rejected at log wealth 0, STEP, ..., up to `most` or slightly above.

    Task means m_k are not rejected at a level if their log wealths sum to less. A task's log wealth decreases in m_k,
    so the smallest sum of m_k is found over the ways to split the level among tasks. Rounding makes the bound lower.
    """
    K, least = len(scaled), log(KEPT)
    levels = ceil((most - K * least) / STEP) + K  # the sum of K numbers, each rounded up, may be K steps too large
    sums_SC = np.zeros((1, scaled[0].shape[1]))
    for task, sizes in zip(scaled, bets(scaled, alpha), strict=True):
        bounds_LC = _bounds_by_level(task, sizes, least + STEP * np.arange(levels + 1, dtype=np.float64))
        next_SC = np.full((levels + 1, sums_SC.shape[1]), np.inf)
        for level, bound_C in enumerate(bounds_LC):
            reach = min(len(sums_SC), levels + 1 - level)
            part = next_SC[level : level + reach]
            np.minimum(part, sums_SC[:reach] + bound_C, out=part)
        sums_SC = next_SC
    first = ceil(-K * least / STEP) + K
    return sums_SC[first:] / K


def _bounds_by_level(scaled_TC: Floats, bets_TC: Floats, levels_L: Floats) -> Floats:
    """(L, C) the largest null mean whose final log wealth, with the money never bet, is at least each level; else 0."""
    bounds_LC = np.empty((len(levels_L), scaled_TC.shape[1]))
    nulls = np.maximum(NULLS, 1e-9)
    for c in range(scaled_TC.shape[1]):
        total = steps(scaled_TC[:, c, None], bets_TC[:, c, None], nulls).sum(axis=0)
        wealth = np.log(KEPT + (1 - KEPT) * np.exp(np.minimum(total, 600)))  # falls along the nulls
        rejected_L = np.searchsorted(-wealth, -levels_L, side="right")
        bounds_LC[:, c] = np.where(rejected_L > 0, NULLS[rejected_L - 1], 0.0)
    return bounds_LC


def random_order(problems: int, seed: int, task: int = 0) -> NDArray[np.int_]:
    """The places of a task's problems in the order in which they are taken."""
    return np.random.default_rng([seed, task]).permutation(problems)


def _weighted(strata: Sequence[Floats], matched: Sequence[Floats] | None) -> Sequence[Floats]:
    """The differences of each task that are bet on: `coupling.mixed` where there are differences over matched draws."""
    return strata if matched is None else [mixed(*both) for both in zip(strata, matched, strict=True)]


def in_rounds(strata: Sequence[Floats], draws: int) -> Floats | None:
    """(T, C) means over tasks of T rounds, T the size of the smallest task; None where each task has bets of its own.

    The problems of larger tasks are spread evenly over the rounds.
    """
    sizes = list(map(len, strata))
    if len(sizes) > 1 and (draws > 1 or max(sizes) > ALIKE * min(sizes)):
        return None
    T = min(sizes)
    starts = [np.arange(T) * n // T for n in sizes]
    sums = (np.add.reduceat(task, start, axis=0) for task, start in zip(strata, starts, strict=True))
    counts = (np.diff(np.append(start, n))[:, None] for start, n in zip(starts, sizes, strict=True))
    return np.mean([total / count for total, count in zip(sums, counts, strict=True)], axis=0)


# Is there a difference, and in which direction? p-values that hold however differences are distributed.
# "Better" rejects that the mean difference is 0 or less, "worse" that it is 0 or more, each by bets in its direction
# (`betting`). Sign flips would not do: they are exact only if differences are symmetric under the null, and where a few
# problems break and the others gain a little they call equal models better in up to 16.8 % of the cases
# (docs/measurements/verdicts.md). With one draw per problem, differences are -1, 0 and 1, and McNemar's exact test
# serves.


def direction_p(
    strata: Sequence[Floats],
    draws: int = 1,
    mcnemar_C: NDArray[np.bool_] | None = None,
    matched: Sequence[Floats] | None = None,
) -> dict[str, Floats]:
    """p_better and p_worse (one-sided) and p (two-sided, twice the smaller one) of every contrast, (C,) each.

    strata: (P, C) differences in [-1, 1] of each task. mcnemar_C: contrasts that compare one draw of each problem,
    which McNemar's test may judge; only with one task. matched: as for lower_bound.
    """
    better = p_value(strata, draws=draws, matched=matched)
    opposite = matched and [-differences for differences in matched]
    worse = p_value([-differences for differences in strata], draws=draws, matched=opposite)
    if mcnemar_C is not None and mcnemar_C.any():
        won, lost = ((sign * strata[0] > 0).sum(axis=0) for sign in (1, -1))
        better = np.where(mcnemar_C, paired.mcnemar_p(lost, won), better)
        worse = np.where(mcnemar_C, paired.mcnemar_p(won, lost), worse)
    return {"p_better": better, "p_worse": worse, "p": two_sided(better, worse)}


def two_sided(better: Floats, worse: Floats) -> Floats:
    """Twice the smaller one of two one-sided p-values, at most 1."""
    return np.minimum(1.0, 2 * np.minimum(better, worse))
