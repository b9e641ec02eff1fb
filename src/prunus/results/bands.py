"""Bands that cover a whole curve: simultaneous intervals over budgets.

P: problems, B: budgets, C: contrasts, R: bootstrap draws.
"""

import numpy as np
from numpy.typing import NDArray

from prunus.results.metrics import NORMAL, estimate
from prunus.results.paired import EXPLORING_RESAMPLES, bootstrap

Floats = NDArray[np.float64]


def max_t_quantile(centre_C: Floats, draws_RC: Floats, level: float = 0.95) -> float:
    """The max-t quantile: the `level` quantile, over bootstrap draws, of max over contrasts of |draw - centre| / se.

    Bands of this many standard errors on each side cover all contrasts simultaneously with probability `level`. They
    are narrower than Bonferroni's if contrasts are correlated.
    """
    error_C = draws_RC.std(axis=0)
    deviations_RC = np.abs(draws_RC - centre_C) / np.where(error_C > 0, error_C, 1.0)
    return float(np.quantile(deviations_RC.max(axis=1), level))


def simultaneous_bands(centre_C: Floats, draws_RC: Floats) -> tuple[Floats, Floats]:
    """(C,) low and (C,) high ends of bands that cover all contrasts simultaneously with probability 95 %."""
    reach_C = max_t_quantile(centre_C, draws_RC) * draws_RC.std(axis=0)
    return centre_C - reach_C, centre_C + reach_C


def accuracy_bands(shares_PB: Floats, draws: float, seed: int = 0) -> list[tuple[float, float]]:
    """(low, high) at each budget: the interval of `metrics.estimate`, widened to cover all budgets simultaneously."""
    centre_B, draws_RB = shares_PB.mean(axis=0), bootstrap([shares_PB], EXPLORING_RESAMPLES, seed)
    wider = max(NORMAL, max_t_quantile(centre_B, draws_RB)) / NORMAL
    singles = [estimate(shares_P, draws) for shares_P in shares_PB.T]
    return [
        (max(0.0, one.value - wider * (one.value - one.low)), min(1.0, one.value + wider * (one.high - one.value)))
        for one in singles
    ]
