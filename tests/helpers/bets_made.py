"""Differences on which bets are placed."""

import numpy as np


def column(values) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def made(n: int) -> np.ndarray:
    return column(((np.arange(n) * 7) % 11 - 4) / 16)
