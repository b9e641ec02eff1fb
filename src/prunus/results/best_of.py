"""Best-of-n: take the answer of the draw with the highest score among n. P: problems, N: draws of each.

The scores need neither the right answer nor a second model: the mean log-probability of the sampled tokens,
self-certainty, or shortness.
"""

from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


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
