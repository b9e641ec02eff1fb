"""Losses that a comparison can detect, and how many draws or problems it needs.

C: contrasts; n: problems, N: draws of each.

The minimum detectable effect is found by simulating the very test: a loss in which some problems are never solved any
more brings variance of its own, and bets are bounded, so that "2.8 standard errors" of an equal model has too little
power.

The mean difference varies by (omega^2 + v/N)/n: omega^2 is the spread of true differences between problems, v the noise
of a draw (`draw_variance`). More draws shrink the second term only; more problems shrink both. Where the base has M
draws and the other run N, v is the noise of a draw of the other run, and omega^2 includes the base's own, divided by M.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, nan, sqrt

import numpy as np
import scipy
from numpy.typing import ArrayLike

from prunus.statistics import betting, paired
from prunus.statistics.paired import Floats

SIMULATED = 200_000  # problems of all comparisons that one minimum detectable effect simulates
HALVINGS = 8  # of the share of problems that break


def minimum_detectable(
    strata: Sequence[Floats],
    base: Sequence[Floats],
    claims: ArrayLike = 1,
    draws: int = 1,
    mcnemar: ArrayLike = False,
    seed: int = 0,
) -> Floats:
    """(C,) the loss that is called worse with 80 % power, if it consists of problems that are never solved any more.

    strata: (P, C) differences of each task. base: (P, C) the base's own values, of which a problem that breaks loses
    all. claims: number of tests over which Holm's correction of each contrast runs. draws: of each problem. mcnemar:
    whether McNemar's test judges a contrast. nan where no loss that the base can suffer is detected so often. With one
    task the test is simulated on problems resampled from these, with differences of random sign, scaled to their
    variance about the mean (for McNemar's test they keep their size); with several, the normal approximation is used.
    """
    C = strata[0].shape[1]
    level_C = np.broadcast_to(paired.ALPHA / 2 / np.asarray(claims, dtype=float), (C,))
    if len(strata) > 1:
        aimed = betting.in_rounds(strata, draws) is not None
        quantile_C = scipy.stats.norm.isf(level_C) if aimed else np.sqrt(2 * np.log(1 / level_C))
        return _by_approximation(strata, base, quantile_C)
    mcnemar_C = np.broadcast_to(np.asarray(mcnemar), (C,))
    (pool,), T = paired.with_pseudo_problems(strata), len(strata[0])
    spread_C, size_C = pool.std(axis=0), np.sqrt((pool**2).mean(axis=0))
    pool = pool * np.where(size_C > 0, spread_C / np.where(size_C > 0, size_C, 1.0), 1.0)  # without the present loss
    pool[:, mcnemar_C] = np.sign(pool[:, mcnemar_C])
    drops = np.concatenate([base[0], np.repeat(base[0].mean(axis=0)[None], 2, axis=0)]).clip(0)
    rng, R = np.random.default_rng(seed), int(np.clip(SIMULATED // T, 200, 4000))
    chosen_TR, break_TR = rng.integers(0, len(pool), (T, R)), rng.random((T, R))
    sign_TR = rng.choice((-1.0, 1.0), (T, R, 1))[:, :, 0]
    aimed_C = ~mcnemar_C
    goals = np.tile(-np.log(level_C[aimed_C]), R)[None]
    drop_TRC = drops[:, aimed_C][chosen_TR]
    change_TRC = pool[:, aimed_C][chosen_TR] * sign_TR[:, :, None]
    counted_TRC = pool[:, mcnemar_C][chosen_TR] * sign_TR[:, :, None]
    drops_TRC, lost_TRC, won_TRC = (drops[:, mcnemar_C] > 0)[chosen_TR], counted_TRC > 0, counted_TRC < 0

    def power(share_C: Floats) -> Floats:
        found_C = np.empty(C)
        if mcnemar_C.any():
            broken_TRC = break_TR[:, :, None] < share_C[mcnemar_C]
            won_RC = (won_TRC & ~broken_TRC).sum(axis=0)
            lost_RC = np.where(broken_TRC, drops_TRC, lost_TRC).sum(axis=0)
            found_C[mcnemar_C] = (paired.mcnemar_p(won_RC, lost_RC) <= level_C[mcnemar_C]).mean(axis=0)
        if aimed_C.any():
            gain_TRC = np.where(break_TR[:, :, None] < share_C[aimed_C], drop_TRC, change_TRC)  # losses count as gains
            reached = betting.reaches(gain_TRC.reshape(T, -1), np.zeros((1, 1)), goals)
            found_C[aimed_C] = reached.reshape(R, -1).mean(axis=0)
        return found_C

    low_C, high_C = np.zeros(C), np.ones(C)
    possible_C = power(high_C) >= paired.POWER
    for _ in range(HALVINGS):
        middle_C = (low_C + high_C) / 2
        enough_C = power(middle_C) >= paired.POWER
        low_C, high_C = np.where(enough_C, low_C, middle_C), np.where(enough_C, middle_C, high_C)
    return np.where(possible_C, (low_C + high_C) / 2 * drops.mean(axis=0), nan)


def _by_approximation(strata: Sequence[Floats], base: Sequence[Floats], quantile_C: Floats) -> Floats:
    """(C,) the loss that is quantile + z(.8) standard errors large, where the variance grows with the loss."""
    reach_C = quantile_C + scipy.stats.norm.ppf(paired.POWER)
    drop = [(shift**2).sum(axis=0) / np.maximum(np.abs(shift).sum(axis=0), 1e-12) for shift in base]
    slope_C = sum(d / len(shift) for d, shift in zip(drop, base, strict=True)) / len(strata) ** 2
    now_C = paired.standard_error(paired.with_pseudo_problems(strata)) ** 2
    # loss^2 = reach^2 (now + slope loss), the variance of a loss being below slope loss
    half_C = reach_C**2 * slope_C / 2
    found_C = half_C + np.sqrt(half_C**2 + reach_C**2 * now_C)
    return np.where(found_C <= np.abs(paired.estimate(base)), found_C, nan)


def variance_components(strata: Sequence[Floats], means: Sequence[Floats] | None = None) -> list[tuple[Floats, Floats]]:
    """(omega^2, v) of each task, (C,) each; omega^2 is never negative, and both are nan with one draw.

    strata: a (P, N, C) array of differences for each task; if the base has more or fewer draws, of the other run's
    values, and then means has the differences of means, (P, C). omega^2 is the variance of per-problem means minus v/N,
    with the pseudo-problems of `paired`, as in the minimum detectable effect: where no problem differs it is not 0.
    """
    by_task = []
    for differences, mean in zip(strata, _means(strata, means), strict=True):
        P, N, _ = differences.shape
        total = P * paired.standard_error(paired.with_pseudo_problems([mean])) ** 2
        v = draw_variance(differences)
        by_task.append((np.maximum(total - v / N, 0.0), v))
    return by_task


def _means(strata: Sequence[Floats], means: Sequence[Floats] | None) -> Sequence[Floats]:
    return [differences.mean(axis=1) for differences in strata] if means is None else means


def draw_variance(differences_PNC: Floats) -> Floats:
    """(C,) variance between draws of a problem, averaged over problems; nan for a single draw."""
    if differences_PNC.shape[1] < 2:
        return np.full(differences_PNC.shape[2], nan)
    return differences_PNC.var(axis=1, ddof=1).mean(axis=0)


def detectable(claims: ArrayLike = 1, freedom: float = inf) -> Floats:
    """The true difference, in standard errors, that is detected with 80 % power at the first step of Holm's correction.

    claims: number of tests that are corrected together. The result is 2.80 = z(.975) + z(.8) for one claim and many
    problems, and larger for more claims.
    freedom: degrees of freedom of the error, from which the quantile is Student's and the power that of the noncentral
    t to a good approximation: z(.8) sqrt(1 + t^2 / (2 freedom)).
    """
    quantile = scipy.stats.t.isf(paired.ALPHA / 2 / np.asarray(claims, dtype=float), freedom)
    return quantile + scipy.stats.norm.ppf(paired.POWER) * np.sqrt(1 + quantile**2 / (2 * freedom))


def one_draw(strata: Sequence[Floats]) -> float:
    """The largest change of the estimate by a single draw, with a draw per problem; with N draws it is 1/N of that."""
    return 1 / (len(strata) * min(map(len, strata)))


def draws_for(
    omega2: ArrayLike, v: ArrayLike, problems: float, effect: ArrayLike, errors: ArrayLike = 2.80, step: float = 0.0
) -> Floats:
    """Draws per problem at which the minimum detectable effect equals `effect`.

    errors: the detectable effect in standard errors (`detectable`). step: the change by a draw
    (`one_draw`), or 0 to ignore it. inf if no number of draws is enough, because problems differ too much.
    """
    square, effect = np.asarray(errors) ** 2 / problems, np.asarray(effect)
    room = effect**2 - square * np.asarray(omega2)  # of (effect - step/N)^2 = square * (omega^2 + v/N), solved for 1/N
    slope = 2 * effect * step + square * np.asarray(v)
    share = 2 * room / (slope + np.sqrt(np.maximum(slope**2 - 4 * room * step**2, 0.0)))
    return np.where(room > 0, _whole(1 / np.where(room > 0, share, 1.0)), inf)


def draws_needed(
    strata: Sequence[Floats], effect_C: Floats, claims: ArrayLike = 1, means: Sequence[Floats] | None = None
) -> Floats:
    """(C,) draws of each of these problems that have 80 % power for the effect; nan if there is only one draw.

    claims: number of tests corrected together, as in `minimum_detectable`. means: as of `variance_components`; then
    draws are those of the other run, and the base keeps its own.
    """
    between, noise = np.zeros((2, len(effect_C)))
    for differences, (omega2, v) in zip(strata, variance_components(strata, means), strict=True):
        share = 1 / len(differences) / len(strata) ** 2  # of the variance of the mean over tasks
        between, noise = between + share * omega2, noise + share * v
    errors = detectable(claims, paired.freedom(strata))
    return np.where(np.isnan(noise), nan, draws_for(between, noise, 1, effect_C, errors, one_draw(strata)))


def problems_needed(
    strata: Sequence[Floats], effect_C: Floats, claims: ArrayLike = 1, means: Sequence[Floats] | None = None
) -> Floats:
    """(C,) number of problems with 80 % power for the effect, at the present number of draws and mix of tasks.

    means: as of `variance_components`.
    """
    error = paired.standard_error(paired.with_pseudo_problems(_means(strata, means)))
    now, step = sum(map(len, strata)), one_draw(strata) / strata[0].shape[1]
    reach = detectable(claims, paired.freedom(strata)) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        # effect = reach u + step u^2, u the root of the share of present problems to those needed
        root = 2 * effect_C / (reach + np.sqrt(reach**2 + 4 * step * effect_C))
        return np.where(effect_C > 0, _whole(now / root**2), inf)


@dataclass(frozen=True)
class MoreDraws:
    """A larger number of draws of the base, and what it saves.

    draws: of each problem. ratio: of the detectable effects with and without them. chains: number of further chains.
    problems: number of problems that would give the same ratio instead. chains_of_problems: number of further chains
    that these problems would take.
    """

    draws: int
    ratio: float
    chains: int
    problems: int
    chains_of_problems: int


def more_of_base(variants: int, problems: int, draws: int, base_draws: int) -> MoreDraws | None:
    """The best number of draws of the base, if it has fewer and more problems would cost more; else None.

    variants: number of runs compared with the base, each with `draws` draws. The best number is draws * sqrt(variants),
    as for a control group (Dunnett 1955), if variants are harmless, so that omega^2 is 0, and draws vary independently.
    """
    best = ceil(draws * sqrt(variants) - 1e-9)
    if best <= base_draws:
        return None
    share = (1 / draws + 1 / best) / (1 / draws + 1 / base_draws)  # of the variance
    chains, more = problems * (best - base_draws), (problems / share - problems) * (variants * draws + base_draws)
    cheapest = MoreDraws(best, sqrt(share), chains, ceil(problems / share - 1e-9), round(more))
    return cheapest if chains < more * (1 - 1e-9) else None


def _whole(numbers: Floats) -> Floats:
    """Rounded up, ignoring rounding errors; at least 1."""
    return np.maximum(1.0, np.ceil(numbers * (1 - 1e-12)))
