"""Metrics of a run, computed from arrays. P: problems, B: budgets, N: draws of each problem.

The problem is the sampling unit and draws are nested in it, so every standard error is taken over problems (Miller,
arXiv:2411.00640): sqrt(p(1-p)/(PN)) would be too small.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import comb, inf, nan, sqrt
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from prunus.plain_data import Record
from prunus.settings.budgets import NAMED
from prunus.statistics.paired import EXPLORING_RESAMPLES, Floats, bootstrap

Ballot = tuple[tuple[tuple[int, float], ...], int]  # (votes, score) of each distinct answer; draws without an answer
LEAK_RULE = "max(512, budget/2)"  # `answer_allowance` in words
NORMAL = 1.959963984540054  # the quantile of a 95 % interval


class Value(Record):
    """A number over problems.

    value: the number.
    se: its standard error; None for a single problem.
    """

    value: float
    se: float | None


class Estimate(Value):
    """A value with its interval.

    low, high: the 95 % interval.
    """

    low: float
    high: float


class Tokens(Record):
    """Tokens over draws; None in a log that does not tell them.

    mean: of all draws.
    p95: the 95th percentile.
    """

    mean: float | None
    p95: float | None


class Adherence(Record):
    """How draws kept to a budget.

    used: median of thinking tokens over the budget.
    over: share that thought more.
    """

    used: float
    over: float


def estimate(values_P: ArrayLike, draws: float = 1) -> Estimate:
    """Mean of per-problem values in [0, 1], each a mean over `draws` draws: avg@N if they are shares correct.

    Interval: Wilson's at the effective sample size mean(1-mean)/se^2 (Korn and Graubard 1998, with the t quantile); for
    one draw per problem that is Wilson's own. It stays inside [0, 1] and never shrinks to a point: where all problems
    have the same value, each counts as one trial.
    """
    values = np.asarray(values_P, dtype=float)
    n, mean = len(values), float(values.mean())
    se = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else nan
    binary = bool(np.isin(values, (0, 1)).all())
    if binary or n < 2 or se == 0:
        size, quantile = float(n), scipy.stats.norm.ppf(0.975)
    else:
        size, quantile = min(mean * (1 - mean) / se**2, n * draws), scipy.stats.t.ppf(0.975, n - 1)
    low, high = wilson_interval(mean, size, float(quantile))
    return Estimate(value=mean, se=se, low=low, high=high)


def wilson_interval(share: float, size: float, quantile: float = NORMAL) -> tuple[float, float]:
    """Wilson's score interval of a share of size trials."""
    spread = quantile**2 / size
    centre = (share + spread / 2) / (1 + spread)
    half = quantile * np.sqrt(share * (1 - share) / size + spread / (4 * size)) / (1 + spread)
    low, high = float(centre - half), float(centre + half)
    return 0.0 if share == 0 else low, 1.0 if share == 1 else high  # without rounding error


def pass_values(correct_PN: ArrayLike, k: int) -> Floats:
    """(P,) pass@k of each problem.

    1 - prod over t = N-c+1..N of (1 - k/t), with c draws correct; it is 1 where fewer than k are wrong.
    """
    correct = _matrix(correct_PN, k)
    N = correct.shape[1]
    counts_P = correct.sum(axis=1)
    t = np.arange(1, N + 1)
    factors_PN = np.where(t > N - counts_P[:, None], 1 - k / t, 1.0)
    return 1 - np.where(N - counts_P < k, 0.0, factors_PN.prod(axis=1))


def majority_values(answers_PN: Sequence[Sequence[str | None]], correct_PN: ArrayLike, k: int) -> Floats:
    """(P,) maj@k of each problem.

    Draws without an answer (None) do not vote; without any vote the score is 0. Tied answers share the score, which is
    the expectation of a random tie-break. The score of an answer is the share of its draws graded correct: 0 or 1
    unless the grader contradicts itself. The value is exact: subsets are counted with a polynomial per answer, not
    sampled.
    """
    return vote(ballots(answers_PN, _matrix(correct_PN, k)), k)


def ballots(answers_PN: Sequence[Sequence[str | None]], correct_PN: ArrayLike) -> list[Ballot]:
    """The votes of each problem, from which `vote` computes maj@k for any k."""
    counted = []
    for answers, verdicts in zip(answers_PN, np.asarray(correct_PN, dtype=bool).tolist(), strict=True):
        votes: dict[str, int] = {}
        worth: dict[str, int] = {}
        for answer, verdict in zip(answers, verdicts, strict=True):
            if answer is not None:
                votes[answer] = votes.get(answer, 0) + 1
                worth[answer] = worth.get(answer, 0) + verdict
        classes = sorted((count, worth[answer] / count) for answer, count in votes.items())
        counted.append((tuple(classes), len(answers) - sum(votes.values())))
    return counted


def vote(ballots_P: Sequence[Ballot], k: int) -> Floats:
    """(P,) maj@k from ballots."""
    return np.array([_vote(classes, abstaining, k) for classes, abstaining in ballots_P])


@lru_cache(maxsize=65536)
def _vote(classes: tuple[tuple[int, float], ...], abstaining: int, k: int) -> float:
    """Mean score over all k-subsets. classes: (votes, score) of each distinct answer.

    For every winning count t: ways[q, s] counts the choices of s draws in which q answers have exactly t votes and none
    has more; worth[q, s] is the sum of the scores of those q answers over the same choices. All terms are positive, so
    float64 does not lose precision to cancellation.
    """
    score = 0.0
    for t in range(1, k + 1):
        free = abstaining + sum(count for count, _ in classes if count < t)  # of answers that cannot reach t votes
        ways, worth = np.zeros((k // t + 1, k + 1)), np.zeros((k // t + 1, k + 1))
        ways[0] = [comb(free, s) for s in range(k + 1)]
        for count, value in classes:
            if count < t:
                continue
            next_ways, next_worth = np.zeros_like(ways), np.zeros_like(worth)
            for a in range(t):
                next_ways[:, a:] += comb(count, a) * ways[:, : k + 1 - a]
                next_worth[:, a:] += comb(count, a) * worth[:, : k + 1 - a]
            tied = comb(count, t)
            next_ways[1:, t:] += tied * ways[:-1, : k + 1 - t]
            next_worth[1:, t:] += tied * (worth[:-1, : k + 1 - t] + value * ways[:-1, : k + 1 - t])
            ways, worth = next_ways, next_worth
        score += sum(worth[q, k] / q for q in range(1, k // t + 1))
    return score / comb(abstaining + sum(count for count, _ in classes), k)


def best_of_values(scores_PN: ArrayLike, correct_PN: ArrayLike, n: int) -> Floats:
    """(P,) chance that the best-scored of n of the N draws is correct, over all subsets.

    The draw of rank r (1: best) is the best of C(N-r, n-1) of the C(N, n) subsets. Draws with equal scores share their
    ranks, which is the expectation of a random tie-break; so a constant score gives the share correct. A draw with
    score -inf is chosen only if there is no other. Raises ValueError for nan, and unless 1 <= n <= N.
    """
    scores, correct = np.asarray(scores_PN, dtype=float), np.asarray(correct_PN, dtype=float)
    if scores.shape != correct.shape or scores.ndim != 2 or not 1 <= n <= scores.shape[1]:
        raise ValueError(f"n = {n} needs two (problems, draws) arrays with at least n draws, not shape {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError("a draw has no score")
    P, N = scores.shape
    order_PN = np.argsort(-scores, axis=1, kind="stable")
    ranked_PN = np.take_along_axis(scores, order_PN, axis=1)
    starts_PN = np.ones((P, N), dtype=bool)  # where a group of equal scores begins
    starts_PN[:, 1:] = ranked_PN[:, 1:] != ranked_PN[:, :-1]
    group_PN = np.cumsum(starts_PN).reshape(P, N) - 1
    weights_N = np.array([comb(N - rank, n - 1) / comb(N, n) for rank in range(1, N + 1)])
    groups = group_PN.ravel()
    shared = np.bincount(groups, np.broadcast_to(weights_N, (P, N)).ravel()) / np.bincount(groups)
    return (shared[group_PN] * np.take_along_axis(correct, order_PN, axis=1)).sum(axis=1)


def auc_weights(budgets: Sequence[int]) -> Floats:
    """Weights over budgets whose dot product with the accuracies is the area under accuracy over log2(budget).

    Trapezoidal rule, divided by the range, so the area is a mean accuracy. Budget 0 has no logarithm and gets weight 0,
    and so does OFF. With one positive budget the area is the accuracy there; with none, the accuracy at the last
    budget, 0 or OFF.
    """
    weights = np.zeros(len(budgets))
    positive = [i for i, budget in enumerate(budgets) if budget > 0] or [len(budgets) - 1]
    if len(positive) == 1:
        weights[positive] = 1.0
        return weights
    steps = np.diff(np.log2([budgets[i] for i in positive]))
    weights[positive[:-1]] += steps / 2
    weights[positive[1:]] += steps / 2
    return weights / steps.sum()


def slope_weights(budgets: Sequence[int]) -> Floats:
    """Weights whose dot product with the accuracies is their least-squares slope on log2(budget), a gain per doubling.

    Budgets 0 and OFF get weight 0. All nan with fewer than two positive budgets.
    """
    weights = np.zeros(len(budgets))
    positive = [i for i, budget in enumerate(budgets) if budget > 0]
    if len(positive) < 2:
        return np.full(len(budgets), nan)
    logs = np.log2([budgets[i] for i in positive])
    centred = logs - logs.mean()
    weights[positive] = centred / (centred**2).sum()
    return weights


def gain_weights(budgets: Sequence[int]) -> Floats:
    """Weights whose dot product with the accuracies is the gain from the smallest budget (also 0) to the largest."""
    weights = np.zeros(len(budgets))
    weights[int(np.argmax(budgets))] += 1
    weights[int(np.argmin(budgets))] -= 1
    return weights


def tokens(counts: ArrayLike) -> Tokens:
    """Mean and 95th percentile of token counts, one per draw."""
    counts = np.asarray(counts, dtype=float)
    return Tokens(mean=float(counts.mean()), p95=float(np.percentile(counts, 95)))


def tokens_per_correct(total_tokens: ArrayLike, correct: ArrayLike) -> float:
    """Sum of thinking and answer tokens divided by the number of correct draws; inf where none is."""
    right = int(np.sum(correct))
    return float(np.sum(total_tokens)) / right if right else inf


def share(flags: ArrayLike) -> float:
    """Share of draws for which the flag is set."""
    return float(np.mean(np.asarray(flags, dtype=float)))


def adherence(thinking_tokens: ArrayLike, budget: int) -> Adherence | None:
    """How closely the thinking tokens of draws kept to a budget; None for 0, OFF and AS_RUN."""
    if budget <= 0:
        return None
    counts = np.asarray(thinking_tokens, dtype=float)
    return Adherence(used=float(np.median(counts) / budget), over=share(counts > budget))


def answer_allowance(budget: ArrayLike) -> NDArray[Any]:
    """Answer tokens beyond which an answer counts as leaked: the budget then no longer bounds the reasoning."""
    return np.maximum(512, np.asarray(budget) / 2)


def leaked(answer_tokens: ArrayLike, budget: ArrayLike) -> NDArray[Any]:
    """Whether each answer is longer than `answer_allowance`; at OFF and AS_RUN, where no thinking is cut, none is."""
    return (np.asarray(answer_tokens) > answer_allowance(budget)) & ~np.isin(np.asarray(budget), NAMED)


def _matrix(correct_PN: ArrayLike, k: int) -> NDArray[Any]:
    correct = np.asarray(correct_PN, dtype=bool)
    if correct.ndim != 2 or not 1 <= k <= correct.shape[1]:
        raise ValueError(f"k = {k} needs a (problems, draws) array with at least k draws, not shape {correct.shape}")
    return correct


# Metrics of how one run's accuracy scales with thinking, from accuracies and mean tokens. B: budgets, P: problems.
# Control (a `share`), Scaling and Performance are those of s1 (Muennighoff et al., arXiv:2501.19393, section 3).
# Functions of (..., B) arrays work along the last axis, so that the jackknife takes all its replicates at once.


def scaling(accuracy: Floats, tokens: Floats) -> Floats:
    """(...,) mean slope over all pairs of budgets: accuracy gained per 1000 thinking tokens used.

    Pairs less than one token apart are left out; nan if none is left. Short steps have the same weight as long ones, so
    it is noisier than the slope per doubling; it is reported for comparison with s1.
    """
    first, second = np.triu_indices(accuracy.shape[-1], 1)
    steps = tokens[..., second] - tokens[..., first]
    apart = np.abs(steps) >= 1
    slopes = np.where(apart, accuracy[..., second] - accuracy[..., first], 0) / np.where(apart, steps, 1)
    pairs = apart.sum(axis=-1)
    return np.where(pairs > 0, 1000 * slopes.sum(axis=-1) / np.maximum(pairs, 1), nan)


def token_area(accuracy: Floats, tokens: Floats) -> Floats:
    """(...,) area under accuracy over mean tokens used (trapezoid), divided by their range: a mean accuracy.

    The axis is not logarithmic, so every token has the same weight and budget 0 is included. If all budgets used the
    same number of tokens, it is the mean of their accuracies.
    """
    order = np.argsort(tokens, axis=-1, kind="stable")
    x, y = np.take_along_axis(tokens, order, axis=-1), np.take_along_axis(accuracy, order, axis=-1)
    span = x[..., -1] - x[..., 0]
    area = (np.diff(x, axis=-1) * (y[..., 1:] + y[..., :-1]) / 2).sum(axis=-1)
    return np.where(span > 0, area / np.where(span > 0, span, 1), y.mean(axis=-1))


def steps(shares_PB: Floats) -> tuple[int, int]:
    """(rises, falls): numbers of steps to the next budget at which accuracy rises, or falls by over 2 paired errors.

    Without such falls the curve is compatible with a monotone one.
    """
    differences = np.diff(shares_PB, axis=1)
    P = len(differences)
    mean = differences.mean(axis=0)
    error = differences.std(axis=0, ddof=1) / sqrt(P) if P > 1 else np.full(len(mean), np.inf)
    return int((mean > 1e-12).sum()), int((mean < -2 * error - 1e-12).sum())


def jackknife(values_PC: Floats, statistic: Callable[[Floats], Floats]) -> Value:
    """A statistic of means over problems, and its standard error from leaving out each problem in turn.

    statistic: (..., C) means -> (...,). Exact for means, a good approximation for smooth functions of them; nan for one
    problem.
    """
    P, mean = len(values_PC), values_PC.mean(axis=0)
    value = statistic(mean)
    if P < 2:
        return Value(value=float(value), se=nan)
    without_P = statistic((P * mean - values_PC) / (P - 1))
    pseudo_P = value + (P - 1) * (without_P.mean() - without_P)  # Tukey's pseudo-values, with the mean `value`
    return Value(value=float(value), se=float(pseudo_P.std(ddof=1)) / sqrt(P))


def max_t_quantile(centre_C: Floats, draws_RC: Floats) -> float:
    """The max-t quantile: the 95 % quantile, over bootstrap draws, of max over contrasts of |draw - centre| / se.

    Bands of this many standard errors on each side cover all contrasts simultaneously with probability 95 %. They
    are narrower than Bonferroni's if contrasts are correlated.
    """
    error_C = draws_RC.std(axis=0)
    deviations_RC = np.abs(draws_RC - centre_C) / np.where(error_C > 0, error_C, 1.0)
    return float(np.quantile(deviations_RC.max(axis=1), 0.95))


def simultaneous_bands(centre_C: Floats, draws_RC: Floats) -> tuple[Floats, Floats]:
    """(C,) low and (C,) high ends of bands that cover all contrasts simultaneously with probability 95 %."""
    reach_C = max_t_quantile(centre_C, draws_RC) * draws_RC.std(axis=0)
    return centre_C - reach_C, centre_C + reach_C


def accuracy_bands(shares_PB: Floats, draws: float) -> list[tuple[float, float]]:
    """(low, high) at each budget: the interval of `metrics.estimate`, widened to cover all budgets simultaneously."""
    centre_B, draws_RB = shares_PB.mean(axis=0), bootstrap([shares_PB], EXPLORING_RESAMPLES)
    wider = max(NORMAL, max_t_quantile(centre_B, draws_RB)) / NORMAL
    singles = [estimate(shares_P, draws) for shares_P in shares_PB.T]
    return [
        (
            max(0.0, interval.value - wider * (interval.value - interval.low)),
            min(1.0, interval.value + wider * (interval.high - interval.value)),
        )
        for interval in singles
    ]
