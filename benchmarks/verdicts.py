"""Error rates and power of the verdicts: the tables of docs/verdicts.md.

    python benchmarks/verdicts.py [--runs 2000] [--demo demo/results.db]      ten minutes or more on one core

Comparisons are simulated with a known truth, many at once as contrasts of one array. A scenario defines how a loss is
spread over problems; every problem and its answers are drawn from it independently. The tests run the same functions
with fewer repetitions. --demo: the store of `prunus demo`, to compare its verdicts with those by sign flips.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import combinations
from math import log
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy import stats

from prunus.results import family, verdicts
from prunus.results.cells import Ending
from prunus.results.comparison import compare
from prunus.results.family import Family
from prunus.results.seeds import over_seeds, p_values
from prunus.results.verdicts import BETTER, CLAIMS, SAME, WITHIN, WORSE, word_of
from prunus.settings.margins import Margin
from prunus.statistics import anytime, betting, metrics, paired, power
from prunus.statistics.betting import direction_p
from prunus.store.rows import Table

Floats = NDArray[np.float64]
PROBLEMS, DRAWS = (2, 5, 15, 30, 60, 100, 200, 500), (1, 4, 16, 64)
SCENARIOS = ("homogeneous", "few break", "near-deterministic")
SKEWED = ("symmetric", "few break, the rest gain", "few gain, the rest lose")
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


UNEQUAL = (*SCENARIOS, SKEWED[1], "coupled draws")


def unequal(
    rng: np.random.Generator, shape: str, problems: int, draws: int, base_draws: int, mean: float, runs: int
) -> Floats:
    """Return (problems, runs) differences with this true mean, 0 or a loss, in one of the shapes of UNEQUAL."""
    if shape == UNEQUAL[-1]:
        return coupled(rng, problems, draws, mean, runs, base_draws)
    if shape == SKEWED[1]:
        return skewed(rng, shape, problems, draws, mean, runs, base_draws)
    return differences(rng, shape, problems, draws, -mean, runs, base_draws=base_draws)


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
        "non-inferior": claimed(loss, margin),
        "certified": certified(loss, margin),
        "better": better,
        "worse": worse,
    }


def certified(values: Floats, margin: float) -> float:
    """Return the share of columns for which `find` would rule out a loss of the margin at any time."""
    return float(np.mean(anytime.evidence(values, margin)[0][-1] >= log(1 / betting.ALPHA)))


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
        "non-inferior": claimed(values, margin),
        "z test": float(np.mean(z >= scipy.stats.norm.isf(betting.ALPHA))),
        "certified": certified(values, margin),
        "worse": called(lost, max(draws, base_draws))[1],
    }


def called(values: Floats, draws: int, level: float = betting.ALPHA / 2) -> tuple[float, float]:
    """Return the shares of columns called better and worse at a one-sided level, by the tests of `directions`."""
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


def claimed(values: Floats, margin: float) -> float:
    """Return the share of columns called non-inferior."""
    null, goal = np.full((1, 1), -margin), np.full((1, 1), log(1 / betting.ALPHA))
    return float(betting.reaches(values, null, goal).mean())


def false_claims(runs: int, margin: float = 0.02, seed: int = 0) -> Iterator[tuple[str, int, int, float]]:
    """Return (scenario, problems, draws, share of runs called non-inferior), with the true loss at the margin."""
    rng = np.random.default_rng(seed)
    for scenario in SCENARIOS:
        for problems in PROBLEMS:
            for draws in DRAWS:
                values = differences(rng, scenario, problems, draws, margin, runs)
                yield scenario, problems, draws, claimed(values, margin)


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
                    "non-inferior at the margin": claimed(loss, margin),
                }
                yield shape, n, draws, found


def false_on_a_page(
    variants: int, problems: int, draws: int, pages: int, margin: float = 0.05, seed: int = 0
) -> dict[str, float]:
    """Return the shares of pages with any wrong word of a kind, with the variants of one base at five budgets.

    better or worse: all variants are equal to the base. non-inferior: all lose the margin at every budget.
    """
    rng, found = np.random.default_rng(seed), {}
    for loss, words in ((0.0, (BETTER, WORSE)), (margin, (SAME, WITHIN))):
        budgets = [differences(rng, "few break", problems, draws, loss, pages, variants) for _ in BUDGETS]
        for where, several in (("area", [np.mean(budgets, axis=0)]), ("single budgets", budgets)):
            cells = [_p_values(values, draws, margin, where == "single budgets", pages) for values in several]
            wrong = np.zeros(pages, dtype=bool)
            for page in range(pages):
                together = np.concatenate([at_budget[page] for at_budget in cells])
                adjusted = [paired.holm(column) for column in together.T]
                wrong[page] = any(word_of(*p) in words for p in zip(*adjusted, strict=True))
            found[f"{'better or worse' if loss == 0 else 'non-inferior'}, {where}"] = float(wrong.mean())
    return found


def scaling_on_a_page(variants: int, problems: int, draws: int, pages: int, seed: int = 0) -> dict[str, float]:
    """Return the shares of pages on which any variant's scaling is called kept, or lost, if all keep exactly 90 %."""
    rng = np.random.default_rng(seed)
    base, other = slopes(rng, "few break", problems, draws, 0.9, pages * variants, columns=variants)
    reach = float(metrics.slope_weights(BUDGETS).clip(0).sum())
    found = {}
    for word in ("kept", "lost"):
        p = verdicts.p_scaling(word, base, other, reach, 0, draws).reshape(pages, variants)
        found[f"scaling {word}"] = float(np.mean([(paired.holm(row) <= betting.ALPHA).any() for row in p]))
    return found


def while_the_limit_grows(looks: Sequence[int], margin: float, change: float, runs: int, seed: int = 11) -> list[float]:
    """Return the shares of comparisons called non-inferior at any of these limits, at a loss of the margin.

    First as `compare` calls them, by bets that go on over all looks; then if each look is judged as the only one. One
    draw of each problem, of which this share changes.
    """
    chance, lost = np.random.default_rng(seed).random((looks[-1], runs)), (change + margin) / 2
    d = np.where(chance < lost, -1.0, np.where(chance < change, 1.0, 0.0))
    ids = [f"{number:04d}" for number in range(looks[-1])]
    rounds, start = anytime.in_plan_order([d], [ids], [ids], looks, 0)
    null, goal = np.full((1, 1), -margin), np.full((1, 1), log(1 / betting.ALPHA))
    alone = [betting.reaches(d[betting.random_order(n, 0)], null, goal)[0] for n in looks]
    # The largest wealth of the last look includes those of all looks before it.
    later = np.cumsum(anytime.steps(rounds, anytime.bets(rounds, margin), -margin)[start:], axis=0)
    begun = betting.aimed_wealth(rounds[:start], null, goal)[0]
    together = begun + later.max(axis=0, initial=0.0) >= goal[0]
    return [float(together.mean()), float(np.any(alone, axis=0).mean())]


def _p_values(values: Floats, draws: int, margin: float, one_budget: bool, pages: int) -> Floats:
    """Return the p-values (pages, variants, claims)."""
    mcnemar = np.full(values.shape[1], one_budget and draws == 1)
    columns = direction_p([values], 0, draws, mcnemar) | {"p_margin": betting.p_value([values], margin)}
    return np.stack([columns[name] for name in CLAIMS], axis=1).reshape(pages, -1, len(CLAIMS))


def power_of(
    problems: int,
    draws: int,
    loss: float,
    margin: float,
    variants: int,
    runs: int,
    seed: int = 0,
    base_draws: int | None = None,
) -> float:
    """Return the share of variants called non-inferior if all of them have this true loss, spread homogeneously."""
    of = "homogeneous", problems, draws, loss, runs, variants, base_draws
    values = differences(np.random.default_rng(seed), *of)
    levels = betting.ALPHA / np.arange(1, variants + 1)
    reached = betting.reaches(values, np.full((1, 1), -margin), -np.log(levels)[:, None])
    p = np.where(reached, levels[:, None], 1.0).min(axis=0).reshape(runs, variants)
    return float(np.mean([paired.holm(row) <= betting.ALPHA for row in p]))


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


def cluster_errors(problems: int, size: int, runs: int, margin: float = 0.05, seed: int = 0) -> dict[str, list[float]]:
    """Return the shares of runs with each wrong claim, by problem and by group.

    non-inferior, certified (by `find`): with a true loss of the margin. different: models that are equal on average, of
    which a tenth of the problems differ.
    """
    rng = np.random.default_rng(seed)
    harmed, equal = clustered(rng, problems, size, -margin, runs), clustered(rng, problems, size, 0.05, runs)
    harmed, equal = ([rng.permuted(d, axis=0) for d in sides] for sides in (harmed, equal))  # as bets meet them
    return {
        "non-inferior": [claimed(d, margin) for d in harmed],
        "different": [sum(called(d, 4)) for d in equal],  # differences of groups are not -1, 0 and 1: no McNemar
        "certified": [certified(d, margin) for d in harmed],
    }


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


def scaling_words(
    scenario: str, problems: int, draws: int, kept: float, runs: int, rising: bool = True, seed: int = 0
) -> dict[str, float]:
    """Return the shares of runs called kept, called lost, given an interval, and given one that misses the truth."""
    base, other = slopes(np.random.default_rng(seed), scenario, problems, draws, kept, runs, rising)
    reach = float(metrics.slope_weights(BUDGETS).clip(0).sum())
    share, low, high = verdicts.retention(base, other)
    given = np.isfinite(share)
    return {
        "kept": float(np.mean(verdicts.p_scaling("kept", base, other, reach, 0, draws) <= betting.ALPHA)),
        "lost": float(np.mean(verdicts.p_scaling("lost", base, other, reach, 0, draws) <= betting.ALPHA)),
        "given": float(np.mean(given)),
        "missed": float(np.mean(given & ~((low <= kept) & (kept <= high)))),
    }


def chosen_after_seeing(
    problems: int, draws: int, margin: float, runs: int, variants: int = 14, chunk: int = 100, seed: int = 0
) -> dict[str, list[float]]:
    """Return how often the best of several comparisons is wrongly non-inferior, alone and as Prunus corrects it.

    variants: all lose the margin. one after another: the same, each looked at before the next is made, at its time
    corrected for those that there are. seeds: of one variant that loses the margin, drawn 20 times on the same
    problems. seeds of the base: the same, of the base. budget lists: all 26 of at least two of five budgets, of one
    variant that loses the margin at each. orders: 20 orders of the same bets, of which Prunus has one.
    """
    wrong: dict[str, list[list[float]]] = {}

    def note(name: str, values: Floats, sizes: Sequence[int]) -> None:
        """values: (problems, runs * choices); sizes: of the family of each choice, or one of all."""
        levels = betting.ALPHA / np.array([1, *sizes])
        reached = betting.reaches(values, np.full((1, 1), -margin), -np.log(levels)[:, None])
        by_choice = reached.reshape(len(levels), -1, values.shape[1] // chunk)
        corrected = (
            by_choice[1] if len(sizes) == 1 else np.stack([by_choice[k + 1, :, k] for k in range(len(sizes))], 1)
        )
        wrong.setdefault(name, []).append([float(of.any(axis=1).mean()) for of in (by_choice[0], corrected)])

    lists = [of for size in range(2, 6) for of in combinations(BUDGETS, size)]
    for part in range(max(1, runs // chunk)):
        rng = np.random.default_rng([seed, part])
        values = differences(rng, "few break", problems, draws, margin, chunk, variants)
        note(f"{variants} variants", values, [family.alone(variants).size])
        note(f"{variants} variants, one after another", values, [family.alone(k + 1).size for k in range(variants)])
        base = rng.beta(0.4, 0.4, (problems, chunk, 1))
        kept = rng.random(base.shape) >= margin / 0.5
        fixed, again = (1, 20), Family(range(20))
        for name, (ours, theirs), of in (
            ("20 seeds", fixed, again), ("20 seeds of the base", fixed[::-1], Family([0], bases=20))
        ):  # fmt: skip
            first = rng.binomial(draws, base, (problems, chunk, ours)) / draws
            other = rng.binomial(draws, base * kept, (problems, chunk, theirs)) / draws
            note(name, (other - first).reshape(problems, -1), [of.size])
        at = np.stack([differences(rng, "few break", problems, draws, margin, chunk) for _ in BUDGETS])
        places = [[BUDGETS.index(budget) for budget in of] for of in lists]
        areas = [np.tensordot(metrics.auc_weights(of), at[place], 1) for of, place in zip(lists, places, strict=True)]
        note("26 budget lists", np.stack(areas, 2).reshape(problems, -1), [family.alone(len(lists)).size])
        alone = differences(rng, "few break", problems, draws, margin, chunk)
        orders = np.stack([alone[betting.random_order(problems, k)] for k in range(20)], 2)
        null, goal = np.full((1, 1), -margin), np.full((1, 1), log(1 / betting.ALPHA))
        shown = betting.reaches(orders.reshape(problems, -1), null, goal).reshape(chunk, 20)
        wrong.setdefault("20 orders of bets", []).append([float(shown.any(axis=1).mean()), float(shown[:, 0].mean())])
    return {name: np.mean(shares, axis=0).tolist() for name, shares in wrong.items()}


def of_the_best(problems: int, draws: int, loss: float, runs: int, variants: int = 14, seed: int = 0) -> list[float]:
    """Return what is said of the best of variants that all have this loss: how often wrongly, and how far too well.

    Shares of its own 95 % interval and of its bound that holds for all variants together, and the mean of its estimate
    minus the truth.
    """
    rng, missed, above, over = np.random.default_rng(seed), 0, 0, 0.0
    for _ in range(runs):
        values = differences(rng, "few break", problems, draws, loss, 1, variants)
        best = values[:, [int(values.mean(axis=0).argmax())]]
        columns = paired.infer([best], 1000).columns
        missed += not columns["low"][0] <= -loss <= columns["high"][0]
        above += betting.lower_bound([best], betting.ALPHA / family.alone(variants).size)[0] > -loss
        over += float(best.mean()) + loss
    return [missed / runs, above / runs, over / runs]


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
        said[0] += word in (BETTER, SAME, WITHIN)
        said[1] += verdicts.still_stops(ends, word, Margin(margin))
    return [number / runs for number in said]


def blank_ending(share: float, base: float) -> Ending:
    """Return an ending with these shares and nothing else."""
    numbers = dict.fromkeys(("se", "low", "high", "p", "bound", "p_margin", "p_better", "p_worse"), 1.0)
    return Ending(n=1, samples=1, difference=share - base, share=share, base_share=base, gain=share - base, **numbers)


def collapsing_seeds(
    seeds: int, collapse: float, runs: int, margin: float = 0.02, problems: int = 500, draws: int = 4
) -> dict[str, float]:
    """Return how often a recipe is wrongly called so, of whose calibration seeds this share collapses.

    non-inferior: the collapsed seeds lose so much that the mean over all seeds is the margin. better: they lose 40
    points, and the others gain as much together. by t: by a t test with seeds as a random effect, and bets on the mean
    of these checkpoints, the earlier rule.
    """
    rng, wrong = np.random.default_rng([seeds, round(100 * collapse)]), {}
    for word, loss in (("non-inferior", margin / collapse), ("better", 0.4)):
        found = np.zeros(2)
        for _ in range(runs):
            base = rng.beta(8, 2, problems)
            gone = rng.random((seeds, 1)) < collapse
            kept = rng.random((seeds, problems)) >= loss / 0.8
            gain = 0.0 if word == "non-inferior" else collapse * loss / (1 - collapse)
            other = np.where(gone, base * kept, np.minimum(base + gain, 1))
            y = (rng.binomial(draws, other) - rng.binomial(draws, base)) / draws
            null, claim, level = (-margin, "p_margin", 0.05) if word == "non-inferior" else (0.0, "p_better", 0.05)
            found[0] += p_values([y], [y], -margin)[claim] <= level
            by_t = over_seeds([y])
            t = stats.t.sf((by_t["difference"] - null) / max(by_t["se"], 1e-12), by_t["freedom"])
            bet = betting.p_value([y.mean(axis=0)[:, None]], -null)[0]
            found[1] += max(float(t), float(bet)) <= (0.05 if word == "non-inferior" else 0.025)
        wrong |= {word: found[0] / runs, f"{word}, by t": found[1] / runs}
    return wrong


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def words_of(store: str, base: str = "tiny") -> list[tuple[str, str, str]]:
    """Return (variant, verdict, verdict by the sign flips that decided earlier) of every run of a store."""
    entries = compare(store, base).to_json()["others"]
    flips = paired.holm([entry["primary"]["p_flip"] for entry in entries])
    found = []
    for entry, p in zip(entries, flips, strict=True):
        gain = entry["primary"]["difference"] > 0
        sides = (p / 2, 1.0) if gain else (1.0, p / 2)
        found.append((entry["model"], entry["verdict"], word_of(*sides, entry["primary"]["p_margin_adjusted"])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="made-up comparisons for each number")
    parser.add_argument("--demo", help="the store of `prunus demo`")
    given = parser.parse_args()
    runs, sizes = given.runs, [str(n) for n in PROBLEMS]

    print(f"False better / worse in %, true difference 0, {runs} runs; in brackets by sign flips, of {runs // 4}")
    found = {key: shares for *key_, shares in false_directions(runs) for key in [tuple(key_)]}
    rng, rows = np.random.default_rng(1), []
    for shape in SKEWED:
        for draws in DRAWS:
            cells = []
            for n in PROBLEMS:
                now, flips = found[shape, n, draws], called_by_flips(skewed(rng, shape, n, draws, 0.0, runs // 4))
                now = [percent(now[f"{word} at 0"]) for word in ("better", "worse")]
                cells.append(f"{now[0]} / {now[1]} ({percent(flips[0])} / {percent(flips[1])})")
            rows.append([shape, draws, *cells])
    table(["shape", "draws", *sizes], rows)

    print("\nThe largest error over all numbers of problems, in %, true difference at the margin of 2 points")
    names = ("better at a loss", "worse at a gain", "non-inferior at the margin")
    rows = [
        [shape, draws, *(percent(max(found[shape, n, draws][name] for n in PROBLEMS)) for name in names)]
        for shape in SKEWED
        for draws in DRAWS
    ]
    table(["shape", "draws", *names], rows)

    print("\nPower in %: a loss called worse, and by sign flips (which are not valid)")
    rows = []
    for name, n, draws, losses in (
        ("GSM8K, 200 x 1", 200, 1, (0.05, 0.1, 0.15)),
        ("AIME-like, 30 x 64", 30, 64, (0.05, 0.1, 0.2, 0.3)),
        ("100 x 4", 100, 4, (0.05, 0.1, 0.15)),
        ("500 x 1", 500, 1, (0.02, 0.05, 0.1)),
    ):
        for loss in losses:
            for scenario in SCENARIOS[:2]:
                values = differences(rng, scenario, n, draws, loss, runs)
                row = [called(values, draws)[1], called_by_flips(values)[1]]
                rows.append([name, scenario, f"{100 * loss:g}", *map(percent, row)])
    table(["run", "scenario", "true loss", "worse", "by sign flips"], rows)
    if given.demo:
        table(["demo", "verdict", "by sign flips"], words_of(given.demo))

    print("\nWrongly non-inferior in %: the best of several, alone and (as corrected); all lose the margin")
    rows = []
    for n, draws, margin in ((500, 4, 0.02), (200, 1, 0.05)):
        shares = chosen_after_seeing(n, draws, margin, runs)
        rows.append([f"{n} x {draws}, {100 * margin:g}", *(f"{percent(a)} ({percent(b)})" for a, b in shares.values())])
    table(["problems, margin", *shares], rows)

    print(
        "\nThe best of 14 variants: its interval and its adjusted bound are wrong in %, its estimate too high by points"
    )
    rows = []
    for n, draws in ((500, 16), (500, 4), (200, 1)):
        for loss in (0.01, 0.05):
            rows.append([f"{n} x {draws}", f"{100 * loss:g}", *map(percent, of_the_best(n, draws, loss, runs // 4))])
    table(["problems", "true loss", "interval", "adjusted bound", "estimate"], rows)

    print("\nSaid to still stop in %, margin 5 points: by the margin alone, and by Prunus")
    rows = []
    for ours, theirs in ((0.06, 0.015), (0.3, 0.28), (0.95, 0.95)):
        shares = said_to_still_stop(ours, theirs, 500, 4, 0.05, max(runs // 10, 20))
        rows.append([f"{100 * ours:g}", f"{100 * theirs:g}", *map(percent, shares)])
    table(["base's chains that end", "variant's", "by the margin", "by Prunus"], rows)

    print("\nRecipes of which some seeds collapse, wrongly called so in %, and by a t test; margin 2 points, 500 x 4")
    rows = []
    for seeds in (3, 5):
        for collapse in (0.05, 0.1, 0.2):
            shares = collapsing_seeds(seeds, collapse, max(runs // 4, 20))
            rows.append([seeds, f"{100 * collapse:g}", *map(percent, shares.values())])
    table(["seeds", "collapse, %", *shares], rows)

    print("\nPages in % with any wrong word of a kind, margin 5 points, five budgets")
    rows = []
    for variants in (1, 4, 14):
        for n, draws in ((30, 16), (200, 1), (200, 4)):
            pages = max(runs // 5, 100)
            wrong = false_on_a_page(variants, n, draws, pages) | scaling_on_a_page(variants, n, draws, pages)
            rows.append([variants, n, draws, *map(percent, wrong.values())])
    table(["variants", "problems", "draws", *wrong], rows)

    print("\nCalled non-inferior at any look in %, true loss at the margin, while the limit grows from 50 to 500")
    rows = []
    for margin, change in ((0.05, 0.05), (0.05, 0.2), (0.1, 0.2)):
        for step in (450, 90, 45, 10):
            looks = list(range(50, 501, step))
            shares = while_the_limit_grows(looks, margin, change, runs)
            rows.append([f"{100 * margin:g}", f"{100 * change:g}", len(looks), *map(percent, shares)])
    table(["margin", "changes, %", "looks", "by one game", "each alone"], rows)

    print(f"\nFalse non-inferior in %, true loss at the margin of 2 points, {runs} runs")
    claims = {key: share for *key_, share in false_claims(runs) for key in [tuple(key_)]}
    rows = [
        [scenario, draws, *(percent(claims[scenario, n, draws]) for n in PROBLEMS)]
        for scenario in SCENARIOS
        for draws in DRAWS
    ]
    table(["scenario", "draws", *sizes], rows)

    print("\nLower bound in points where no draw differs")
    cells = [f"{100 * betting.lower_bound([np.zeros((n, 1))])[0]:.1f}" for n in (*PROBLEMS, 1319)]
    table([*sizes, "1319"], [cells])

    print("\nCalled non-inferior in %, equal models and a homogeneous loss of half the margin")
    more = (100, 200, 500, 1319, 3000)
    rows = [
        [f"{100 * margin:g}", variants, f"{100 * loss:g}", draws]
        + [percent(power_of(n, draws, loss, margin, variants, max(runs // 10, 50))) for n in more]
        for margin in (0.02, 0.05)
        for variants in (1, 14)
        for loss in (0.0, margin / 2)
        for draws in (1, 4, 16)
    ]
    table(["margin", "variants", "true loss", "draws", *map(str, more)], rows)

    print("\nMore draws of the base: equal models called non-inferior and certified in %, margin 2 points, 3 draws;")
    print("a loss of 4 points called worse; and the MDE printed for an equal model, in points: how often it is found")
    rows = []
    for n in (200, 500, 1000):
        for base in (3, 8, 16, 64):
            found = power_of_unequal(n, 3, base, runs)
            loss, share = found_at_detectable(n, 3, 1, runs, base_draws=base)
            rows.append([n, base, *map(percent, found.values()), f"{percent(loss)}: {percent(share)}"])
    table(["problems", "draws of the base", *found, "MDE"], rows)

    print("\nThe same for 14 variants of one base, non-inferior after Holm's correction")
    few = max(runs // 10, 50)
    rows = [
        [n, *(percent(power_of(n, 3, 0.0, 0.02, 14, few, base_draws=base)) for base in (3, 8, 16, 64))]
        for n in (500, 1000)
    ]
    table(["problems", "3", "8", "16", "64"], rows)

    print("\nWrong words in % with 16 draws of the base: at a true loss of the margin of 2 points, and of equal models")
    rows = [
        [shape, n, draws, *map(percent, errors_of_unequal(shape, n, draws, 16, runs).values())]
        for shape in UNEQUAL
        for n, draws in ((30, 3), (100, 3), (500, 3), (500, 1))
    ]
    table(["shape", "problems", "draws", "non-inferior", "certified", "better", "worse"], rows)

    print("\nLower bound of equal models in points, mean over tasks")
    rows = []
    for tasks in ((30, 30), (198, 500), (30, 500), (30, 40, 198, 500), (198,) * 4):
        for draws in (0, 16, 4, 1):
            bounds = bounds_of_several_tasks(tasks, draws, 1 if draws == 0 else 20)
            rows.append(
                [", ".join(map(str, tasks)), draws or "no draw differs", *(f"{100 * b:.1f}" for b in bounds.values())]
            )
    table(["problems", "draws", *bounds], rows)

    print("\nThe MDE printed for an equal model, in points, and the share of such losses called worse, in %")
    rows = []
    for n, draws in ((30, 16), (30, 64), (60, 4), (100, 1), (100, 4), (200, 1), (200, 4), (500, 16)):
        row: list[Any] = [n, draws]
        for variants in (1, 14):
            for base in (None, 0.9):
                loss, share = found_at_detectable(n, draws, variants, runs, base)
                row.append(f"{percent(loss)}: {percent(share)}")
        rows.append(row)
    table(["problems", "draws", "1 variant", "1, base solves 90 %", "14", "14, base solves 90 %"], rows)

    print("\nProblems that belong together: wrong claims in %, by problem and (by group); margin 5 points")
    rows = []
    for n in (100, 500):
        for size in (1, 2, 4, 10):
            errors = cluster_errors(n, size, runs)
            rows.append([n, size, *(f"{percent(before)} ({percent(now)})" for before, now in errors.values())])
    table(["problems", "in each group", *errors], rows)

    print("\nScaling in %: kept, lost, and interval that misses, by the share truly kept (0.9: both words are wrong)")
    rows = []
    for scenario in SCENARIOS:
        for draws in (1, 4, 16):
            for n in (5, 15, 30, 100, 198, 500):
                at = {kept: scaling_words(scenario, n, draws, kept, runs) for kept in (0.9, 1.0, 0.5)}
                flat = scaling_words(scenario, n, draws, 1.0, runs, rising=False)
                cells = [at[0.9]["kept"], at[0.9]["lost"], max(one["missed"] for one in at.values()),
                         flat["kept"] + flat["lost"], at[1.0]["kept"], at[0.5]["lost"]]  # fmt: skip
                rows.append([scenario, draws, n, *map(percent, cells)])
    table(["scenario", "draws", "problems", "kept at 0.9", "lost at 0.9", "missed", "any word, base flat",
           "kept at 1", "lost at 0.5"], rows)  # fmt: skip


if __name__ == "__main__":
    main()
