"""The verdict on a recipe from several calibration seeds: seeds are a random effect, as problems are.

A run is one checkpoint, and its verdict is about that one. Another calibration seed makes another checkpoint of the
same recipe. The difference y[s, p] of the checkpoint of seed s from the base on problem p has a part of the seed, a
part of the problem, and the rest. The mean over both varies with all three (crossed random effects, by the usual mean
squares), so its variance is estimated as

    variance of the seeds' means / S  +  variance of the problems' means / P  -  variance of the rest / (S P),

where the rest is in the first two terms both. What the seeds add is taken as 0 where its estimate is below. The t
interval has the degrees of freedom of Satterthwaite (1946) for these terms. With several tasks the estimate is the mean
over tasks; seeds are common to all tasks and problems are not.

S: seeds, P: problems of a task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import scipy

from prunus.margins import Margin
from prunus.plain_data import canonical_json
from prunus.results import betting, metrics, paired
from prunus.results.anytime import exceeding
from prunus.results.cells import RecipeVerdict, made
from prunus.results.contrasts import Pair
from prunus.results.labels import history, identity, unique_labels
from prunus.results.paired import Floats
from prunus.results.rows import Run, Table
from prunus.results.verdicts import CLAIMS, word_of
from prunus.step import StepRecord, recipe_of

LEAST = 3  # seeds: two say next to nothing of how seeds differ


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


def p_above(strata: Sequence[Floats], null: float) -> float:
    """One-sided p of a true mean of null or less, by the t test of `over_seeds`."""
    found = over_seeds(strata)
    if found["se"] == 0:
        return float(found["difference"] <= null)
    return float(scipy.stats.t.sf((found["difference"] - null) / found["se"], found["freedom"]))


def p_values(differences: Sequence[Floats], claimed: Sequence[Floats], null: float, seed: int = 0) -> dict[str, float]:
    """p of better, worse and within (a loss below the margin) of the recipe, two-sided for the first two.

    Each is the larger of two p-values: that of the t test with seeds as a random effect, and that of betting on the
    mean over these checkpoints, which also holds where few problems break. claimed: what exceeds null on average if the
    loss is below the margin; differences themselves for a margin in points.
    """
    means = [y.mean(axis=0)[:, None] for y in differences]
    bets = [float(betting.p_value([sign * y for y in means], 0.0, seed)[0]) for sign in (1, -1)]
    tests = [p_above([sign * y for y in differences], 0.0) for sign in (1, -1)]
    better, worse = (min(1.0, 2 * max(pair)) for pair in zip(bets, tests, strict=True))
    within = betting.p_value([y.mean(axis=0)[:, None] for y in claimed], -null, seed)
    return {"p_better": better, "p_worse": worse, "p_margin": max(float(within[0]), p_above(claimed, null))}


def recipes_over_seeds(
    runs: Sequence[tuple[Run, Mapping[str, Pair]]], margin: Margin, seed: int = 0
) -> list[RecipeVerdict]:
    """A verdict on each recipe that at least LEAST of these runs have with calibration seeds of their own.

    runs: with their rows beside the base's, by task.
    """
    groups: dict[str, dict[str, tuple[Run, Mapping[str, Pair]]]] = {}
    for run, pairs in runs:
        steps = history(run)
        seeds = [recipe_of(step).get("seed") for step in steps]
        if any(value is not None for value in seeds) and all(pair.adaptive is None for pair in pairs.values()):
            source = steps[0].get("source")
            of = source.get("checksum") if isinstance(source, dict) else None
            key = canonical_json([of, *([step.get("action"), _seedless(step)["recipe"]] for step in steps)])
            groups.setdefault(key, {}).setdefault(canonical_json(seeds), (run, pairs))
    found, firsts = [], []
    for members in groups.values():
        chosen = list(
            {run.model.get("checksum") or run.run_id: (run, pairs) for run, pairs in members.values()}.values()
        )
        if len(chosen) >= LEAST and (numbers := _numbers(chosen, margin, seed)) is not None:
            found.append(numbers)
            firsts.append(identity(chosen[0][0]))
    labels = unique_labels(replace(of, recipe=[_seedless(step) for step in of.recipe], dtypes=None) for of in firsts)
    adjusted = {name: paired.holm([getattr(one, name) for one in found]) for name in CLAIMS}
    # The first two of the adjusted p-values are two-sided.
    columns = zip(*(adjusted[name] for name in CLAIMS), strict=True)
    words = [word_of(better / 2, worse / 2, within) for better, worse, within in columns]
    return [replace(one, verdict=word, label=text) for one, word, text in zip(found, words, labels, strict=True)]


def _seedless(step: StepRecord) -> StepRecord:
    """A step with its recipe's seed left out."""
    return {**step, "recipe": {key: value for key, value in recipe_of(step).items() if key != "seed"}}


def _numbers(chosen: Sequence[tuple[Run, Mapping[str, Pair]]], margin: Margin, seed: int) -> RecipeVerdict | None:
    """The numbers of a recipe over its runs, on what all of them have, not yet judged; None if that is too little."""
    tasks = sorted(set.intersection(*(set(pairs) for _, pairs in chosen)))
    differences, bases, n, draws = [], [], 0, set[int]()
    for task in tasks:
        pairs = [pairs[task] for _, pairs in chosen]
        problems, budgets = (
            sorted(set.intersection(*(set(getattr(pair.base, axis)) for pair in pairs)))
            for axis in ("problems", "budgets")
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
    p = p_values(differences, claimed, -null, seed)
    accuracy = float(np.mean([base.mean() for base in bases]))
    if margin.covers(accuracy):
        p["p_margin"] = 1.0
    runs = [run for run, _ in chosen]
    sizes = {"n": n, "samples": min(draws), "base_accuracy": accuracy}
    seeds = [next(s for step in history(run) if (s := recipe_of(step).get("seed")) is not None) for run in runs]
    ids = [run.run_id for run in runs]
    return made(RecipeVerdict, sizes, over_seeds(differences), p, seeds=seeds, runs=ids, verdict="", label="")


def _areas(table: Table) -> Floats:
    """(G,) the area of each group of problems."""
    curve = table.curve()
    return curve.by_group(curve.correct.mean(axis=2) @ metrics.auc_weights(curve.budgets))
