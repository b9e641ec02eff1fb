"""How many draws or problems a comparison needs for a given power. C: contrasts; n: problems, N: draws of each.

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
    """(omega^2, v) of each task, (C,) each; omega^2 is never negative, and both are nan with one draw.

    strata: one (P, N, C) array of differences each. omega^2 is the variance of per-problem means minus v/N, with the
    pseudo-problems of `paired`, as in the minimum detectable effect: where no problem differs it is not 0.
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
    """Draws per problem at which the minimum detectable effect equals `effect`.

    errors: the detectable effect in standard errors (`paired.detectable`). step: the change by one draw
    (`paired.one_draw`), or 0 to ignore it. inf if no number of draws is enough, because problems differ too much.
    """
    square, effect = np.asarray(errors) ** 2 / problems, np.asarray(effect)
    room = effect**2 - square * np.asarray(omega2)  # of (effect - step/N)^2 = square * (omega^2 + v/N), solved for 1/N
    slope = 2 * effect * step + square * np.asarray(v)
    share = 2 * room / (slope + np.sqrt(np.maximum(slope**2 - 4 * room * step**2, 0.0)))
    return np.where(room > 0, _whole(1 / np.where(room > 0, share, 1.0)), inf)


def draws_needed(strata: Sequence[Floats], effect_C: Floats, claims: ArrayLike = 1) -> Floats:
    """(C,) draws of each of these problems that have 80 % power for the effect; nan if there is only one draw.

    claims: number of tests corrected together, as in `paired.minimum_detectable`.
    """
    between, noise = np.zeros((2, len(effect_C)))
    for differences, (omega2, v) in zip(strata, spread(strata), strict=True):
        share = 1 / len(differences) / len(strata) ** 2  # of the variance of the mean over tasks
        between, noise = between + share * omega2, noise + share * v
    errors = paired.detectable(claims, paired.freedom(strata))
    return np.where(np.isnan(noise), nan, draws_for(between, noise, 1, effect_C, errors, paired.one_draw(strata)))


def problems_needed(strata: Sequence[Floats], effect_C: Floats, claims: ArrayLike = 1) -> Floats:
    """(C,) number of problems with 80 % power for the effect, at the present number of draws and mix of tasks."""
    error = paired.standard_error(paired.with_pseudo_problems([differences.mean(axis=1) for differences in strata]))
    now, step = sum(map(len, strata)), paired.one_draw(strata) / strata[0].shape[1]
    reach = paired.detectable(claims, paired.freedom(strata)) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        # effect = reach u + step u^2, u the root of the share of present problems to those needed
        root = 2 * effect_C / (reach + np.sqrt(reach**2 + 4 * step * effect_C))
        return np.where(effect_C > 0, _whole(now / root**2), inf)


def _whole(numbers: Floats) -> Floats:
    """Rounded up, ignoring rounding errors; at least 1."""
    return np.maximum(1.0, np.ceil(numbers * (1 - 1e-12)))
