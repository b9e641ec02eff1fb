"""How much more work would settle a comparison. C: contrasts; n: problems, N: draws of each.

The mean difference varies by (omega^2 + v/N)/n: omega^2 is the spread of true differences between problems, v the noise
of one draw (`paired.draw_variance`). More draws shrink the second term only; more problems shrink both.
"""

from collections.abc import Sequence
from math import inf, nan

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prunus.results import paired

Floats = NDArray[np.float64]


def spread(strata: Sequence[Floats]) -> list[tuple[Floats, Floats]]:
    """(omega^2, v) of each task, (C,) each; omega^2 is never negative, and both are nan where there is one draw.

    strata: one (P, N, C) array of differences each. omega^2 is the variance of per-problem means less v/N. It has the
    pseudo-problems of `paired`, as the minimum detectable effect has: that few problems differ is not that none does.
    """
    found = []
    for differences in strata:
        P, N, _ = differences.shape
        total = P * paired.standard_error(paired.with_pseudo_problems([differences.mean(axis=1)])) ** 2
        v = paired.draw_variance(differences)
        found.append((np.maximum(total - v / N, 0.0), v))
    return found


def draws_for(
    omega2: ArrayLike, v: ArrayLike, problems: float, effect: ArrayLike, errors: ArrayLike = 2.80, step: float = 0.0
) -> Floats:
    """Draws of each of so many problems at which the minimum detectable effect is this one.

    errors: standard errors that it takes (`paired.detectable`). step: what one draw changes (`paired.one_draw`), if
    that counts. inf where no number of draws is enough, because the problems differ too much.
    """
    square, effect = np.asarray(errors) ** 2 / problems, np.asarray(effect)
    room = effect**2 - square * np.asarray(omega2)  # of (effect - step/N)^2 = square * (omega^2 + v/N), solved for 1/N
    slope = 2 * effect * step + square * np.asarray(v)
    share = 2 * room / (slope + np.sqrt(np.maximum(slope**2 - 4 * room * step**2, 0.0)))
    return np.where(room > 0, _whole(1 / np.where(room > 0, share, 1.0)), inf)


def draws_needed(strata: Sequence[Floats], effect_C: Floats, claims: ArrayLike = 1) -> Floats:
    """(C,) draws of each of these problems that would find it; nan where one draw does not tell how draws vary.

    claims: how many tests are corrected together, as in `paired.minimum_detectable`.
    """
    between, noise = np.zeros((2, len(effect_C)))
    for differences, (omega2, v) in zip(strata, spread(strata), strict=True):
        share = 1 / len(differences) / len(strata) ** 2  # of the variance of the mean over tasks
        between, noise = between + share * omega2, noise + share * v
    errors = paired.detectable(claims, paired.freedom(strata))
    return np.where(np.isnan(noise), nan, draws_for(between, noise, 1, effect_C, errors, paired.one_draw(strata)))


def problems_needed(strata: Sequence[Floats], effect_C: Floats, claims: ArrayLike = 1) -> Floats:
    """(C,) problems, with as many draws as now and tasks in the same proportion, that would find it as often."""
    error = paired.standard_error(paired.with_pseudo_problems([differences.mean(axis=1) for differences in strata]))
    now, step = sum(map(len, strata)), paired.one_draw(strata) / strata[0].shape[1]
    reach = paired.detectable(claims, paired.freedom(strata)) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        # effect = reach u + step u^2, u the root of the share of present problems to those needed
        root = 2 * effect_C / (reach + np.sqrt(reach**2 + 4 * step * effect_C))
        return np.where(effect_C > 0, _whole(now / root**2), inf)


def _whole(numbers: Floats) -> Floats:
    """Rounded up, but for the last bits; at least 1."""
    return np.maximum(1.0, np.ceil(numbers * (1 - 1e-12)))
