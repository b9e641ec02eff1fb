"""s1's three numbers, area over tokens and monotonicity against plain loops; the jackknife against simulation."""

from itertools import combinations
from math import isnan

import numpy as np
import pytest
from scipy import integrate

from prunus.statistics import metrics


def test_scaling_is_the_mean_slope_of_all_pairs():
    rng = np.random.default_rng(0)
    accuracy, tokens = rng.random((7, 5)), np.sort(rng.random((7, 5)) * 5000, axis=1)
    for f, x, got in zip(accuracy, tokens, metrics.scaling(accuracy, tokens), strict=True):
        slopes = [(f[j] - f[i]) / (x[j] - x[i]) for i, j in combinations(range(5), 2)]
        assert got == pytest.approx(1000 * np.mean(slopes))
    line = np.array([100.0, 600.0, 2100.0])
    assert metrics.scaling(0.1 + line * 2e-4, line) == pytest.approx(0.2)
    # Two budgets that used the same tokens have no slope between them; alone they have none at all.
    assert metrics.scaling(np.array([0.1, 0.5, 0.6]), np.array([0.0, 1000.0, 1000.4])) == pytest.approx(
        (0.4 + 0.5 / 1.0004) / 2
    )
    assert isnan(metrics.scaling(np.array([0.5, 0.6]), np.array([1000.0, 1000.4])))
    assert isnan(metrics.scaling(np.array([0.5]), np.array([1000.0])))


def test_area_over_tokens_is_the_trapezoid_in_order_of_tokens():
    rng = np.random.default_rng(1)
    accuracy, tokens = rng.random((6, 5)), rng.random((6, 5)) * 900
    for f, x, got in zip(accuracy, tokens, metrics.token_area(accuracy, tokens), strict=True):
        order = np.argsort(x)
        assert got == pytest.approx(integrate.trapezoid(f[order], x[order]) / (x.max() - x.min()))
    assert metrics.token_area(np.array([0.2, 0.6]), np.array([50.0, 50.0])) == pytest.approx(0.4)
    assert metrics.token_area(np.array([0.3]), np.array([50.0])) == pytest.approx(0.3)


def test_steps_counts_rises_and_falls_beyond_two_paired_errors():
    rng = np.random.default_rng(2)
    base = (rng.random(200) < 0.5).astype(float)
    small, large = base.copy(), base.copy()
    small[np.flatnonzero(base)[:1]] = 0  # one problem lost: a fall of one error
    large[np.flatnonzero(base)[:10]] = 0  # ten lost: beyond two
    assert metrics.steps(np.column_stack([base, small])) == (0, 0)
    assert metrics.steps(np.column_stack([base, large])) == (0, 1)
    assert metrics.steps(np.column_stack([large, base, small, base])) == (2, 0)
    assert metrics.steps(np.column_stack([np.ones(5), np.zeros(5)])) == (0, 1)
    assert metrics.steps(np.array([[1.0, 0.0]])) == (0, 0)  # one problem shows nothing
    assert metrics.steps(base[:, None]) == (0, 0)


def test_flat_curves_seldom_fall():
    rng = np.random.default_rng(3)
    falls = [metrics.steps((rng.random((150, 6)) < 0.5).astype(float))[1] for _ in range(800)]
    assert np.mean(falls) / 5 == pytest.approx(0.023, abs=4 * np.sqrt(0.023 / 4000))


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(4).random((25, 2))
    found = metrics.jackknife(values, lambda means: means[..., 0] - 2 * means[..., 1])
    differences = values[:, 0] - 2 * values[:, 1]
    assert (found.value, found.se) == pytest.approx((differences.mean(), differences.std(ddof=1) / 5))
    alone = metrics.jackknife(values[:1], lambda means: means[..., 0])
    assert (alone.value, alone.se) == (values[0, 0], None)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", [metrics.scaling, metrics.token_area])
def test_jackknife_errors_of_curves_over_tokens_are_those_of_repeated_benchmarks(statistic):
    rng = np.random.default_rng(5)
    budgets = np.array([64.0, 128.0, 256.0, 512.0])
    found = []
    for _ in range(1000):
        length = np.exp(rng.normal(5, 1.2, (80, 1)))
        tokens = np.minimum(length, budgets)
        both = np.hstack([(length <= budgets).astype(float), tokens])
        one = metrics.jackknife(both, lambda means: statistic(means[..., :4], means[..., 4:]))
        found.append((one.value, one.se))
    values, errors = np.array(found).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.1)
