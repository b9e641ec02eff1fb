"""Tests about one finite set of problems, of which some were taken at random without replacement.

With a single outcome of each problem by each of two models, as greedy chains have, nothing but the choice of problems
is random. Which of the others would be lost or gained is all that is unknown, so that the more of the set was taken the
less is left to know: of 1,319 problems 800 say more of *these 1,319* than of problems like them. None of this holds for
sampled chains, whose noise does not end with the set.

`p_value` and `lower_bound` serve one draw at one budget, as `exact` does, with hypergeometric probabilities instead of
binomial ones: the largest probability, over the unknown number gained in the set, of outcomes at least as good in
Tango's order. That number is looked for where it is plausible after the gains that were seen (Berger and Boos 1994),
and the error of that is added. If a set loses more than the margin, good outcomes are rarer still, as in `exact`.

`bets_lower_bound` serves areas, whose differences lie anywhere in [-1, 1], by betting: with a null mean m of N
problems, the mean of those that are left before problem t is (N m - sum of the differences before) / (N - t + 1), which
takes the place of m (Waudby-Smith and Ramdas, NeurIPS 2020, arXiv:2006.04347).

N: problems of the set; L, G: lost and gained in it; l, g: in the sample.
"""

from functools import lru_cache
from math import log
from typing import Any

import numpy as np
import scipy

from prunus.statistics import betting, exact
from prunus.statistics.exact import UNLIKELY
from prunus.statistics.paired import Floats

ROUNDING = 1e-9  # tolerance for margins that are a whole number of problems
COARSE, FINE = 49, 17  # numbers gained that are tried: over all that are plausible, and around the worst of these


def bound(differences_P: Floats, size: int, margin: float, alpha: float, one_outcome: bool) -> tuple[float, bool]:
    """(bound, within): 1 - alpha lower bound of the set's mean difference; whether it rules out a loss of the margin.

    differences_P: of the problems of a sample, in an order that does not depend on them. margin: a loss, at least 0, as
    a share of the set. one_outcome: whether differences are -1, 0 and 1.
    """
    if one_outcome:
        counts = int((differences_P < 0).sum()), int((differences_P > 0).sum())
        return (found := lower_bound(*counts, len(differences_P), size, alpha)), found > ROUNDING - margin
    return (found := bets_lower_bound(differences_P, size, alpha, [-margin])), found >= -margin


def lower_bound(lost: int, gained: int, problems: int, size: int, alpha: float = betting.ALPHA) -> float:
    """Lower bound, with probability 1 - alpha, of the share of the set that is gained minus the share that is lost.

    It is the largest of -1, -1 + 1 / size, ... for which the test rules out all smaller values.
    """
    least, most = size + 1, -size  # losses of `least` or more are ruled out; more than the set has are impossible
    while least - most > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if p_value(lost, gained, problems, size, middle) <= alpha else (least, middle)
    for loss in range(least, min(size, least + exact.CHECKED) + 1):  # p may fall a little from a loss to a smaller one
        least = least if p_value(lost, gained, problems, size, loss) <= alpha else loss + 1
    return (1 - least) / size


@lru_cache(maxsize=1 << 12)
def p_value(lost: int, gained: int, n: int, size: int, loss: int) -> float:
    """The p-value of "the set loses this net number of problems or more", from one outcome of each problem of a sample.

    lost, gained: numbers of problems in the sample, which has n. size: of the set. loss: of -size to size.
    """
    gained_S = np.arange(max(0, -loss), (size - loss) // 2 + 1)  # in the set: lost and gained are size at most
    tails = (
        scipy.stats.hypergeom.sf(gained - 1, size, gained_S, n),
        scipy.stats.hypergeom.cdf(gained, size, gained_S, n),
    )
    gained_S = gained_S[np.minimum(*tails) > UNLIKELY / 2]
    if not len(gained_S):
        return UNLIKELY
    gained_G = np.arange(n + 1.0)
    most_G = exact.most_lost(lost, gained, gained_G, n, loss / size)
    chosen = np.unique(np.linspace(0, len(gained_S) - 1, COARSE).astype(int))
    found = [_probability(int(gained_S[place]), loss, most_G, n, size) for place in chosen]
    worst, reach = int(np.argmax(found)), np.diff(chosen).max(initial=0)
    near = np.linspace(chosen[worst] - reach, chosen[worst] + reach, FINE).astype(int).clip(0, len(gained_S) - 1)
    found += [_probability(int(gained_S[place]), loss, most_G, n, size) for place in np.unique(near)]
    return min(1.0, max(found) + UNLIKELY)


def _probability(gained: int, loss: int, most_G: Floats, n: int, size: int) -> float:
    """The probability that a sample loses at most most_G[number that it gains], if the set gains `gained`."""
    lost, rest = gained + loss, size - 2 * gained - loss
    gained_G = np.arange(max(0, n - size + gained), min(n, gained) + 1)
    chance_G = np.exp(_ways(gained, gained_G) + _ways(size - gained, n - gained_G) - _ways(size, n))
    gained_G, chance_G = gained_G[chance_G > exact.NEGLIGIBLE], chance_G[chance_G > exact.NEGLIGIBLE]
    lost_L = np.arange(int(most_G[gained_G].max(initial=-1)) + 1)
    left_G1 = n - gained_G[:, None]
    logs_GL = _ways(lost, lost_L) + _ways(rest, left_G1 - lost_L) - _ways(lost + rest, left_G1)
    enough_G = np.where(lost_L <= most_G[gained_G][:, None], np.exp(logs_GL), 0.0).sum(axis=1)
    return float(chance_G @ enough_G)


def _ways(of: int, taken: Any) -> Floats:
    """The logarithm of the binomial coefficient `of` over `taken`; -inf where that is 0."""
    taken = np.asarray(taken, float)
    inside = (taken >= 0) & (taken <= of)
    taken = np.where(inside, taken, 0.0)
    return np.where(
        inside,
        scipy.special.gammaln(of + 1) - scipy.special.gammaln(taken + 1) - scipy.special.gammaln(of - taken + 1),
        -np.inf,
    )


def bets_lower_bound(differences_T: Floats, size: int, alpha: float = betting.ALPHA, nulls: Any = ()) -> float:
    """The lower bound of the mean difference of the set, with probability 1 - alpha; -1 where nothing is ruled out.

    nulls: means that are tried besides those of the grid of `betting`.
    """
    means_G, goal = np.unique([*betting.MEANS, *nulls]), log(1 / alpha)
    rejected_G = wealth(differences_T, means_G, goal, size) >= goal
    return float(betting.largest_mean(means_G, rejected_G[:, None])[0])


def wealth(differences_T: Floats, nulls_G: Floats, goal: float, size: int) -> Floats:
    """(G,) logarithm of the wealth as in `betting.aimed_wealth`, each null being the mean it leaves for the rest."""
    T, total, logs, squares = len(differences_T), 0.0, np.zeros(len(nulls_G)), np.full(len(nulls_G), betting.UNSURE)
    for t, difference in enumerate(differences_T):
        null = (size * nulls_G - total) / (size - t)
        impossible = null < -1 - ROUNDING  # even if all that is left is lost
        above = difference - null
        bet = np.sqrt(np.maximum(goal - logs, 0.0) * 2 * (t + 1) / (squares * (T - t)))
        bet = np.minimum(bet, betting.AIMED / np.maximum(1 + null, ROUNDING))
        logs = np.where(impossible, np.inf, logs + np.log1p(np.maximum(bet * above, -betting.AIMED)))
        squares = squares + above**2
        total += difference
    return logs
