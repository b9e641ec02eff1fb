"""The estimate of a recipe from several calibration seeds: seeds are a random effect, as problems are.

A run is one checkpoint, and its verdict is about that one. Another calibration seed makes another checkpoint of the
same recipe. The difference y[s, p] of the checkpoint of seed s from the base on problem p has a part of the seed, a
part of the problem, and the rest. The mean over both varies with all three (crossed random effects, by the usual mean
squares), so its variance is estimated as

    variance of the seeds' means / S  +  variance of the problems' means / P  -  variance of the rest / (S P),

where the rest is in the first two terms both. What the seeds add is taken as 0 where its estimate is below. The t
interval has the degrees of freedom of Satterthwaite (1946) for these terms. With several tasks the estimate is the mean
over tasks; seeds are common to all tasks and problems are not.

The interval takes seeds to differ normally. Where one seed in five collapses, three seeds show none of that in half of
the cases, and no test of three seeds that knows nothing of their distribution can show anything. So words rest on bets
(`betting`) with a value per seed, in [-1, 1]: its mean over a share of the problems of its own, by which these values
are independent in seeds and in problems. That takes hundreds of seeds; `seeds_needed` says how many.

S: seeds, P: problems of a task.
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import log

import numpy as np
import scipy

from prunus.manifest import StepRecord
from prunus.plain_data import canonical_json, made
from prunus.results.cells import RecipeVerdict
from prunus.results.contrasts import Pair
from prunus.results.verdicts import CLAIMS, word_of
from prunus.results.vocabulary import Verdict
from prunus.settings.margins import Margin
from prunus.statistics import betting, metrics, paired
from prunus.statistics.anytime import exceeding
from prunus.statistics.paired import Floats
from prunus.store.labels import identity, unique_labels
from prunus.store.rows import Run, Table

LEAST = 3  # seeds: two say next to nothing of how seeds differ
MOST_SEEDS = 5000


def over_seeds(strata: Sequence[Floats]) -> dict[str, float]:
    """The mean of the differences, (S, P) of each task, for other seeds and other problems; at least two of each.

    difference, se, se_seeds, se_problems, freedom, low and high as of RecipeVerdict.
    """
    S, K = len(strata[0]), len(strata)
    of_seeds = np.mean([y.mean(axis=1) for y in strata], axis=0)
    centre, seeds = float(of_seeds.mean()), float(of_seeds.var(ddof=1)) / S
    terms, rest = [(seeds, S - 1)], 0.0
    problems = 0.0
    for y in strata:
        P, means = y.shape[1], y.mean(axis=0)
        inner = y - means - y.mean(axis=1, keepdims=True) + y.mean()
        of_problems = float(means.var(ddof=1)) / P / K**2
        of_rest = float((inner**2).sum()) / ((S - 1) * (P - 1)) / (S * P) / K**2
        terms += [(of_problems, P - 1), (of_rest, (S - 1) * (P - 1))]
        problems, rest = problems + of_problems, rest + of_rest
    added = seeds - rest
    if added <= 0:  # the seeds differ by no more than chance: problems alone remain
        added, terms = 0.0, terms[1::2]
    variance = added + problems
    spread = sum(term**2 / n for term, n in terms)
    freedom = variance**2 / spread if spread > 0 else 1.0
    half = float(scipy.stats.t.ppf(0.975, freedom)) * variance**0.5
    errors = {"se": variance**0.5, "se_seeds": added**0.5, "se_problems": problems**0.5}
    ends = {"freedom": float(freedom), "low": centre - half, "high": centre + half}
    return {"difference": centre, **errors, **ends}


def shares(strata: Sequence[Floats]) -> Floats:
    """(S, 1) mean of each seed over problems that no other seed is given, so that the means are independent.

    strata: (S, P) differences of each task. The shares follow from the numbers of problems and seeds. With several
    tasks it is the mean over them. With fewer problems than seeds the seeds that are left without one are left out.
    """
    S = min(len(strata[0]), *(y.shape[1] for y in strata))
    means = np.zeros((S, 1))
    for number, y in enumerate(strata):
        parts = np.array_split(betting.random_order(y.shape[1], S, number), S)
        means[:, 0] += [y[seed, part].mean() / len(strata) for seed, part in enumerate(parts)]
    return means


def p_values(differences: Sequence[Floats], claimed: Sequence[Floats], null: float) -> dict[str, float]:
    """{p_better, p_worse, p_margin} of a recipe by betting, with a value per seed; the first two are two-sided.

    p_margin is that of a loss of the margin or more. claimed: what exceeds null on average if the loss is below the
    margin; differences themselves for a margin in points.
    """
    values = shares(differences)
    better, worse = (min(1.0, 2 * float(betting.p_value([sign * values])[0])) for sign in (1, -1))
    within = float(betting.p_value([shares(claimed)], -null)[0])
    return {"p_better": better, "p_worse": worse, "p_margin": within}


def seeds_needed(margin: Margin, base: float, tests: int = 1) -> int | None:
    """The number of seeds from which on bets can show a loss below the margin of a recipe that changes nothing.

    base: what the base solves. tests: over how many recipes p is corrected. None for more than MOST_SEEDS, and where
    there is nothing to lose.
    """
    if margin.covers(base):
        return None
    (values,), null = exceeding([np.zeros((1, 1))], [np.full((1, 1), base)], margin)
    goal = np.full((1, 1), log(tests / betting.ALPHA))

    def enough(seeds: int) -> bool:
        return bool(betting.reaches(np.full((seeds, 1), values[0, 0]), np.full((1, 1), -null), goal)[0, 0])

    number = bisect_left(range(MOST_SEEDS + 1), True, lo=1, key=enough)
    return number if number <= MOST_SEEDS else None


def recipes_over_seeds(
    runs: Sequence[tuple[Run, Mapping[str, Pair]]],
    margin: Margin,
    shown: Collection[str],
    removed: Sequence[Run],
) -> list[RecipeVerdict]:
    """The estimate and verdict of each recipe that at least LEAST of these runs have, with different calibration seeds.

    runs: with their rows beside the base's, by task: all of the store, since leaving out a seed after seeing it is a
    choice. shown: ids of the runs that are shown, of which a recipe must have one. removed: runs that had
    rows; nothing is claimed of a recipe that lost one.
    """
    groups: dict[str, dict[str, tuple[Run, Mapping[str, Pair]]]] = {}
    for run, pairs in runs:
        key, seeds = _recipe_key(run)
        if key is not None and all(pair.adaptive is None for pair in pairs.values()):
            groups.setdefault(key, {}).setdefault(seeds, (run, pairs))
    estimates, firsts, gone = [], [], {_recipe_key(run)[0] for run in removed}
    for key, members in groups.items():
        chosen = list({run.model.checksum or run.run_id: (run, pairs) for run, pairs in members.values()}.values())
        there = any(run.run_id in shown for run, _ in chosen)
        if there and len(chosen) >= LEAST and (numbers := _numbers(chosen, margin)) is not None:
            lost = dict.fromkeys(CLAIMS, 1.0) if key in gone else {}
            estimates.append(replace(numbers, **lost))
            firsts.append(identity(chosen[0][0]))
    labels = unique_labels(replace(of, recipe=[_seedless(step) for step in of.recipe], dtypes=None) for of in firsts)
    adjusted = {name: paired.holm([getattr(estimate, name) for estimate in estimates]) for name in CLAIMS}
    # The first two of the adjusted p-values are two-sided.
    columns = zip(*(adjusted[name] for name in CLAIMS), strict=True)
    words = [word_of(better / 2, worse / 2, within) for better, worse, within in columns]
    return [
        replace(estimate, verdict=word, label=text, needed=seeds_needed(margin, estimate.base_accuracy, len(estimates)))
        for estimate, word, text in zip(estimates, words, labels, strict=True)
    ]


def _recipe_key(run: Run) -> tuple[str | None, str]:
    """(key, seeds): runs with equal keys have the same recipe but for its seeds; None for a recipe without seeds."""
    steps = run.model.manifest.history
    seeds = [step.recipe.seed for step in steps]
    if all(value is None for value in seeds):
        return None, ""
    of = steps[0].source.checksum or None
    key = canonical_json([of, *([step.action, _seedless(step).recipe.data] for step in steps)])
    return key, canonical_json(seeds)


def _seedless(step: StepRecord) -> StepRecord:
    """A step with its recipe's seed left out."""
    return step | {"recipe": {key: value for key, value in step.recipe.data.items() if key != "seed"}}


def _numbers(chosen: Sequence[tuple[Run, Mapping[str, Pair]]], margin: Margin) -> RecipeVerdict | None:
    """The numbers of a recipe, not yet judged, on the rows that all of its runs have; None if these are too few."""
    tasks = sorted(set.intersection(*(set(pairs) for _, pairs in chosen)))
    differences, bases, n, draws = [], [], 0, set[int]()
    for task in tasks:
        pairs = [pairs[task] for _, pairs in chosen]
        problems, budgets = (
            [value for value in getattr(pairs[0].base, axis) if value in shared]
            for axis in ("problems", "budgets")
            for shared in [set.intersection(*(set(getattr(pair.base, axis)) for pair in pairs))]
        )
        if len(problems) < 2 or not budgets:
            return None
        base = _areas(pairs[0].base.select(problems, budgets, pairs[0].base.draws))
        others = [_areas(pair.other.select(problems, budgets, pair.other.draws)) for pair in pairs]
        differences.append(np.array(others) - base)
        bases.append(base)
        n, draws = n + len(base), draws | {len(pair.other.draws) for pair in pairs}
    if not tasks:
        return None
    claimed, null = exceeding(differences, bases, margin)
    p = p_values(differences, claimed, -null)
    each = np.mean([y.mean(axis=1) for y in differences], axis=0).tolist()
    accuracy = float(np.mean([base.mean() for base in bases]))
    if margin.covers(accuracy):
        p["p_margin"] = 1.0
    runs = [run for run, _ in chosen]
    sizes = {"n": n, "samples": min(draws), "base_accuracy": accuracy}
    seeds = [next(s for step in run.model.manifest.history if (s := step.recipe.seed) is not None) for run in runs]
    ids = [run.run_id for run in runs]
    no_word = {"verdict": Verdict.CANNOT_TELL, "label": ""}
    return made(RecipeVerdict, sizes, over_seeds(differences), p, no_word, seeds=seeds, runs=ids, each=each)


def _areas(table: Table) -> Floats:
    """(G,) the area of each group of problems."""
    curve = table.curve()
    return curve.by_group(curve.correct.mean(axis=2) @ metrics.auc_weights(curve.budgets))
