"""Retention: a model's slope of accuracy per doubling of the budget, as a share of the base model's slope.

Slopes are least-squares slopes on log2 of the budgets above 0, one per problem, paired. `base` and `other` hold a (P,
C) array of slopes for each task, P problems by C pairs of models (one, except in simulations); a model's slope is the
mean over tasks of the mean over problems.

* The interval is Fieller's (1954): all ratios rho for which the mean of other - rho base is not significantly different
  from 0, with Student's quantile. It is finite only where the base's own slope is clearly above 0; elsewhere there is
  no scaling to keep, and no interval. Two pseudo-problems, one with the slope of a typical problem and one with its
  negative, widen it for the reason that `paired` gives: without them it would be a point where no problem differs.
* *lost*: other - 0.9 base is below 0, and the base's slope above 0, by betting.
* *kept*: other - 0.9 base and the base's slope are above 0, by betting. A t test makes this claim too easily with few
  problems: where a tenth of the problems stop scaling, it says *kept* in up to half of the cases at n = 5, and betting
  in none (docs/verdicts.md).
"""

from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from prunus.results import betting, paired

Floats = NDArray[np.float64]
ENOUGH = 0.9  # smallest share of the base's slope at which scaling counts as kept


def retention(base: Sequence[Floats], other: Sequence[Floats]) -> tuple[Floats, Floats, Floats]:
    """(C,) ratio of other's slope to base's, low and high (95 %); nan unless base's slope is clearly above 0."""
    x, y, xx, xy, yy, extra = _moments(base, other)
    square = scipy.stats.t.isf(0.025, paired.freedom(base)) ** 2
    a, b, c = x**2 - square * xx, x * y - square * xy, y**2 - square * (yy + extra)
    clear = (a > square * extra) & (x > 0)
    a, root = np.where(clear, a, np.nan), np.sqrt(np.maximum(b**2 - a * c, 0.0))
    return y / np.where(clear, x, np.nan), (b - root) / a, (b + root) / a


def p_lost(base: Sequence[Floats], other: Sequence[Floats], reach: float, seed: int = 0, draws: int = 1) -> Floats:
    """(C,) p-values of "other has at least 0.9 of base's slope, or base's is not above 0", by betting."""
    return _p(base, other, reach, seed, draws, -1)


def p_kept(base: Sequence[Floats], other: Sequence[Floats], reach: float, seed: int = 0, draws: int = 1) -> Floats:
    """(C,) p-values of "other has at most 0.9 of base's slope, or base's is not above 0", by betting.

    reach: the largest absolute slope that a problem can have. draws: of each problem.
    """
    return _p(base, other, reach, seed, draws, 1)


def _p(base: Sequence[Floats], other: Sequence[Floats], reach: float, seed: int, draws: int, sign: int) -> Floats:
    scale = reach * (1 + ENOUGH)
    apart = [sign * (theirs - ENOUGH * ours) / scale for ours, theirs in zip(base, other, strict=True)]
    rising = [ours / reach for ours in base]
    return np.maximum(*(betting.p_value(strata, 0.0, seed, draws) for strata in (apart, rising)))


def scaling_word(p_kept: float, p_lost: float) -> str:
    """kept, lost or cannot tell, from the adjusted p-values."""
    return "kept" if p_kept <= betting.ALPHA else "lost" if p_lost <= betting.ALPHA else "cannot tell"


def _moments(base: Sequence[Floats], other: Sequence[Floats]) -> tuple[Floats, ...]:
    """(C,) each: means of base and other; covariances xx, xy, yy of these means; what pseudo-problems add to xx, yy.

    Variances are nan if a task has one problem.
    """
    found = np.zeros((6, base[0].shape[1]))
    for x, y in zip(base, other, strict=True):
        n, square = len(x), x**2 + y**2
        typical = square.sum(axis=0) / np.maximum(2 * (square > 0).sum(axis=0), 1)
        dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
        with np.errstate(invalid="ignore"):
            variances = [(one * two).sum(axis=0) / np.float64(n - 1) / n for one, two in ((dx, dx), (dx, dy), (dy, dy))]
        found[:2] += np.stack([x.mean(axis=0), y.mean(axis=0)]) / len(base)
        found[2:] += np.stack([*variances, 2 * typical / (n + 2) ** 2]) / len(base) ** 2
    return tuple(found)
