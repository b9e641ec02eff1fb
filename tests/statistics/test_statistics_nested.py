"""Draws nested in problems: errors keep the two levels apart."""

from math import sqrt

import numpy as np
import pytest

from prunus.statistics import paired, power


def differences(rng, problems, draws, benchmarks, loss):
    """(P, N, benchmarks) differences of single draws."""
    base = rng.beta(0.5, 0.5, (problems, 1, benchmarks))
    other = np.where(rng.random(base.shape) < loss / 0.5, 0.0, base)
    shape = (problems, draws, benchmarks)
    return (rng.random(shape) < other).astype(float) - (rng.random(shape) < base)


def test_resampling_problems_alone_has_the_spread_of_repeated_benchmarks():
    d = differences(np.random.default_rng(4), 60, 3, 1000, 0.1)
    truth = d.mean(axis=(0, 1)).std()  # of the estimate over benchmarks
    errors = paired.bootstrap([d.mean(axis=1)], 1000).std(axis=0)
    assert np.sqrt((errors**2).mean()) == pytest.approx(truth, rel=0.06)
    # Its parts: the spread of true differences between problems, and the noise of three draws of each.
    between = np.maximum(d.mean(axis=1).var(axis=0, ddof=1) - power.draw_variance(d) / 3, 0).mean()
    assert sqrt((between + power.draw_variance(d).mean() / 3) / 60) == pytest.approx(truth, rel=0.06)
