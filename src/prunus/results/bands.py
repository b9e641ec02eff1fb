"""Many budgets looked at together: bands that hold for the whole curve, and p of the largest difference in it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunus.results.paired import RESAMPLES, flipped_sums

Floats = NDArray[np.float64]


def simultaneous_bands(centre_C: Floats, draws_RC: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """(C,) low and high that cover all contrasts at once in `level` of the cases: centre -+ q standard errors.

    q is the quantile of max over contrasts of |draw - centre| / error in bootstrap draws, so budgets that go together
    cost less than Bonferroni would ask.
    """
    error_C = draws_RC.std(axis=0)
    deviations = np.abs(draws_RC - centre_C) / np.where(error_C > 0, error_C, 1.0)
    reach = np.quantile(deviations.max(axis=1), level) * error_C
    return centre_C - reach, centre_C + reach


def largest_p(tasks: Sequence[Floats], flips: int = RESAMPLES, seed: int = 0) -> list[Floats]:
    """(C,) p of each contrast of each task among all of them: how often the largest of all is as large by chance.

    tasks: (P, C) per-problem differences each. Signs are flipped problem by problem (the two models swapped), all
    contrasts of a problem together; each contrast is divided by the root of its sum of squares, which no flip changes.
    So "up to x points better, in this cell" has the p of having looked for it (Westfall and Young 1993, single step).
    """
    scaled = []
    for differences in tasks:
        size = np.sqrt((differences**2).sum(axis=0))
        scaled.append(differences / np.where(size > 0, size, 1.0))
    observed = [np.abs(values.sum(axis=0)) - 1e-12 for values in scaled]  # sums differ in the last bits
    hits = [np.zeros(values.shape[1]) for values in scaled]
    for sums in flipped_sums(scaled, flips, seed):
        largest = np.max([np.abs(task_sums).max(axis=1) for task_sums in sums], axis=0)
        for count, values in zip(hits, observed, strict=True):
            count += (largest[:, None] >= values).sum(axis=0)
    return [(1 + count) / (1 + flips) for count in hits]
