"""A lower bound for the mean of bounded differences that holds for any number of problems, by betting.

Who thinks that the mean is above m bets on it, problem after problem, an amount that he chooses before he sees the next
difference. If the mean is m or less, his wealth K is a supermartingale that starts at 1: it ever reaches 1/alpha with
probability alpha at most (Ville), whatever the distribution. So 1 / (largest K) is a p of "the mean is at most m", and
the smallest m that it does not reject bounds the mean from below: for 2 problems as for 2000, and also where none of
those sampled shows what a few others would. A bootstrap knows only what was sampled (docs/verdicts.md).

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024, arXiv:2010.09686: their
predictable plug-in bets with at most 3/4 of what could be lost, of which this is the upper half.

`strata` are the tasks, as in `paired`: a (P, C) array of differences in [-1, 1] each, P problems by C contrasts; the
mean is that over tasks of the mean over problems. Problems are met in an order that the seed alone decides.

With several tasks wealth is the product of one wealth per task, (1 + 9 K) / 10 each: a tenth of the money is kept. The
bound is the mean over tasks of their own bounds at the worst way to share log(1/alpha) out among them, since nobody
knows how the mean splits. A bound per task at alpha / tasks would have all of them pay the whole of it, and rounds of
one problem of each task would have the smallest task limit all others; docs/verdicts.md has all three measured.
"""

from collections.abc import Sequence
from math import ceil, log, sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ALPHA = 0.05
MOST = 0.75  # of what a bet on more than m could lose
HALVINGS = 24  # of [-1, 1] when a bound is sought: a ten-millionth
KEPT = 0.1  # money that no bet touches, where there are several tasks
STEP = 0.02  # of log wealth, when it is shared out among tasks
SMALLEST = 1e-6  # p of several tasks is not followed further
NULLS = (np.linspace(-1, 1, 801) ** 3 + 1) / 2  # means in [0, 1] that are tried then, densest about no difference


def lower_bound(strata: Sequence[Floats], alpha: float = ALPHA, seed: int = 0) -> Floats:
    """(C,) numbers that lie above the mean difference with probability alpha at most, for any number of problems."""
    scaled = _scaled(strata, seed)
    if len(scaled) > 1:
        bounds_SC = _shared_out(scaled, alpha, log(1 / alpha))
        return 2 * bounds_SC[-1] - 1
    return 2 * _bound(scaled[0], bets(scaled, alpha)[0], alpha) - 1


def p_value(strata: Sequence[Floats], margin: float = 0.0, seed: int = 0) -> Floats:
    """(C,) p of "the mean difference is -margin or less": small where a loss is surely smaller than the margin.

    p <= .05 where `lower_bound` lies above -margin, as bets are tuned for that level; it is valid at any other too, so
    that Holm's correction may be applied to it.
    """
    scaled, null = _scaled(strata, seed), (1 - margin) / 2
    if len(scaled) > 1:
        bounds_SC = _shared_out(scaled, ALPHA, log(1 / SMALLEST))
        wealth = np.arange(len(bounds_SC)) * STEP  # logarithms, from 0 on
        above_SC = bounds_SC > null
        return np.exp(-np.where(above_SC, wealth[:, None], 0.0).max(axis=0))
    return np.exp(-log_wealth(scaled[0], bets(scaled, ALPHA)[0], np.full(scaled[0].shape[1], null)))


def any_time_bound(differences_TC: Floats, alpha: float = ALPHA) -> Floats:
    """(C,) a bound as `lower_bound` for one task, that may be looked at after every problem, to stop when one likes.

    Problems stand in the order in which they were met, so that a later look only adds to an earlier one; bets fall with
    the number of problems met, instead of being tuned for their final number.
    """
    scaled = (differences_TC + 1) / 2
    return 2 * _bound(scaled, bets([scaled], alpha, any_time=True)[0], alpha) - 1


def any_time_p(differences_TC: Floats, margin: float = 0.0) -> Floats:
    """(C,) p as `p_value` for one task, with the bets of `any_time_bound`: valid whenever it is looked at."""
    scaled = (differences_TC + 1) / 2
    null = np.full(scaled.shape[1], (1 - margin) / 2)
    return np.exp(-log_wealth(scaled, bets([scaled], ALPHA, any_time=True)[0], null))


def bets(scaled: Sequence[Floats], alpha: float, any_time: bool = False) -> list[Floats]:
    """(T, C) sizes of the bets before each value of each task, all in [0, 1], from values before it.

    For one task sqrt(2 log(1/alpha) / (v n)), v the variance so far; for several sqrt(2 log(1/alpha)) / (n sqrt(sum of
    their v/n)), which is what suits their mean, with each v as far as the tasks were met in step. any_time: t log(1+t)
    in place of n.
    """
    sizes = list(map(len, scaled))
    variances = [_variance_before(values) for values in scaled]
    found = []
    for n in sizes:
        t = np.arange(n)
        spread_TC = sum(v[t * other // n] / other for v, other in zip(variances, sizes, strict=True))
        bets_TC = sqrt(2 * log(1 / alpha)) / (n * np.sqrt(spread_TC))
        found.append(bets_TC * np.sqrt(n / ((t + 1) * np.log(t + 2)))[:, None] if any_time else bets_TC)
    return found


def _variance_before(scaled_TC: Floats) -> Floats:
    """(T, C) variance of the values before each, with one of variance 1/4 thought in front."""
    t_T1 = np.arange(1, len(scaled_TC) + 1)[:, None]
    mean_TC = (0.5 + np.cumsum(scaled_TC, axis=0)) / (t_T1 + 1)
    variance_TC = (0.25 + np.cumsum((scaled_TC - mean_TC) ** 2, axis=0)) / (t_T1 + 1)
    return np.concatenate([np.full((1, scaled_TC.shape[1]), 0.25), variance_TC[:-1]])


def _steps(scaled_TC: Floats, bets_TC: Floats, null: Floats) -> Floats:
    """(T, C) what each value adds to the logarithm of wealth; null means in (0, 1], (C,). It falls with the null."""
    return np.log1p(np.minimum(bets_TC, MOST / null) * (scaled_TC - null))


def log_wealth(scaled_TC: Floats, bets_TC: Floats, null_C: Floats) -> Floats:
    """(C,) logarithm of the largest wealth that betting against these null means ever had; it starts at 0."""
    return np.maximum(np.cumsum(_steps(scaled_TC, bets_TC, null_C), axis=0).max(axis=0), 0.0)


def _bound(scaled_TC: Floats, bets_TC: Floats, alpha: float) -> Floats:
    """(C,) the largest null mean found rejected at alpha, as are then all below it; 0 if none is."""
    low_C, high_C = np.zeros(scaled_TC.shape[1]), np.ones(scaled_TC.shape[1])
    for _ in range(HALVINGS):
        middle_C = (low_C + high_C) / 2
        rejected_C = log_wealth(scaled_TC, bets_TC, middle_C) >= log(1 / alpha)
        low_C, high_C = np.where(rejected_C, middle_C, low_C), np.where(rejected_C, high_C, middle_C)
    return low_C


def _shared_out(scaled: Sequence[Floats], alpha: float, most: float) -> Floats:
    """(S, C) smallest mean over tasks that log wealth 0, STEP, ... (at least `most` in the end) does not reject.

    Means m_k of the tasks are not rejected if the logarithms of their wealths sum to less. A task's log wealth falls
    with m_k, so the smallest sum of m_k is sought over the ways to split a total among tasks. All is rounded to the
    side that makes the bound lower.
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
    """(L, C) the largest null mean whose final log wealth, with the money kept, is at each level or above; else 0."""
    found = np.empty((len(levels_L), scaled_TC.shape[1]))
    nulls = np.maximum(NULLS, 1e-9)
    for c in range(scaled_TC.shape[1]):
        total = _steps(scaled_TC[:, c, None], bets_TC[:, c, None], nulls).sum(axis=0)
        wealth = np.log(KEPT + (1 - KEPT) * np.exp(np.minimum(total, 600)))  # falls along the nulls
        rejected_L = np.searchsorted(-wealth, -levels_L, side="right")
        found[:, c] = np.where(rejected_L > 0, NULLS[rejected_L - 1], 0.0)
    return found


def _scaled(strata: Sequence[Floats], seed: int) -> list[Floats]:
    """Values in [0, 1], each task's in an order of its own that the seed decides."""
    orders = [np.random.default_rng([seed, number]).permutation(len(task)) for number, task in enumerate(strata)]
    return [(task[order] + 1) / 2 for task, order in zip(strata, orders, strict=True)]
