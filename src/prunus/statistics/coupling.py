"""Differences that give matched draws a weight of their own, as far as the problems before show that this helps.

Draws of two runs with the same number come from the same random numbers, so that part of their noise may be the same.
Where one side has more draws than the other, the mean over all draws loses what the matched draws have in common, and
the mean over matched draws the other draws. For problem t, with x = all - matched, the difference is

    d = all - w x,    w = clip(sum of all x / (sum of x^2 + PRIOR), 0, 1) over the problems before t,

w being the weight of the matched draws, from 0 on. Both means have the same expectation, d lies between them, and w
is fixed before problem t, so bets on d are as valid as on either. Which draws are matched follows from their numbers,
never from outcomes. The weight of least variance is the share of the base's noise that the other run has in common.

T: problems in the order of the bets; C: contrasts, which have weights of their own, and so does each task.
"""

from collections.abc import Sequence

import numpy as np

from prunus.statistics.paired import Floats

PRIOR = 1.0  # added to the sum of squares, so that matched draws weigh little after few problems


def mixed(all_TC: Floats, matched_TC: Floats) -> Floats:
    """(T, C) differences for bets in this order, from those over all draws and those over matched draws alone."""
    return all_TC - weights(all_TC, matched_TC) * (all_TC - matched_TC)


def weights(all_TC: Floats, matched_TC: Floats) -> Floats:
    """(T, C) weight of the matched draws in each problem, which follows from the problems before it."""
    x_TC = all_TC - matched_TC
    products, squares = (np.cumsum(values, axis=0)[:-1] for values in (all_TC * x_TC, x_TC**2))
    weight_TC = np.zeros_like(x_TC)
    weight_TC[1:] = np.clip(products / (squares + PRIOR), 0, 1)
    return weight_TC


def noise_in_common(base: Sequence[Floats], other: Sequence[Floats]) -> float | None:
    """Estimate of the share of the base's noise that the other side has in common; chance may move it beyond [0, 1].

    base, other: (G, N) values of the N matched draws of each task, minus their expectation. None without noise.
    """
    square = sum(float((base_GN**2).sum()) for base_GN in base)
    together = sum(float((base_GN * other_GN).sum()) for base_GN, other_GN in zip(base, other, strict=True))
    return together / square if square > 1e-9 else None
