"""Is there a difference, and in which direction? p-values that hold however differences are distributed.

"Better" rejects that the mean difference is 0 or less, "worse" that it is 0 or more, each by bets in its direction
(`betting`). Sign flips would not do: they are exact only if differences are symmetric under the null, and where a few
problems break and the others gain a little they call equal models better in up to 45 % of the cases
(docs/verdicts.md). With one draw per problem, differences are -1, 0 and 1 and McNemar's exact test serves.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunus.results import betting, paired

Floats = NDArray[np.float64]


def direction_p(
    strata: Sequence[Floats], seed: int = 0, draws: int = 1, mcnemar_C: NDArray[np.bool_] | None = None
) -> dict[str, Floats]:
    """p_better and p_worse (one-sided) and p (two-sided, twice the smaller one) of every contrast, (C,) each.

    strata: (P, C) differences in [-1, 1] of each task. mcnemar_C: contrasts that compare one draw of each problem,
    which McNemar's test may judge; only with one task.
    """
    better = betting.p_value(strata, seed=seed, draws=draws)
    worse = betting.p_value([-differences for differences in strata], seed=seed, draws=draws)
    if mcnemar_C is not None and mcnemar_C.any():
        won, lost = ((sign * strata[0] > 0).sum(axis=0) for sign in (1, -1))
        better = np.where(mcnemar_C, paired.mcnemar_p(lost, won), better)
        worse = np.where(mcnemar_C, paired.mcnemar_p(won, lost), worse)
    return {"p_better": better, "p_worse": worse, "p": two_sided(better, worse)}


def two_sided(better: Floats, worse: Floats) -> Floats:
    """Twice the smaller one of two one-sided p-values, at most 1."""
    return np.minimum(1.0, 2 * np.minimum(better, worse))
