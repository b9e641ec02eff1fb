"""Differences between two models that are made up with a known truth, many comparisons at once.

A scenario defines how a loss is spread over problems; every problem and its answers are drawn from it independently.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunus.statistics import metrics
from prunus.store.rows import Table

Floats = NDArray[np.float64]
SCENARIOS = ("homogeneous", "few break", "near-deterministic")
SKEWED = ("symmetric", "few break, the rest gain", "few gain, the rest lose")
UNEQUAL = (*SCENARIOS, SKEWED[1], "coupled draws")
BUDGETS = (512, 1024, 2048, 4096, 8192)


def differences(
    rng: np.random.Generator,
    scenario: str,
    problems: int,
    draws: int,
    loss: float,
    runs: int,
    columns: int = 1,
    base_draws: int | None = None,
) -> Floats:
    """Return (problems, runs * columns) differences of shares correct, with true mean -loss.

    homogeneous: every problem's loss is proportional to the base's accuracy on it. few break: some problems are never
    solved any more, the others do not change. The base's accuracy per problem is drawn from Beta(0.4, 0.4), so most are
    solved nearly always or nearly never. near-deterministic: as few break, with a base that solves 99.5 % of all draws.
    columns: number of consecutive comparisons that share the base's answers. base_draws: of the base; None: as many.
    """
    shape = (problems, runs, 1)
    base = np.full(shape, 0.995) if scenario == "near-deterministic" else rng.beta(0.4, 0.4, shape)
    share = loss / (0.995 if scenario == "near-deterministic" else 0.5)
    wide = (problems, runs, columns)
    kept = np.full(wide, 1 - share) if scenario == "homogeneous" else (rng.random(wide) >= share).astype(float)
    own = rng.binomial(draws, base * kept)
    if base_draws in (None, draws):
        return (own - rng.binomial(draws, base)).reshape(problems, -1) / draws
    return (own / draws - rng.binomial(base_draws, base) / base_draws).reshape(problems, -1)


def skewed(
    rng: np.random.Generator,
    shape: str,
    problems: int,
    draws: int,
    mean: float,
    runs: int,
    base_draws: int | None = None,
) -> Floats:
    """Return (problems, runs) differences with this true mean.

    symmetric: every problem changes alike, from a base that solves half of all draws. few break, the rest gain: 5 % of
    the problems are never solved any more, of a base that solves 90 %, and the others gain. few gain, the rest lose:
    its mirror image.
    """
    if shape == SKEWED[2]:
        return -skewed(rng, SKEWED[1], problems, draws, -mean, runs, base_draws)
    breaks, base = (0.05, 0.9) if shape == SKEWED[1] else (0.0, 0.5)
    other = np.where(rng.random((problems, runs)) < breaks, 0.0, base + (mean + breaks * base) / (1 - breaks))
    own = rng.binomial(draws, other)
    if base_draws in (None, draws):
        return (own - rng.binomial(draws, base, (problems, runs))) / draws
    return own / draws - rng.binomial(base_draws, base, (problems, runs)) / base_draws


def coupled(
    rng: np.random.Generator, problems: int, draws: int, mean: float, runs: int, base_draws: int, alike: float = 0.5
) -> Floats:
    """Return (problems, runs) differences with this true mean of models whose draws are far from independent.

    The base solves each problem with a chance from Beta(0.4, 0.4). On this share of the problems all of its draws have
    one fate. The other model, whose first draws are the base's own, as with equal seeds, never solves a few of the
    problems any more, or has a few solved for good.
    """
    chance = rng.beta(0.4, 0.4, (problems, runs, 1))
    same = rng.random((problems, runs, 1)) < alike
    most = max(draws, base_draws)
    right = np.where(same, rng.random((problems, runs, 1)), rng.random((problems, runs, most))) < chance
    changed = rng.random((problems, runs)) < 2 * abs(mean)
    other = np.where(changed, float(mean > 0), right[:, :, :draws].mean(axis=2))
    return other - right[:, :, :base_draws].mean(axis=2)


def sharing(
    rng: np.random.Generator,
    problems: int,
    draws: int,
    base_draws: int,
    shares: Sequence[float],
    runs: int,
    loss: float = 0.0,
    chances: Sequence[float] = (),
    breaking: float | None = None,
) -> tuple[Floats, Floats]:
    """Return (problems, runs) differences over all draws, and over matched draws alone, with true mean -loss.

    The base solves each problem with a chance from Beta(0.4, 0.4), or one of `chances`. A draw of the other model has
    the random number of the base's draw with the probability `share`, or one minus that number if the share is
    negative; shares: of as many equal parts of the problems in their order. The loss is of problems that break; if this
    share of them does (`breaking`), which is more than it takes, the rest gains.
    """
    shape = (problems, runs, 1)
    chance = rng.choice(chances, shape) if chances else rng.beta(0.4, 0.4, shape)
    share = np.repeat(shares, problems // len(shares))[:, None, None]
    ours = rng.random((problems, runs, base_draws))
    theirs = np.where(share < 0, 1 - ours[:, :, :draws], ours[:, :, :draws])
    theirs = np.where(rng.random(theirs.shape) < np.abs(share), theirs, rng.random(theirs.shape))
    mean = np.mean(chances) if chances else 0.5
    broken = loss / mean if breaking is None else breaking
    kept = rng.random(shape) >= broken
    gains = (1 - loss / mean) / (1 - broken)
    right, other = ours < chance, ((theirs < gains * chance) & kept).mean(axis=2)
    return other - right.mean(axis=2), other - right[:, :, :draws].mean(axis=2)


def unequal(
    rng: np.random.Generator, shape: str, problems: int, draws: int, base_draws: int, mean: float, runs: int
) -> Floats:
    """Return (problems, runs) differences with this true mean, 0 or a loss, in one of the shapes of UNEQUAL."""
    if shape == UNEQUAL[-1]:
        return coupled(rng, problems, draws, mean, runs, base_draws)
    if shape == SKEWED[1]:
        return skewed(rng, shape, problems, draws, mean, runs, base_draws)
    return differences(rng, shape, problems, draws, -mean, runs, base_draws=base_draws)


def clustered(rng: np.random.Generator, problems: int, size: int, change: float, runs: int) -> tuple[Floats, Floats]:
    """Return differences of clusters of this size whose problems share one fate, by problem and by group.

    (problems, runs) and (problems / size, runs), one draw each. A negative change is the share of clusters that break;
    a positive one is the share that breaks and the share that is mended.
    """
    fate = rng.random((problems // size, runs))
    broken, mended = fate < abs(change), (change > 0) & (fate > 1 - change)
    each = np.repeat(mended.astype(float) - broken, size, axis=0)
    names = tuple(map(str, range(problems)))
    first_of = {name: names[place - place % size] for place, name in enumerate(names)}
    return each, Table(names, (), (), np.empty((problems, 0, 0)), first_of).by_group(each)


def slopes(
    rng: np.random.Generator,
    scenario: str,
    problems: int,
    draws: int,
    kept: float,
    runs: int,
    rising: bool = True,
    columns: int = 1,
) -> tuple[list[Floats], list[Floats]]:
    """Return slopes of base and other, (problems, runs) each; other truly keeps this share of the base's mean slope.

    A problem is solved from one of six budgets on, of which the last is never reached; not rising: always or never.
    homogeneous: other gains less from every budget. few break: some problems gain nothing. near-deterministic: as few
    break, and all draws of a problem agree. columns: number of consecutive runs that share the base's answers.
    """
    budgets_B11 = np.arange(len(BUDGETS))[:, None, None]
    shape, narrow = (problems, runs), (problems, runs // columns)
    first = rng.integers(0, 6, narrow) if rising else rng.integers(0, 2, narrow) * 9
    most, least = (1.0, 0.0) if scenario == "near-deterministic" else (0.9, 0.02)
    base = (budgets_B11 >= first) * most + least
    gain = np.full(shape, kept) if scenario == "homogeneous" else (rng.random(shape) < kept).astype(float)
    wide = base.repeat(columns, axis=2)
    other = wide[0] + (wide - wide[0]) * gain
    weights = metrics.slope_weights(BUDGETS)
    ours, theirs = (np.tensordot(weights, rng.binomial(draws, chance) / draws, 1) for chance in (base, other))
    return [ours.repeat(columns, axis=1)], [theirs]
