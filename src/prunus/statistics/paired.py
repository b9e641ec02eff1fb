"""Two models on the same problems: intervals and tests of mean differences.

`strata` are the tasks: one (P, C) array of per-problem differences each, P problems by C contrasts (one per budget, one
for the area under the curve, ...). The statistic is the mean over tasks of the mean over problems, so a task with many
problems does not outweigh the others. All contrasts of a problem are resampled and flipped together.

Verdicts rest on `betting`. This module computes what is shown beside them:

* The p-value of the sign-flip permutation test. It is exact when the models are exchangeable within problems, for any
  number of problems and draws. That is more than "equal on average", so no verdict rests on it.
* The size of the difference: a bootstrap over problems after adding two pseudo-problems, one with +s and one with -s, s
  the root mean square of the differences that are not zero (1 if all are zero). For one draw per problem this is the
  adjustment of Bonett and Price (2012) to the paired Wald interval, carried over to the bootstrap. Without it intervals
  collapse where few problems differ: with 3 % discordant pairs plain bootstraps and the t interval cover .55 to .60 at
  n = 30 and .71 at n = 40 (nominal .95), the adjusted ones .99 or more; with no discordant pair at all they are the
  point 0, and this one is about +-3/n, as by the rule of three. The minimum detectable effect (`power`) uses the same
  pseudo-problems, so it is never 0.
* The interval: BCa rather than percentiles of the same resamples. Where a few problems lose much, the percentile
  interval misses on one side: with 30 problems of which one in five breaks completely, 16 draws each, it lies above the
  truth in 8 % of the cases, which would call a loss non-inferior, and BCa in 6 % (nominal 2.5; coverage .92 and .94),
  for 4 % more width. No bootstrap accounts for losses that were not sampled: with 15 problems of which one in ten
  breaks, all of them cover .80.

Problems are resampled and draws within them are not: the variance of per-problem means already contains the noise of
their draws, (omega^2 + (v_base + v_other)/N)/n, and resampling draws as well would count it twice (Davison and Hinkley
1997, section 3.8).
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
RESAMPLES = 10_000
EXPLORING_RESAMPLES = 4_000  # for numbers that do not enter a verdict
CHUNK = 1000  # resamples held in memory at a time
ALPHA, POWER = 0.05, 0.8


def estimate(strata: Sequence[Floats]) -> Floats:
    """(C,) mean difference: over the problems of a task, then over tasks."""
    return np.mean([differences.mean(axis=0) for differences in strata], axis=0)


def standard_error(strata: Sequence[Floats]) -> Floats:
    """(C,) standard error of the estimate, problems independent; nan where a task has one problem."""
    with np.errstate(invalid="ignore", divide="ignore"):
        variances = [((d - d.mean(axis=0)) ** 2).sum(axis=0) / np.float64(len(d) - 1) / len(d) for d in strata]
    return np.sqrt(sum(variances)) / len(strata)


def with_pseudo_problems(strata: Sequence[Floats]) -> list[Floats]:
    """Each task with two pseudo-problems added, +s and -s per contrast; the module's docstring says why."""
    extended = []
    for differences in strata:
        differing = (differences != 0).sum(axis=0)
        mean_square = (differences**2).sum(axis=0) / np.maximum(differing, 1)
        size = np.where(differing > 0, np.sqrt(mean_square), 1.0)
        extended.append(np.concatenate([differences, size[None], -size[None]]))
    return extended


def bootstrap(strata: Sequence[Floats], resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """(R, C) bootstrap estimates: each task's problems are drawn with replacement, with all contrasts of a problem."""
    means = np.zeros((resamples, strata[0].shape[1]))
    for differences, counts in zip(strata, _counts(tuple(map(len, strata)), resamples, seed), strict=True):
        rounded = _summable(differences)
        for rows in _chunks(resamples):
            means[rows] += counts[rows].astype(float) @ rounded / len(differences)
    return means / len(strata)


def _summable(differences: Floats) -> Floats:
    """The differences with so few bits that sums of as many of them are exact, in whatever order threads add them."""
    unit = 2 * np.spacing(len(differences) * np.abs(differences).max(axis=0, initial=0.0))
    return np.rint(differences / unit) * unit


@lru_cache(maxsize=8)
def _counts(sizes: tuple[int, ...], resamples: int, seed: int) -> list[NDArray[np.uint8]]:
    """How often each resample has each problem, an (R, P) array for each task; cached for runs on the same problems.

    8 bits are enough: the probability that a problem is drawn even 20 times is below 1e-18.
    """
    rng = np.random.default_rng(seed)
    by_task = []
    for n in sizes:
        counts = np.empty((resamples, n), dtype=np.uint8)
        for rows in _chunks(resamples, 100):  # few enough bins for the processor's cache
            size = rows.stop - rows.start
            chosen = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
            counts[rows] = np.bincount(chosen.ravel(), minlength=size * n).reshape(size, n)
        by_task.append(counts)
    return by_task


def bca_interval(strata: Sequence[Floats], draws: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """(C,) low and high of the bias-corrected and accelerated interval (Efron 1987) from bootstrap draws of strata.

    Draws equal to the estimate count half, as the distribution is discrete. If all draws are equal, so are the ends.
    """
    centre = estimate(strata)
    close = np.isclose(draws, centre, rtol=0, atol=1e-12)
    below = np.mean((draws < centre) & ~close, axis=0) + close.mean(axis=0) / 2
    bias = scipy.stats.norm.ppf(np.clip(below, 1e-6, 1 - 1e-6))
    influence = np.concatenate([(d - d.mean(axis=0)) / len(d) for d in strata])
    scale = 6 * (influence**2).sum(axis=0) ** 1.5
    acceleration = np.divide((influence**3).sum(axis=0), scale, out=np.zeros_like(scale), where=scale > 0)
    z_2C = bias + scipy.stats.norm.ppf([[(1 - level) / 2], [(1 + level) / 2]])
    shares_2C = scipy.stats.norm.cdf(bias + z_2C / (1 - acceleration * z_2C))
    low_C, high_C = np.array([np.quantile(draws_R, of_2) for draws_R, of_2 in zip(draws.T, shares_2C.T, strict=True)]).T
    return low_C, high_C


class Inference(NamedTuple):
    """Of C contrasts, (C,) each: the difference, its standard error, the ends of its 95 % interval, and p.

    centre_C, draws_RC: estimate and bootstrap draws with the pseudo-problems, from which bands over several contrasts
    follow.
    """

    difference: Floats
    se: Floats
    low: Floats
    high: Floats
    p: Floats
    centre_C: Floats
    draws_RC: Floats

    @property
    def columns(self) -> dict[str, Floats]:
        """The five columns by name."""
        return dict(zip(self._fields[:5], self, strict=False))

    def cells(self, **more: Floats) -> list[dict[str, float]]:
        """A dictionary for each contrast, with its entry of every column and of those in `more`."""
        columns = self.columns | more
        return [{name: float(column[c]) for name, column in columns.items()} for c in range(len(self.centre_C))]


def infer(strata: Sequence[Floats], resamples: int = RESAMPLES, seed: int = 0) -> Inference:
    """Estimate, standard error, BCa interval with pseudo-problems, and sign-flip p of every contrast."""
    extended = with_pseudo_problems(strata)
    draws = bootstrap(extended, resamples, seed)
    ends, p = bca_interval(extended, draws), sign_flip_p(strata, resamples, seed)
    return Inference(estimate(strata), standard_error(strata), *ends, p, estimate(extended), draws)


def sign_flip_p(strata: Sequence[Floats], flips: int = RESAMPLES, seed: int = 0) -> Floats:
    """(C,) two-sided p of the permutation test that swaps the two models problem by problem.

    All 2^m swaps are enumerated if they are at most `flips` (m: problems with a difference in any contrast); else p is
    (1 + hits) / (1 + flips) over random swaps, which is exact too. Ties count as hits; no difference at all gives 1.
    """
    weighted = np.concatenate([differences / (len(differences) * len(strata)) for differences in strata])
    weighted = weighted[(weighted != 0).any(axis=1)]
    observed = np.abs(weighted.sum(axis=0)) - 1e-12  # sums in another order differ in the last bits
    m = len(weighted)
    if 2**m <= flips:
        patterns = (np.arange(2**m)[:, None] >> np.arange(m)) & 1
        return np.mean(np.abs((1.0 - 2.0 * patterns) @ weighted) >= observed, axis=0)
    rng, total, hits = np.random.default_rng(seed), weighted.sum(axis=0), np.zeros(weighted.shape[1])
    for rows in _chunks(flips):
        octets = rng.integers(0, 256, (rows.stop - rows.start, (m + 7) // 8), dtype=np.uint8)
        negative = np.unpackbits(octets, axis=1, count=m).astype(float)
        hits += np.sum(np.abs(total - 2 * (negative @ weighted)) >= observed, axis=0)
    return (1 + hits) / (1 + flips)


def freedom(strata: Sequence[Floats]) -> int:
    """Degrees of freedom: the number of problems minus the number of tasks, at least 1."""
    return max(1, sum(map(len, strata)) - len(strata))


def mcnemar_p(fewer: ArrayLike, more: ArrayLike) -> Floats:
    """One-sided p of McNemar's exact test: the probability of `more` differences in one direction, or of yet more.

    It takes both directions to be equally likely. fewer, more: numbers of problems that differ in the other direction
    and in this one.
    """
    more = np.asarray(more)
    return np.asarray(scipy.stats.binom.sf(more - 1, np.asarray(fewer) + more, 0.5))


def holm(p: ArrayLike) -> Floats:
    """Adjusted p-values in the given order (Holm 1979), which control the family-wise error rate."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def _chunks(total: int, size: int = CHUNK) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
