"""Bands around one run's accuracies that hold for all its budgets at once. P: problems, B: budgets."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.results import paired
from prunus.results.metrics import estimate
from prunus.results.store import Store
from prunus.results.table import tables

RESAMPLES = 4000
NORMAL = 1.959963984540054

Floats = NDArray[np.float64]


def reach(shares_PB: Floats, seed: int = 0) -> float:
    """How many errors wide bands must be that cover all budgets at once in 95 % of the cases; at least 1.96.

    The quantile of the largest deviation of a resample of the problems, over budgets, each in units of its own error.
    """
    draws_RB = paired.bootstrap([shares_PB], RESAMPLES, seed)
    error_B = draws_RB.std(axis=0)
    moving = error_B > 0
    if not moving.any():
        return NORMAL
    deviations = np.abs(draws_RB[:, moving] - shares_PB.mean(axis=0)[moving]) / error_B[moving]
    return max(NORMAL, float(np.quantile(deviations.max(axis=1), 0.95)))


def accuracy_bands(shares_PB: Floats, draws: int) -> list[tuple[float, float]]:
    """(low, high) at each budget: the interval of `metrics.estimate`, made so much wider that all hold at once."""
    wider = reach(shares_PB) / NORMAL
    singles = [estimate(shares_P, draws) for shares_P in shares_PB.T]
    return [
        (max(0.0, one.value - wider * (one.value - one.low)), min(1.0, one.value + wider * (one.high - one.value)))
        for one in singles
    ]


def add_bands(store: Store, summary: Mapping[str, Any]) -> None:
    """Give cells of a run's summary band_low and band_high, where their problems are those of all budgets."""
    for task, table in tables(store.samples(summary["run"])).items():
        whole = table.select(table.complete(), table.budgets, table.draws)
        if not whole.problems:
            continue
        bands = accuracy_bands(whole.values("correct").mean(axis=2), len(whole.draws))
        for budget, (low, high) in zip(whole.budgets, bands, strict=True):
            cell = summary["tasks"][task]["budgets"].get(budget)
            if cell and cell["n"] == len(whole.problems):
                cell |= {"band_low": low, "band_high": high}
