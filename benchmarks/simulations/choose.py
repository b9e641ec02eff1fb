"""How often the claim of `prunus choose` is false, what its choices lose, and what they cost, with a known truth.

A choice solves a problem if a normal number, of which a part is the problem's and shared by all choices, is below the
quantile of its accuracy; so choices agree on most problems, as forms of one model do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from prunus.statistics.best import ChoiceRule, excess, interval, select_choice, states_after
from prunus.statistics.metrics import wilson_interval
from prunus.statistics.paired import Floats

SHARED = 0.8  # part of the variance that is the problem's; with it equal choices differ on about a fifth of problems
KINDS = ("all equal", "two tied", "one far better", "a margin apart", "spread", "random")


def truth_of(kind: str, choices: int, rng: np.random.Generator, margin: float, costliest: bool = False) -> Floats:
    """(K,) accuracies of choices, from the cheapest on, in random order; or costliest: the better the costlier."""
    found = np.full(choices, rng.uniform(0.2, 0.7))
    if kind == "two tied":
        found[2:] -= 0.1
    elif kind == "one far better":
        found[0] += 0.15
    elif kind == "a margin apart":  # at which the claim is most easily false: x is at the margin when sampling stops
        found[1:] -= margin * 1.01
    elif kind == "spread":
        found = np.linspace(found[0], found[0] - 0.15, choices)
    elif kind == "random":
        found = rng.uniform(0.1, 0.8, choices)
    return np.sort(found) if costliest else rng.permutation(found)


def values_of(truth_K: Floats, problems: int, rng: np.random.Generator) -> Floats:
    """(T, K) what choices with these accuracies solve."""
    shared, own = rng.standard_normal((problems, 1)), rng.standard_normal((problems, len(truth_K)))
    return (np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * own < stats.norm.ppf(truth_K)).astype(float)


@dataclass(frozen=True)
class Made:
    """What one choice came to.

    chosen: its number. x: of the claim. false: whether another is better by more. false_for_any: the same of any
    choice that was not dropped, had it been taken. missed: whether the bounds of its accuracy miss that. used: the part
    of the full grid of choices and problems that was computed. stopped: whether problems were left.
    """

    chosen: int
    x: float
    false: bool
    false_for_any: bool
    missed: bool
    used: float
    stopped: bool


def choose(
    values_TK: Floats, truth_K: Floats, margin: float, look: int, fixed: bool = False, of_any: bool = True
) -> Made:
    """A choice by these rows. truth_K: the accuracies, by which it is judged. fixed: as of ChoiceRule. of_any: whether
    false_for_any, which takes most of the time, is found out.
    """
    T, K = values_TK.shape
    rule, used = ChoiceRule(K, T, margin, fixed=fixed), np.zeros(K)

    def read(left: Sequence[int], rounds: int) -> Floats:
        used[list(left)] = rounds
        return values_TK[:rounds, list(left)]

    last = states_after(read, rule, [T] if fixed else [*range(look, T, look), T])[-1]
    chosen = int(select_choice(last, range(K)))
    seen = values_TK[: last.rounds, list(last.left)]
    place, lost = last.left.index(chosen), truth_K.max() - truth_K[list(last.left)]
    x = float(excess(seen, place, rule).max())
    any_false = (
        any(lost[i] > excess(seen, int(i), rule).max() + 1e-9 for i in np.flatnonzero(lost)) if of_any else False
    )
    low, high = interval(seen[:, place], rule)
    return Made(
        chosen=chosen,
        x=x,
        false=bool(lost[place] > x + 1e-9),
        false_for_any=any_false,
        missed=not low <= truth_K[chosen] <= high,
        used=float(used.sum()) / (T * K),
        stopped=last.rounds < T,
    )


def naive(values_TK: Floats, truth_K: Floats) -> tuple[float, bool]:
    """(regret, whether its interval misses its accuracy) of the choice of the largest mean, with Wilson's interval."""
    means = values_TK.mean(axis=0)
    best = int(means.argmax())
    low, high = wilson_interval(float(means[best]), len(values_TK))
    return float(truth_K.max() - truth_K[best]), not low <= truth_K[best] <= high


@dataclass(frozen=True)
class Rates:
    """Of many choices: rates in [0, 1], and regrets as shares of problems.

    fixed: the regret of the largest mean after this part of the problems, for each part. same_cost: the same after the
    number of problems that takes as many rows as our choices did on average.
    """

    runs: int
    false: float
    false_for_any: float
    missed: float
    regret: float
    x: float
    used: float
    stopped: float
    naive_missed: float
    naive_regret: float
    fixed: dict[float, float]
    same_cost: float


def rates(
    kind: str,
    choices: int | None,
    problems: int,
    runs: int,
    margin: float = 0.03,
    look: int = 64,
    seed: int = 0,
    costliest: bool = False,
    fixed: bool = False,
) -> Rates:
    """What many choices come to. choices: None for 5 to 40 at random. costliest: of truth_of. fixed: of ChoiceRule."""
    rng, made, naives = np.random.default_rng(seed), list[Made](), list[tuple[float, bool]]()
    regrets, kept = list[float](), list[tuple[Floats, Floats]]()
    parts = {0.1: [], 0.25: [], 0.5: []}  # type: dict[float, list[float]]
    for _ in range(runs):
        truth = truth_of(kind, choices or int(rng.integers(5, 41)), rng, margin, costliest)
        values = values_of(truth, problems, rng)
        made.append(choose(values, truth, margin, look, fixed))
        regrets.append(float(truth.max() - truth[made[-1].chosen]))
        naives.append(naive(values, truth))
        for part, found in parts.items():
            found.append(naive(values[: round(part * problems)], truth)[0])
        kept.append((values, truth))
    used = float(np.mean([one.used for one in made]))
    same = [naive(values[: max(1, round(used * problems))], truth)[0] for values, truth in kept]
    return Rates(
        runs=runs,
        **{name: float(np.mean([getattr(one, name) for one in made])) for name in ("false", "false_for_any", "missed")},
        regret=float(np.mean(regrets)),
        x=float(np.mean([one.x for one in made])),
        used=used,
        stopped=float(np.mean([one.stopped for one in made])),
        naive_missed=float(np.mean([missed for _, missed in naives])),
        naive_regret=float(np.mean([regret for regret, _ in naives])),
        fixed={part: float(np.mean(found)) for part, found in parts.items()},
        same_cost=float(np.mean(same)),
    )


def halves(values_TK: Floats, runs: int, margin: float = 0.03, look: int = 16, seed: int = 0) -> dict[str, float]:
    """What choices by random halves of rows lose on the other halves, as shares of problems; how often x is exceeded.

    The other half is no truth but a sample, so that x may be exceeded there by chance, too.
    """
    rng, lost, beyond, used = np.random.default_rng(seed), list[float](), list[bool](), list[float]()
    T = len(values_TK)
    for _ in range(runs):
        order = rng.permutation(T)
        one, other = values_TK[order[: T // 2]], values_TK[order[T // 2 :]]
        means = other.mean(axis=0)
        made = choose(one, means, margin, look)
        lost.append(float(means.max() - means[made.chosen]))
        beyond.append(made.false)
        used.append(made.used)
    return {"regret": float(np.mean(lost)), "beyond x": float(np.mean(beyond)), "used": float(np.mean(used))}


def resampled(values_TK: Floats, runs: int, margin: float = 0.03, look: int = 16, seed: int = 0) -> dict[str, float]:
    """The same of problems that are drawn from these rows with replacement, whose truth is the mean of all rows.

    So it is how often the claim is false, with choices that agree as real ones do.
    """
    rng, truth, made = np.random.default_rng(seed), values_TK.mean(axis=0), list[Made]()
    for _ in range(runs):
        made.append(choose(values_TK[rng.integers(0, len(values_TK), len(values_TK))], truth, margin, look))
    return {
        "regret": float(np.mean([truth.max() - truth[one.chosen] for one in made])),
        "x false": float(np.mean([one.false for one in made])),
        "of any": float(np.mean([one.false_for_any for one in made])),
        "bounds miss": float(np.mean([one.missed for one in made])),
        "x": float(np.mean([one.x for one in made])),
        "used": float(np.mean([one.used for one in made])),
    }
