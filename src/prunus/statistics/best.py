"""Selection among the choices that fit: which are worse, which is taken, and how much better another can be.

K: choices, L: those not dropped, T: rounds of problems in their order. values_TL is the share of each round that each
choice solves, in [0, 1].

**No other choice is more than x better.** For choices i and j a gambler bets that mean_i - mean_j is above a null, as
`statistics.anytime` describes. Let b be a choice of the largest true mean; it does not depend on rows. With probability
1 - alpha no bound of b against any other choice i, each at level alpha / (K - 1), is ever false (Ville's inequality,
and the union over i). Then, whichever choice i is taken and whenever:
- b is not dropped, since only a false bound could say that another choice is better than b;
- so b is i itself or one of the others not dropped, and mean_b - mean_i is at most x, the largest of the upper bounds
  of mean_j - mean_i over the j that are not dropped.
Only K - 1 pairs can go wrong, so the correction is for K - 1 and not for all K (K - 1) pairs, as in multiple
comparisons with the best (Hsu 1984, Annals of Statistics 12:1136), here with bounds that hold at any time.

The wealth is the mean of the wealths of two gamblers, which is a supermartingale as both are. The bets of the first
suit two choices that are equally good, and make x small; the bets of the second follow the difference so far, and show
which choice is better. The first gambler uses Kelly's bet for the margin or, if that is larger, the bet by which x is
smallest after all problems.

Where all rows existed beforehand and none was drawn because of others, there is a single analysis, after all rounds.
Bounds need not hold at any time then, so the gambler aims at the goal after the last round (`betting.lower_bound`),
which makes x about a quarter smaller. A choice is worse where the same bounds say so, so that still only the K - 1
bounds of b against the others can go wrong: each with probability alpha / (K - 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from prunus.settings.margins import MARGIN
from prunus.statistics import anytime, betting
from prunus.statistics.paired import Floats

Flags = NDArray[np.bool_]
Bets = tuple[Floats, Floats]
DIFFER = 0.1  # share of the problems that one of two choices solves alone, for forecasts


@dataclass(frozen=True)
class ChoiceRule:
    """Settings by which a choice is made.

    choices: K, the number of choices that fit. rounds: number of rounds that there are. margin: how much better another
    choice may be where sampling ends before problems run out. alpha: probability that the claim is false. fixed:
    whether all rows existed beforehand, so that there is a single analysis.
    """

    choices: int
    rounds: int
    margin: float = MARGIN
    alpha: float = betting.ALPHA
    fixed: bool = False

    @property
    def goal(self) -> float:
        """The logarithm of the wealth at which a pair of choices is decided."""
        return log(max(1, self.choices - 1) / self.alpha)


@dataclass(frozen=True)
class ChoiceState:
    """State of the choices after some rounds. left: the numbers of those that are not shown to be worse than another.

    means: of those in left. within: those in left that are shown to lose less than the margin to any other.
    """

    rounds: int
    left: tuple[int, ...]
    means: tuple[float, ...]
    within: tuple[int, ...]


Read = Callable[[Sequence[int], int], Floats | None]


def states_after(read: Read, rule: ChoiceRule, looks: Sequence[int], stops: bool = True) -> list[ChoiceState]:
    """State of the choices after each interim analysis.

    read: gives the values of choices up to a round, which it may compute first; None where there are no such rows,
    which ends the list. looks: numbers of rounds after which there is an analysis. stops: whether the list ends where a
    choice is shown to be within the margin.
    """
    left, found = tuple(range(rule.choices)), list[ChoiceState]()
    for rounds in looks:
        if (values := read(left, rounds)) is None:
            break
        found.append(state_after(values, left, rule))
        left = found[-1].left
        if found[-1].within and stops:
            break
    return found


def state_after(values_TL: Floats, left: Sequence[int], rule: ChoiceRule) -> ChoiceState:
    """State of the choices after these rows. left: the choices that were left before."""
    L, worse_L = len(left), np.zeros(len(left), bool)
    close_LL = np.eye(L, dtype=bool)
    for i in range(L):
        d_TL = values_TL[:, i, None] - values_TL
        new_L = above(d_TL, rule, 0.0) & ~worse_L
        if rule.fixed and new_L.any():  # by the bounds of x, which reject all smaller means, too
            new_L[new_L] = lower_bounds(d_TL[:, new_L], rule, rule.goal) >= 0.0
        worse_L |= new_L
        close_LL[i] |= above(d_TL, rule, -rule.margin)
    within_L = ~worse_L & (close_LL | worse_L).all(axis=1)
    means = values_TL.mean(axis=0)
    kept = [place for place in range(L) if not worse_L[place]]
    return ChoiceState(
        len(values_TL),
        tuple(left[place] for place in kept),
        tuple(float(means[place]) for place in kept),
        tuple(left[place] for place in kept if within_L[place]),
    )


def select_choice(found: ChoiceState, costs: Sequence[object]) -> int:
    """The choice that is taken: the cheapest of those within the margin, else the cheapest of the largest mean.

    costs: of each choice, as values that can be sorted.
    """
    most = max(found.means)
    best = [choice for choice, mean in zip(found.left, found.means, strict=True) if mean >= most - 1e-12]
    return min(found.within or best, key=lambda choice: (costs[choice], choice))  # pyright: ignore


def excess(values_TL: Floats, chosen: int, rule: ChoiceRule) -> Floats:
    """(L,) upper bounds of how much better each choice is than that at the place `chosen`, which itself has 0.

    x of the claim is the largest of them; below 0 a choice is shown to be worse.
    """
    bounds = -lower_bounds(values_TL[:, chosen, None] - values_TL, rule, rule.goal)
    bounds[chosen] = 0.0
    return bounds


def lower_bounds(d_TC: Floats, rule: ChoiceRule, goal: float) -> Floats:
    """(C,) lower bounds of mean differences: the largest nulls, by bisection of [-1, 1], that are rejected."""
    if rule.fixed:
        return betting.lower_bound([d_TC], exp(-goal), nulls=(0.0, -rule.margin))
    bets = bets_of(d_TC, rule)
    low_C, high_C = np.full(d_TC.shape[1], -1.0), np.ones(d_TC.shape[1])
    for _ in range(betting.HALVINGS):
        middle_C = (low_C + high_C) / 2
        rejected_C = wealth(d_TC, bets, middle_C) >= goal
        low_C, high_C = np.where(rejected_C, middle_C, low_C), np.where(rejected_C, high_C, middle_C)
    return low_C


def above(d_TC: Floats, rule: ChoiceRule, null: float) -> Flags:
    """(C,) whether a mean difference of `null` or less is rejected."""
    if rule.fixed:
        return betting.reaches(d_TC, np.full((1, 1), null), np.full((1, 1), rule.goal))[0]
    return wealth(d_TC, bets_of(d_TC, rule), null) >= rule.goal


def forecast(rule: ChoiceRule) -> float:
    """Approximate x of the claim after all rounds, for two equal choices that differ on DIFFER of the problems."""
    T = rule.rounds
    count = round(DIFFER * T)
    d_T1 = np.zeros((T, 1))
    d_T1[((np.arange(count) + 0.5) * T / max(1, count)).astype(int), 0] = np.where(np.arange(count) % 2, 1.0, -1.0)
    return -float(lower_bounds(d_T1, rule, rule.goal)[0])


def bets_of(d_TC: Floats, rule: ChoiceRule) -> Bets:
    """Two bets on each difference, from those before it alone: that the mean is above -margin, and that it is above 0.

    With a mean square r of the differences a bet of sqrt(2 goal / (r T)) has the sharpest bound after T of them.
    """
    squares = np.cumsum(d_TC**2, axis=0)
    before = np.concatenate([np.zeros_like(squares[:1]), squares])[:-1]
    mean_square = (anytime.FIRST * anytime.WEIGHT + before) / (anytime.WEIGHT + np.arange(len(d_TC))[:, None])
    at_the_end = 2 * np.sqrt(2 * rule.goal / (mean_square * rule.rounds))  # of differences in [0, 1], as the others
    return np.maximum(anytime.bets(d_TC, rule.margin), at_the_end), anytime.bets_above(d_TC, anytime.SMALL)


def wealth(d_TC: Floats, bets: Bets, null: float | Floats) -> Floats:
    """(C,) logarithm of the largest wealth so far of the mean of both bets against a mean of null or less."""
    x_TC, null = (d_TC + 1) / 2, np.maximum((1 + np.asarray(null)) / 2, 1e-9)
    logs = [np.cumsum(betting.steps(x_TC, bet, null, anytime.LARGEST_STAKE_ANYTIME), axis=0) for bet in bets]
    return np.maximum((np.logaddexp(*logs) - log(2)).max(axis=0, initial=0.0), 0.0)


def interval(values_T: Floats, rule: ChoiceRule) -> tuple[float, float]:
    """(low, high) bounds of the mean of a choice; they hold for all choices together, so also for the choice taken."""
    low, high = betting.interval(values_T[:, None], rule.alpha / rule.choices, rule.rounds)
    return float(low[0]), float(high[0])


def as_good(values_TC: Floats, chosen_T: Floats, pairs: int, rule: ChoiceRule) -> Flags:
    """(C,) whether each of some other choices is shown to lose less than the margin against the chosen choice.

    pairs: number of (chosen, other) pairs that could have been compared, among which alpha is divided.
    """
    goal = log(max(1, pairs) / rule.alpha)
    return lower_bounds(values_TC - chosen_T[:, None], rule, goal) >= -rule.margin
