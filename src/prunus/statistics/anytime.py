"""Bounds and p-values that hold at any time, also where the rows seen so far decide how many problems are taken.

The method is that of `betting`, with bets that do not depend on the number of problems. Bounds for a fixed number of
problems are sharper and serve runs whose problems were fixed beforehand; those of this module serve the others: runs of
`find` and `choose`, and comparisons whose limit grew.

Bets that a loss is below a margin are Kelly's for a harmless model: its differences are -1, 0 and 1, with a mean of 0
and the mean square seen so far. As long as nothing differs they come near the largest bet that cannot lose everything.
Bets that a loss is above the margin: delta / (v + delta^2), Kelly's for small bets, v the variance so far of
(difference + 1) / 2 and delta half the margin, or the gain so far if that is larger, since a broken model is far below.
Over simulated data they need fewer problems than bets for a fixed number of problems, or for all times
(docs/measurements/verdicts.md).

A margin that is a share r of the base: "the loss is smaller" is E[other - (1 - r) base] > 0, the mean of a value in
[-(1 - r), 1] per problem. Bets are on that value, scaled to [-1, 1], so the base's accuracy need not be known; only the
size of a bet uses it, as estimated so far.

T: problems, or rounds with problems of every task, in their order; a round's difference is the mean over tasks.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunus.settings.margins import Margin
from prunus.statistics import betting
from prunus.statistics.betting import two_sided
from prunus.statistics.paired import Floats

SHARE, SURE = 0.5, 4.0  # accuracy of the base that is assumed before the first problem; problems that it counts as
FIRST, WEIGHT = 0.04, 10.0  # mean square of differences that is assumed before the first; problems that it counts as
UNSURE = 0.25  # variance and weight of the pseudo-value before the first problem, for bets that a mean is above
LARGEST_STAKE_ANYTIME = 0.99  # largest share of the wealth that one bet can lose
SMALL = 0.02  # takes the place of a margin of 0 where the size of a bet is computed
SHAPE = np.linspace(-1, 1, 2001)[1:] ** 3  # differences at which bounds are computed, densest around 0


@dataclass(frozen=True)
class BoundsPath:
    """Estimate and bounds of one endpoint after every round, (T,) each; a bound is valid at all rounds simultaneously.

    P(lower is ever above the true mean difference) <= alpha, and likewise for upper. lower > -margin if and only if a
    loss of the margin or more is ruled out, upper < -margin if and only if a smaller loss is.

    With a margin that is a share of the base, all three are of other - (1 - share) base, the difference plus that share
    of the base, so 0 takes the place of -margin.
    """

    estimate: Floats
    lower: Floats
    upper: Floats


def with_estimate(estimate: Any, low: Any, high: Any) -> tuple[Any, Any, Any]:
    """(estimate, low, high) to be shown, numbers or arrays: bounds are widened to the estimate where it is outside."""
    return estimate, np.minimum(low, estimate), np.maximum(high, estimate)


def path(
    differences_T: Floats, margin: float, alpha: float = betting.ALPHA, base_T: Floats | None = None
) -> BoundsPath:
    """Estimate and bounds of an endpoint after every round. base_T: as of `log_e_values`."""
    d, null, stakes = _claimed(np.asarray(differences_T, dtype=float), margin, base_T)

    def in_units(values: Floats) -> Floats:
        return values if base_T is None else unscaled(values, margin)

    return BoundsPath(
        estimate=in_units(np.cumsum(d) / np.arange(1, len(d) + 1)),
        lower=in_units(lower_path(d, stakes, alpha, -null)),
        upper=in_units(-lower_path(-d, bets_above(-d, null), alpha, null)),
    )


def scaled(differences: Floats, base: Floats, share: float) -> tuple[Floats, float]:
    """(values, null margin): other - (1 - share) base, scaled to [-1, 1]; a mean of 0 becomes -null margin."""
    return (2 * differences + share * (2 * base - 1)) / (2 - share), share / (2 - share)


def exceeding(strata: Sequence[Floats], base: Sequence[Floats], margin: Margin) -> tuple[Sequence[Floats], float]:
    """(values, null margin): values of each task whose mean is above -null margin where the loss is below the margin.

    strata, base: (P, C) differences of each task, and the base's own values.
    """
    if not margin.relative:
        return strata, margin.size
    both = [scaled(differences, own, margin.size) for differences, own in zip(strata, base, strict=True)]
    return [values for values, _ in both], both[0][1]


def unscaled(values: Floats, share: float) -> Floats:
    """other - (1 - share) base from the values that `scaled` made of it."""
    return ((2 - share) * values + share) / 2


def _claimed(differences_T: Floats, margin: float, base_T: Floats | None) -> tuple[Floats, float, Floats]:
    """(values, null margin, bets) by which it is claimed that the loss is smaller than the margin."""
    if base_T is None:
        return differences_T, margin, bets(differences_T, margin)
    values, null = scaled(differences_T, base_T, margin)
    before = np.concatenate([np.zeros_like(base_T[:1]), np.cumsum(base_T, axis=0)])[:-1]
    usual = margin * (SHARE * SURE + before) / (SURE + _count(base_T))  # the margin in points, by the base so far
    return values, null, bets(differences_T, usual) * (2 - margin) / 2


def _count(values_T: Floats) -> NDArray[np.int_]:
    """(T, 1, ...) how many values there are before each."""
    return np.arange(len(values_T)).reshape(-1, *[1] * (values_T.ndim - 1))


def bets(differences_T: Floats, margin: float | Floats) -> Floats:
    """(T, ...) bets that the mean is above -margin, on differences scaled to [0, 1], each from those before it."""
    squares = np.cumsum(differences_T**2, axis=0)
    return kelly(np.concatenate([np.zeros_like(squares[:1]), squares])[:-1], _count(squares), margin)


def kelly(squares: Floats, count: NDArray[np.int_], margin: float | Floats) -> Floats:
    """The bet after this number of differences with this sum of squares; see the beginning of this file.

    A difference d multiplies the wealth by 1 + b (d + margin) / 2. If d is 1 or -1 with probability r / 2 each, else 0,
    the mean logarithm of that is largest where margin (1 - margin^2) (b/2)^2 + (r - 2 margin^2) b/2 = margin.
    With a margin of 0 nothing would be bet, so the bet is that for a small margin.
    """
    margin = margin if np.any(margin) else SMALL
    r = (FIRST * WEIGHT + squares) / (WEIGHT + count)
    return (2 * margin**2 - r + np.sqrt(r**2 + 4 * margin**2 * (1 - r))) / (margin * (1 - margin**2))


def bets_above(differences_T: Floats, margin: float) -> Floats:
    """(T, ...) bets that the mean is above margin, sized for an excess of `margin`, or the excess so far if larger."""
    x = (differences_T + 1) / 2
    weight = UNSURE + np.arange(1.0, len(x) + 1).reshape(-1, *[1] * (x.ndim - 1))
    mean = (UNSURE / 2 + np.cumsum(x, axis=0)) / weight
    after = (UNSURE * UNSURE + np.cumsum((x - mean) ** 2, axis=0)) / weight
    variance = np.concatenate([np.full_like(x[:1], UNSURE), after])[:-1]
    before = np.concatenate([np.full_like(x[:1], 0.5), mean])[:-1]
    gain = np.maximum(margin / 2, before - (1 + margin) / 2)
    return np.minimum(gain / (variance + gain**2), betting.LARGEST_STAKE / ((1 + margin) / 2))


def same_until_certified(
    differences_T: Floats, margin: float, alpha: float, most: int, base_T: Floats | None = None
) -> float:
    """Number of further differences of 0 that would rule out a loss of the margin; inf: more than `most`.

    base_T: as of `log_e_values`; the base is taken to solve as many of the later problems as of those so far, and all
    of them where there are none yet.
    """
    T, rest = len(differences_T), np.zeros(most)
    if log_e_values(differences_T, margin, base_T)[0][-1:].max(initial=0.0) >= log(1 / alpha):
        return 0
    if base_T is not None:
        base_T = np.concatenate([base_T, np.full(most, base_T.mean() if T else 1.0)])
    values, null, stakes = _claimed(np.concatenate([differences_T, rest]), margin, base_T)
    reached = np.cumsum(steps(values, stakes, -null))[T:] >= log(1 / alpha)
    return int(reached.argmax()) + 1 if reached.any() else inf


def lower_path(
    differences_T: Floats, bets_T: Floats, alpha: float, *nulls: float, most: float = LARGEST_STAKE_ANYTIME
) -> Floats:
    """(T,) the largest mean rejected so far, -1 if none is; from a grid of means, in which `nulls` are included."""
    grid = (np.unique(np.concatenate([SHAPE, nulls])) + 1) / 2
    logs = np.cumsum(betting.steps((differences_T[:, None] + 1) / 2, bets_T[:, None], grid, most), axis=0)
    rejected_T = (np.maximum.accumulate(logs, axis=0) >= log(1 / alpha)).sum(axis=1)  # wealth falls along the grid
    return np.where(rejected_T > 0, 2 * grid[rejected_T - 1] - 1, -1.0)


def log_e_values(differences_T: Floats, margin: float, base_T: Floats | None = None) -> tuple[Floats, Floats]:
    """(T, ...) logarithms of the largest e-values so far for a loss below the margin and for one above it; at least 0.

    differences_T: (T,), or (T, C) of C rungs. base_T: the base's value on each problem, where the margin is a share of
    it; None: the margin is in points.
    """
    values, null, stakes = _claimed(differences_T, margin, base_T)
    return largest_wealth(values, stakes, -null), largest_wealth(-values, bets_above(-values, null), null)


def largest_wealth(differences_T: Floats, bets_T: Floats, null: float) -> Floats:
    """(T, ...) logarithm of the largest wealth so far, at least 0, of bets that the mean is above null."""
    return np.maximum(np.maximum.accumulate(np.cumsum(steps(differences_T, bets_T, null), axis=0), axis=0), 0.0)


def steps(differences_T: Floats, bets_T: Floats, null: float) -> Floats:
    """(T, ...) increments of the logarithm of the wealth of bets that the mean is above null."""
    return betting.steps((differences_T + 1) / 2, bets_T, np.array((1 + null) / 2), LARGEST_STAKE_ANYTIME)


def in_rounds(strata: Sequence[Floats], names: Sequence[Sequence[str]], seed: int | None) -> Floats:
    """(T, C) differences by round in the order of a search with this seed; with a single task a problem is a round.

    strata: (P, C) differences of each task, or (G, C) of groups. names: the ids of these problems or groups. seed: None
    where they are in the order in which they were taken.
    """
    values = {
        (str(k), name): row
        for k, (ids, rows) in enumerate(zip(names, strata, strict=True))
        for name, row in zip(ids, rows, strict=True)
    }
    by_round = []
    for positions in rounds(interleaved({str(k): ids for k, ids in enumerate(names)}, seed)):
        tasks = dict.fromkeys(task for task, _ in positions)  # in an order, on which the last bits of the mean depend
        by_round.append(
            np.mean([np.mean([values[key] for key in positions if key[0] == t], axis=0) for t in tasks], axis=0)
        )
    return np.array(by_round)


def in_plan_order(
    strata: Sequence[Floats],
    names: Sequence[Sequence[str]],
    orders: Sequence[Sequence[str]],
    limits: Sequence[float],
    draws: int = 1,
) -> tuple[Floats, int]:
    """(T, C) differences by round, as a growing limit admitted problems, and the number of rounds of the first limit.

    strata, names: differences and ids of each task in the order of bets. orders: ids in the plan's order. limits: of
    the comparisons so far. draws: of each problem. Problems come by the limit that admitted them, and in the order of
    bets within it. Those of the first limit form the rounds of `betting`; if it did not bet in rounds, their
    number is 0, and they are taken like the later ones: with several tasks the k-th problems of all tasks form a round,
    as far as all tasks have a k-th, so that a larger limit only adds rounds.
    """
    taken: list[list[Floats]] = []
    for rows, ids, order in zip(strata, names, orders, strict=True):
        place = {name: rank for rank, name in enumerate(order)}
        admitted: list[list[int]] = [[] for _ in range(len(limits) + 1)]
        for row, name in enumerate(ids):
            admitted[bisect_right(limits, place.get(name, len(order)))].append(row)
        taken.append([rows[some] for some in admitted])
    first = (
        betting.in_rounds([stratum[0] for stratum in taken], draws)
        if all(len(stratum[0]) for stratum in taken)
        else None
    )
    rest = [np.concatenate(stratum[first is not None :]) for stratum in taken]
    rounds = np.mean([values[: min(map(len, rest))] for values in rest], axis=0)
    return (rounds, 0) if first is None else (np.concatenate([first, rounds]), len(first))


class Claims(NamedTuple):
    """P-values and bounds of C contrasts, (C,) each.

    p_better, p_worse, p: as of `betting.direction_p`. lower_bound: one-sided 95 %. p_margin: of a loss of the margin or
    more. low, high: ends of 95 % intervals. band_low, band_high: ends of intervals that hold for several columns
    together.
    """

    p_better: Floats
    p_worse: Floats
    p: Floats
    p_margin: Floats
    lower_bound: Floats
    low: Floats | None = None
    high: Floats | None = None
    band_low: Floats | None = None
    band_high: Floats | None = None

    @property
    def columns(self) -> dict[str, Floats]:
        """Columns by name, without those that are None."""
        return {name: column for name, column in self._asdict().items() if column is not None}


def infer(differences_TC: Floats, margin: float, columns: float = 1, first: int = 0, share: float = 1.0) -> Claims:
    """P-values, bounds and intervals that hold at any time; bands hold for `columns` contrasts together.

    first: number of rounds of a first comparison, which was judged by `betting`; its bets are kept, so that both
    comparisons are one game, which errs with probability alpha in all. share: of alpha that is spent.
    """
    d, alpha = differences_TC, betting.ALPHA * share
    above, below = bets(d, margin), bets_above(-d, margin)
    better, worse = (np.minimum(1.0, _p(sign * d, bets_above(sign * d, SMALL), 0.0, first) / share) for sign in (1, -1))
    p_margin = np.minimum(1.0, _p(d, above, -margin, first) / share)
    ends = [
        end
        for level in (alpha / 2, alpha / 2 / columns)
        for end in (_lower(d, above, level, first), -_lower(-d, below, level, first))
    ]
    return Claims(better, worse, two_sided(better, worse), p_margin, _lower(d, above, alpha, first), *ends)


def _p(differences_TC: Floats, bets_TC: Floats, null: float, first: int) -> Floats:
    """(C,) p-values of "the mean is null or less", by these bets after those of the `first` rounds by `betting`."""
    if not first:
        return np.exp(-largest_wealth(differences_TC, bets_TC, null)[-1])
    later_C = np.cumsum(steps(differences_TC, bets_TC, null)[first:], axis=0).max(axis=0, initial=0.0)
    goals_L1 = -np.log(betting.LEVELS)[:, None]
    begun_LC = betting.aimed_wealth(differences_TC[:first], np.full((1, 1), null), goals_L1)
    return betting.smallest_level(begun_LC + later_C >= goals_L1)


def _lower(differences_TC: Floats, bets_TC: Floats, alpha: float, first: int) -> Floats:
    """(C,) lower bounds of the mean at level alpha, by bets like those of `_p`."""
    scaled_TC = (differences_TC + 1) / 2
    if not first:
        return 2 * betting.bound(scaled_TC, bets_TC, alpha, LARGEST_STAKE_ANYTIME) - 1
    means, goal = betting.MEANS, log(1 / alpha)
    logs_GC = betting.aimed_wealth(differences_TC[:first], means[:, None], np.full((1, 1), goal))
    for c in range(logs_GC.shape[1]):
        more_TG = betting.steps(
            scaled_TC[first:, c, None], bets_TC[first:, c, None], (means + 1) / 2, LARGEST_STAKE_ANYTIME
        )
        logs_GC[:, c] += np.cumsum(more_TG, axis=0).max(axis=0, initial=0.0)
    return betting.largest_mean(means, logs_GC >= goal)


Round = tuple[tuple[str, str], ...]  # (task, problem id) of the problems that are taken together
First = Mapping[str, str]  # {problem id: first problem of its group} of problems that are neither first nor alone


# The order in which `find` takes problems: random, but it follows from a seed and from each problem's id alone.
# So any part of the problems can be put in order without knowing the others, and bounds that are valid at any time can
# be computed again from the rows of a store. Problems that belong together count as one, by the id of the first of
# them.


def seeded_order(problems: Iterable[str], seed: int) -> list[str]:
    """The problem ids in the order of hashes of seed and id."""
    return sorted(problems, key=lambda problem: hashlib.sha256(f"{seed}\t{problem}".encode()).digest())


def interleaved(tasks: Mapping[str, Iterable[str]], seed: int | None) -> list[tuple[str, str]]:
    """(task, problem id) in the order in which problems are taken, with tasks spread evenly over it.

    tasks: the problem ids of each. seed: of their order; None: they are in order.
    """
    placed = []
    for number, (task, problems) in enumerate(tasks.items()):
        order = list(problems) if seed is None else seeded_order(problems, seed)
        placed += [((place + 0.5) / len(order), number, task, problem) for place, problem in enumerate(order)]
    return [(task, problem) for _, _, task, problem in sorted(placed)]


def whole_groups(tasks: Mapping[str, Iterable[str]], seed: int | None, first_of: First) -> list[Round]:
    """The rounds of these tasks: groups of problems are taken in the order of `interleaved`, each as a whole.

    Without groups of several problems, the rounds are those of the problems. Without a seed a group has the place of
    its problem that comes first.
    """
    members: dict[tuple[str, str], list[str]] = {}
    for task, problems in tasks.items():
        for problem in problems if seed is None else sorted(problems):
            members.setdefault((task, first_of.get(problem, problem)), []).append(problem)
    groups = {task: [group for of, group in members if of == task] for task in tasks}
    return [
        tuple((task, problem) for task, group in pair for problem in members[task, group])
        for pair in rounds(interleaved(groups, seed))
    ]


def rounds(order: Sequence[tuple[str, str]]) -> list[Round]:
    """The problems in this order (of `interleaved`) as rounds, which hold the next problems of every task.

    There are as many rounds as the smallest task has problems; those of larger tasks are spread evenly over them.
    """
    by_task: dict[str, list[str]] = {}
    for task, problem in order:
        by_task.setdefault(task, []).append(problem)
    total = min(map(len, by_task.values()), default=0)
    return [
        tuple(
            (task, problem)
            for task, problems in by_task.items()
            for problem in problems[r * len(problems) // total : (r + 1) * len(problems) // total]
        )
        for r in range(total)
    ]
