"""Metrics of how one run's accuracy scales with thinking, from accuracies and mean tokens. B: budgets, P: problems.

Control, Scaling and Performance are those of s1 (Muennighoff et al., arXiv:2501.19393, section 3). Functions of
(..., B) arrays work along the last axis, so that the jackknife takes all its replicates at once.
"""

from collections.abc import Callable
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Value(NamedTuple):
    """A number and its standard error over problems."""

    value: float
    se: float


def control(tokens: ArrayLike, low: ArrayLike, high: ArrayLike) -> float:
    """Share of draws whose tokens lie in [low, high], which broadcast."""
    counts = np.asarray(tokens)
    return float(np.mean((counts >= np.asarray(low)) & (counts <= np.asarray(high))))


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
    P, value = len(values_PC), float(statistic(values_PC.mean(axis=0)))
    if P < 2:
        return Value(value, nan)
    return Value(value, float(per_problem(values_PC, statistic).std(ddof=1)) / sqrt(P))


def per_problem(values_PC: Floats, statistic: Callable[[Floats], Floats]) -> Floats:
    """(P,) Tukey's pseudo-values of a statistic of means over problems, shifted to have the statistic as their mean.

    Their standard error is that of the statistic to first order, so methods for means apply. Needs two problems.
    """
    P, mean = len(values_PC), values_PC.mean(axis=0)
    without_P = statistic((P * mean - values_PC) / (P - 1))
    return statistic(mean) + (P - 1) * (without_P.mean() - without_P)
