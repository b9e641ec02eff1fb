"""Exact tests of paired outcomes: one draw of each problem by each of two models, a fixed number of problems.

Of n independent problems some are lost (only the first model solves them) and some gained. The test is unconditional:
outcomes (lost, gained) are ordered by Tango's score statistic (Statistics in Medicine 1998), and p is the largest
probability, over the unknown share of problems that is gained, of outcomes at least as good as the observed one. That
share is looked for where it is plausible after the gains that were seen (Berger and Boos 1994): in its Clopper-Pearson
interval, whose error UNLIKELY is added to p.

A model whose loss is larger than the margin has good outcomes less often than one that loses exactly the margin, since
the order falls in `lost`; so the largest probability is found at the margin itself. For a number gained, the outcomes
at least as good are those up to a number lost, so their probability is a sum of binomial probabilities.

Bets (`betting`) serve where differences are not -1, 0 and 1, or where the number of problems was not fixed. Where few
problems differ this test finds much more (docs/measurements/verdicts.md): one early loss takes most of a bet's wealth.

G: numbers gained, 0 to n; K: values of the unknown share.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import asin, sqrt

import numpy as np
import scipy
from numpy.typing import ArrayLike

from prunus.statistics import betting
from prunus.statistics.paired import Floats

UNLIKELY = 1e-6  # probability that the share gained is outside the interval in which it is looked for
PER_ERROR = 4  # values of the unknown share for each standard error of it; as many again around the largest probability
NEGLIGIBLE = 1e-13  # numbers gained that are less likely are left out
HALVINGS = 16  # steps of bisection of a margin
CHECKED = 8  # means below a bound that are checked, every second one
MEANS = np.sinh(np.linspace(-6, 6, 402)[1:-1]) / np.sinh(6)  # grid of means for bounds, densest around no difference


def p_value(lost: ArrayLike, gained: ArrayLike, problems: int, margin: float = 0.0) -> Floats:
    """(C,) p-values of "the share lost is higher than the share gained by the margin or more".

    lost, gained: numbers of problems in each contrast, (C,); problems: number of all, also those that do not differ.
    margin: between -1 and 1. Exchange lost and gained to test a gain.
    """
    pairs = zip(np.atleast_1d(lost).tolist(), np.atleast_1d(gained).tolist(), strict=True)
    return np.array(
        [_p(int(number_lost), int(number_gained), problems, float(margin)) for number_lost, number_gained in pairs]
    )


def lower_bound(
    lost: ArrayLike, gained: ArrayLike, problems: int, alpha: float = betting.ALPHA, nulls: Sequence[float] = ()
) -> Floats:
    """(C,) lower bounds of the share gained less the share lost; each holds with probability 1 - alpha.

    A bound is the largest mean of a grid that the test rules out with all smaller ones; -1 if there is none. nulls:
    means that are tried besides those of the grid, so that a bound is at or above one only if the test rules it out.
    """
    means = np.unique([*MEANS, *nulls])
    pairs = zip(np.atleast_1d(lost).tolist(), np.atleast_1d(gained).tolist(), strict=True)
    return np.array(
        [_bound(int(number_lost), int(number_gained), problems, alpha, means) for number_lost, number_gained in pairs]
    )


def least_margin(problems: int, alpha: float = betting.ALPHA) -> float:
    """The smallest margin that is ruled out where no problem differs; at alpha = 5 %, (1 - margin)^n is 5 % there."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _p(0, 0, problems, middle) <= alpha else (middle, high)
    return high


def _bound(lost: int, gained: int, problems: int, alpha: float, means: Floats) -> float:
    """The lower bound of a contrast."""

    def ruled_out(place: int) -> bool:
        return _p(lost, gained, problems, -float(means[place])) <= alpha

    low, high = -1, len(means)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    # Where the order of outcomes changes, p may fall a little from a mean to the next.
    for place in range(low - 2, max(-1, low - 2 * CHECKED - 1), -2):
        low = low if ruled_out(place) else place - 1
    return -1.0 if low < 0 else float(means[low])


@lru_cache(maxsize=1 << 16)
def _p(lost: int, gained: int, problems: int, margin: float) -> float:
    """The p-value of a contrast."""
    n, most = problems, (1 - margin) / 2  # the share gained where no problem stays as it was
    low, high = (min(end, most) for end in _plausible(gained, n, UNLIKELY))
    ends = [scipy.special.bdtrik(p, n, end) for p, end in ((NEGLIGIBLE, low), (1 - NEGLIGIBLE, high))]
    gained_G = np.arange(max(0.0, np.floor(ends[0])), min(n, np.ceil(ends[1])) + 1)
    most_G = most_lost(lost, gained, gained_G, n, margin)
    step = 1 / (2 * sqrt(n) * PER_ERROR)  # of arcsine of the root of the share, whose standard error is 1 / (2 sqrt n)
    low, high = asin(sqrt(low)), asin(sqrt(high))
    angle_K = np.linspace(low, high, 2 + int((high - low) / step))
    found_K = _probability(gained_G, most_G, n, np.sin(angle_K) ** 2, margin)
    middle = angle_K[found_K.argmax()]
    finer_K = np.linspace(max(low, middle - step), min(high, middle + step), 2 * PER_ERROR + 1)
    finer_K = _probability(gained_G, most_G, n, np.sin(finer_K) ** 2, margin)
    return float(min(1.0, max(found_K.max(), finer_K.max()) + UNLIKELY))


def _plausible(count: int, n: int, error: float) -> tuple[float, float]:
    """The Clopper-Pearson interval of a share, of which count of n were seen."""
    low = scipy.special.betaincinv(count, n - count + 1, error / 2) if count else 0.0
    high = scipy.special.betaincinv(count + 1, n - count, 1 - error / 2) if count < n else 1.0
    return float(low), float(high)


def most_lost(lost: int, gained: int, gained_G: Floats, n: int, margin: float) -> Floats:
    """(G,) for each number gained, the largest number lost that is at least as good as (lost, gained); -1: none is."""
    goal = score(np.array(float(lost)), np.array(float(gained)), n, margin) - 1e-9  # rounding breaks no tie
    low_G, high_G = np.full(len(gained_G), -1.0), n - gained_G
    while (low_G < high_G).any():
        middle_G = np.ceil((low_G + high_G) / 2)
        good_G = (middle_G < 0) | (score(middle_G, gained_G, n, margin) >= goal)
        low_G, high_G = np.where(good_G, middle_G, low_G), np.where(good_G, high_G, middle_G - 1)
    return low_G


def _probability(gained_G: Floats, most_G: Floats, n: int, share_K: Floats, margin: float) -> Floats:
    """(K,) probability, for each share gained, of a number gained in gained_G with at most its most_G lost."""
    ways_G = -np.log1p(n) - scipy.special.betaln(gained_G + 1, n - gained_G + 1)
    logs_KG = ways_G + scipy.special.xlogy(gained_G, share_K[:, None])
    logs_KG += scipy.special.xlog1py(n - gained_G, -share_K[:, None])
    lost_K1 = np.clip((share_K + margin) / np.maximum(1 - share_K, 1e-12), 0.0, 1.0)[:, None]  # of those not gained
    enough_KG = np.where(
        most_G >= 0, scipy.special.bdtr(np.maximum(most_G, 0.0), (n - gained_G).astype(int), lost_K1), 0.0
    )
    return (np.exp(logs_KG) * enough_KG).sum(axis=1)


def score(lost: Floats, gained: Floats, problems: int, margin: float) -> Floats:
    """Tango's statistic: how many standard errors the loss is below the margin, by the variance at the margin.

    It falls in `lost` and rises in `gained`.
    """
    if margin < 0:
        return -score(gained, lost, problems, -margin)
    n = problems
    b = (lost + gained) * (1 + margin) - 2 * margin * (gained + n)
    share = (b + np.sqrt(np.maximum(b * b + 8 * n * gained * margin * (1 - margin), 0.0))) / (
        4 * n
    )  # gained, most likely
    variance = np.maximum(2 * share + margin * (1 - margin), 1e-12) / n  # 0 only where nothing differs, at margin 0
    return ((gained - lost) / n + margin) / np.sqrt(variance)
