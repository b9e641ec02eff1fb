"""How often the words on one comparison are wrong, and how often they are found where they are true."""

from collections.abc import Iterator, Sequence
from math import log

import numpy as np
import scipy

from prunus.results import verdicts
from prunus.results.cells import Ending
from prunus.results.verdicts import word_of
from prunus.settings.margins import Margin
from prunus.statistics import anytime, betting, coupling, exact, metrics, paired, power
from prunus.statistics.betting import direction_p
from simulations.differences import (
    BUDGETS,
    SCENARIOS,
    SKEWED,
    Floats,
    clustered,
    differences,
    sharing,
    skewed,
    slopes,
    unequal,
)

PROBLEMS, DRAWS = (2, 5, 15, 30, 60, 100, 200, 500), (1, 4, 16, 64)


def called(values: Floats, draws: int, level: float = betting.ALPHA / 2) -> tuple[float, float]:
    """Return the shares of columns called better and worse at a one-sided level, by the tests of `direction_p`."""
    if draws == 1:
        won, lost = (values > 0).sum(axis=0), (values < 0).sum(axis=0)
        better, worse = paired.mcnemar_p(lost, won) <= level, paired.mcnemar_p(won, lost) <= level
    else:
        zero, goal = np.zeros((1, 1)), np.full((1, 1), log(1 / level))
        better, worse = betting.reaches(values, zero, goal), betting.reaches(-values, zero, goal)
    return float(better.mean()), float(worse.mean())


def called_by_flips(values: Floats, level: float = betting.ALPHA / 2) -> tuple[float, float]:
    """Return the same by sign flips, the earlier rule."""
    small, mean = paired.sign_flip_p([values], 2000) < 2 * level, values.mean(axis=0)
    return float(np.mean(small & (mean > 0))), float(np.mean(small & (mean < 0)))


def claimed(values: Floats, margin: float, draws: int) -> float:
    """Return the share of columns called non-inferior: of one task at one budget, by the larger number of draws."""
    if draws == 1:
        lost, gained = (values < 0).sum(axis=0), (values > 0).sum(axis=0)
        return float(np.mean(exact.p_value(lost, gained, len(values), margin) <= betting.ALPHA))
    null, goal = np.full((1, 1), -margin), np.full((1, 1), log(1 / betting.ALPHA))
    return float(betting.reaches(values, null, goal).mean())


def certified(values: Floats, margin: float) -> float:
    """Return the share of columns for which `find` would rule out a loss of the margin at any time."""
    return float(np.mean(anytime.log_e_values(values, margin)[0][-1] >= log(1 / betting.ALPHA)))


def false_claims(runs: int, margin: float = 0.02, seed: int = 0) -> Iterator[tuple[str, int, int, float]]:
    """Return (scenario, problems, draws, share of runs called non-inferior), with the true loss at the margin."""
    rng = np.random.default_rng(seed)
    for scenario in SCENARIOS:
        for problems in PROBLEMS:
            for draws in DRAWS:
                values = differences(rng, scenario, problems, draws, margin, runs)
                yield scenario, problems, draws, claimed(values, margin, draws)


def false_directions(
    runs: int, margin: float = 0.02, problems: Sequence[int] = PROBLEMS, seed: int = 0
) -> Iterator[tuple[str, int, int, dict[str, float]]]:
    """Return (shape, problems, draws, shares of wrong words), each where it is most often wrong or at the margin."""
    rng = np.random.default_rng(seed)
    for shape in SKEWED:
        for n in problems:
            for draws in DRAWS:
                none, loss, gain = (skewed(rng, shape, n, draws, mean, runs) for mean in (0.0, -margin, margin))
                better, worse = called(none, draws)
                found = {"better at 0": better, "worse at 0": worse, "better at a loss": called(loss, draws)[0]}
                found |= {
                    "worse at a gain": called(gain, draws)[1],
                    "non-inferior at the margin": claimed(loss, margin, draws),
                }
                yield shape, n, draws, found


def errors_of_unequal(
    shape: str, problems: int, draws: int, base_draws: int, runs: int, margin: float = 0.02, seed: int = 0
) -> dict[str, float]:
    """Return the shares of wrong words where the base has other numbers of draws.

    non-inferior, certified (by `find`): at a true loss of the margin. better, worse: of models equal on average.
    """
    rng = np.random.default_rng(seed)
    loss, none = (unequal(rng, shape, problems, draws, base_draws, mean, runs) for mean in (-margin, 0.0))
    better, worse = called(none, max(draws, base_draws))
    return {
        "non-inferior": claimed(loss, margin, max(draws, base_draws)),
        "certified": certified(loss, margin),
        "better": better,
        "worse": worse,
    }


def power_of_unequal(
    problems: int, draws: int, base_draws: int, runs: int, margin: float = 0.02, seed: int = 0
) -> dict[str, float]:
    """Return the shares of equal models called non-inferior and certified, and those by a z test, which is not valid.

    worse: of models that lose twice the margin homogeneously.
    """
    rng = np.random.default_rng(seed)
    values, lost = (
        differences(rng, "homogeneous", problems, draws, loss, runs, base_draws=base_draws) for loss in (0, 2 * margin)
    )
    z = (values.mean(axis=0) + margin) / (values.std(axis=0, ddof=1) / np.sqrt(problems))
    return {
        "non-inferior": claimed(values, margin, max(draws, base_draws)),
        "z test": float(np.mean(z >= scipy.stats.norm.isf(betting.ALPHA))),
        "certified": certified(values, margin),
        "worse": called(lost, max(draws, base_draws))[1],
    }


def by_weights(
    problems: int,
    draws: int,
    base_draws: int,
    shares: Sequence[float],
    runs: int,
    margin: float,
    loss: float = 0.0,
    chances: Sequence[float] = (),
    breaking: float | None = None,
) -> list[float]:
    """Return the shares called non-inferior with all draws alike, with the weight of `coupling`, and certified by it.

    The rest is as for `sharing`.
    """
    rng = np.random.default_rng(0)
    every, matched = sharing(rng, problems, draws, base_draws, shares, runs, loss, chances, breaking)
    several, mixed = max(draws, base_draws), coupling.mixed(every, matched)
    return [claimed(every, margin, several), claimed(mixed, margin, several), certified(mixed, margin)]


def found_at_detectable(
    problems: int,
    draws: int,
    variants: int,
    runs: int,
    base: float | None = None,
    seed: int = 0,
    base_draws: int | None = None,
) -> tuple[float, float]:
    """Return (loss, share called worse) of variants that lose the mean MDE printed for a variant that loses nothing.

    base: the base's accuracy on every problem; None: it is drawn from Beta(0.4, 0.4). Some problems break. The other
    variants are assumed harmless, so that Holm requires p < .025 / variants.
    """
    rng, of_base = np.random.default_rng(seed), base_draws or draws

    def made(loss: float, runs: int) -> tuple[Floats, Floats]:
        chance = rng.beta(0.4, 0.4, (problems, runs)) if base is None else np.full((problems, runs), base)
        kept = rng.random(chance.shape) >= loss / (base or 0.5)
        ours = rng.binomial(of_base, chance) / of_base
        return rng.binomial(draws, chance * kept) / draws - ours, ours

    values, ours = made(0.0, 30)
    printed = [
        power.minimum_detectable([d[:, None]], [b[:, None]], variants, max(draws, of_base), draws == of_base == 1)[0]
        for d, b in zip(values.T, ours.T, strict=True)
    ]
    loss = float(np.mean(printed))
    return loss, called(made(loss, runs)[0], max(draws, of_base), betting.ALPHA / 2 / variants)[1]


def bounds_of_several_tasks(sizes: Sequence[int], draws: int, runs: int, seed: int = 0) -> dict[str, float]:
    """Return the mean lower bounds of equal models over tasks of these sizes, by three valid methods."""
    rng = np.random.default_rng(seed)
    strata = [differences(rng, "homogeneous", n, draws, 0.0, runs) if draws else np.zeros((n, 1)) for n in sizes]
    one_by_one = np.mean([betting.lower_bound([task], betting.ALPHA / len(sizes)) for task in strata])
    return {
        "each at alpha / tasks": float(one_by_one),
        "rounds": float(np.mean(betting.lower_bound([in_rounds(strata)]))),
        "used": float(np.mean(betting.lower_bound(strata, draws=draws or 2))),
    }


def in_rounds(strata: Sequence[Floats]) -> Floats:
    """Return (T, C) means over tasks of T rounds, T the size of the smallest; larger tasks are spread over them."""
    T = min(map(len, strata))
    total = np.zeros((T, strata[0].shape[1]))
    for task in strata:
        starts = np.arange(T) * len(task) // T
        total += np.add.reduceat(task, starts, axis=0) / np.diff(np.append(starts, len(task)))[:, None]
    return total / len(strata)


def cluster_errors(problems: int, size: int, runs: int, margin: float = 0.05, seed: int = 0) -> dict[str, list[float]]:
    """Return the shares of runs with each wrong claim, by problem and by group.

    non-inferior, certified (by `find`): with a true loss of the margin. different: models that are equal on average, of
    which a tenth of the problems differ.
    """
    rng = np.random.default_rng(seed)
    harmed, equal = clustered(rng, problems, size, -margin, runs), clustered(rng, problems, size, 0.05, runs)
    harmed, equal = ([rng.permuted(d, axis=0) for d in sides] for sides in (harmed, equal))  # as bets meet them
    return {
        # Differences of groups are not -1, 0 and 1, so bets judge them; here problems are judged alike.
        "non-inferior": [claimed(d, margin, 4) for d in harmed],
        "different": [sum(called(d, 4)) for d in equal],
        "certified": [certified(d, margin) for d in harmed],
    }


def scaling_words(
    scenario: str, problems: int, draws: int, kept: float, runs: int, rising: bool = True, seed: int = 0
) -> dict[str, float]:
    """Return the shares of runs called kept, called lost, given an interval, and given one that misses the truth."""
    base, other = slopes(np.random.default_rng(seed), scenario, problems, draws, kept, runs, rising)
    reach = float(metrics.slope_weights(BUDGETS).clip(0).sum())
    share, low, high = verdicts.retention(base, other)
    given = np.isfinite(share)
    return {
        "kept": float(np.mean(verdicts.p_scaling("kept", base, other, reach, draws) <= betting.ALPHA)),
        "lost": float(np.mean(verdicts.p_scaling("lost", base, other, reach, draws) <= betting.ALPHA)),
        "given": float(np.mean(given)),
        "missed": float(np.mean(given & ~((low <= kept) & (kept <= high)))),
    }


def said_to_still_stop(base: float, other: float, problems: int, draws: int, margin: float, runs: int) -> list[float]:
    """Return how often a model is said to stop as the base does: where only the margin counts, and by Prunus.

    base, other: shares of chains that end by themselves.
    """
    rng, said = np.random.default_rng(0), [0, 0]
    for _ in range(runs):
        shares = [rng.binomial(draws, share, (problems, 1)) / draws for share in (base, other)]
        gain = shares[1] - shares[0]
        p = direction_p([gain], draws=draws)
        within = float(betting.p_value([gain], margin, draws=draws)[0])
        word = word_of(float(p["p_better"][0]), float(p["p_worse"][0]), within)
        ends = blank_ending(float(shares[1].mean()), float(shares[0].mean()))
        said[0] += word.rules_out_margin
        said[1] += verdicts.still_stops(ends, word, Margin(margin))
    return [number / runs for number in said]


def blank_ending(share: float, base: float) -> Ending:
    """Return an ending with these shares and nothing else."""
    numbers = dict.fromkeys(("se", "low", "high", "p", "bound", "p_margin", "p_better", "p_worse"), 1.0)
    return Ending(n=1, samples=1, difference=share - base, share=share, base_share=base, gain=share - base, **numbers)
