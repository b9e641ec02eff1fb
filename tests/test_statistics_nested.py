"""Draws nested in problems: resampling enumerated, errors by loops, and coverage of intervals."""

from collections import Counter, defaultdict
from itertools import product
from math import isnan, sqrt

import numpy as np
import pytest

from prunus.results import metrics, nested, paired


def test_clustered_error_by_hand_and_with_equal_clusters():
    values, clusters = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "c", "c", "c"]
    mean = 0.5
    sums = [(1 - mean) + (0 - mean), 1 - mean, (1 - mean) - 2 * mean]
    assert nested.clustered_error(values, clusters) == pytest.approx(sqrt(3 / 2 * sum(s**2 for s in sums)) / 6)
    draws = np.random.default_rng(0).random((12, 5))
    labels = np.repeat(np.arange(12), 5).tolist()
    assert nested.clustered_error(draws.ravel(), labels) == pytest.approx(metrics.estimate(draws.mean(axis=1)).se)
    assert isnan(nested.clustered_error([1.0, 0.0], ["a", "a"]))


def test_clustered_error_is_that_of_repeated_benchmarks_where_the_plain_one_is_too_small():
    rng = np.random.default_rng(1)
    means, errors, plain = [], [], []
    for _ in range(1500):
        labels = np.repeat(np.arange(40), rng.integers(1, 9, 40))
        draws = (rng.random(len(labels)) < rng.beta(0.5, 0.5, 40)[labels]).astype(float)
        means.append(draws.mean())
        errors.append(nested.clustered_error(draws, labels.tolist()))
        plain.append(draws.std(ddof=1) / sqrt(len(draws)))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.07)
    assert np.mean(plain) < 0.7 * np.std(means)


def test_two_levels_equal_full_enumeration():
    data = np.array([[1.0, 0.0], [-0.5, 0.25]])  # two problems, two draws
    exact: dict[float, float] = defaultdict(float)
    for problems in product(range(2), repeat=2):
        for draws in product(range(2), repeat=4):
            chosen = [data[problems[i], draws[2 * i + j]] for i in range(2) for j in range(2)]
            exact[round(sum(chosen) / 4, 6)] += 1 / 64
    R = 40_000
    got = nested.bootstrap([data[:, :, None]], R, seed=2)[:, 0]
    seen = Counter(np.round(got, 6).tolist())
    assert seen.keys() == exact.keys()
    for value, chance in exact.items():
        assert seen[value] / R == pytest.approx(chance, abs=4.5 * sqrt(chance * (1 - chance) / R))


def test_resamples_are_seeded_shared_by_contrasts_and_averaged_over_tasks(monkeypatch):
    values = np.random.default_rng(0).random((20, 3, 1))
    strata = [np.concatenate([values, 2 * values], axis=2)] * 2
    draws = nested.bootstrap(strata, 1500, seed=3)
    assert draws[:, 1] == pytest.approx(2 * draws[:, 0])
    assert (draws == nested.bootstrap(strata, 1500, seed=3)).all()
    assert draws[:, 0].std() == pytest.approx(nested.bootstrap(strata[:1], 1500)[:, 0].std() / sqrt(2), rel=0.1)
    monkeypatch.setattr(nested, "HELD", 600)  # ten resamples at a time
    assert nested.bootstrap(strata, 1500)[:, 0].mean() == pytest.approx(values.mean(), abs=0.01)


def differences(rng, problems, draws, benchmarks, loss):
    """(P, N, benchmarks) differences of single draws."""
    base = rng.beta(0.5, 0.5, (problems, 1, benchmarks))
    other = np.where(rng.random(base.shape) < loss / 0.5, 0.0, base)
    shape = (problems, draws, benchmarks)
    return (rng.random(shape) < other).astype(float) - (rng.random(shape) < base)


def test_one_level_has_the_right_spread_and_two_levels_count_the_draws_twice():
    rng = np.random.default_rng(4)
    d = differences(rng, 60, 3, 1000, 0.1)
    truth = d.mean(axis=(0, 1)).std()  # of the estimate over benchmarks
    one = paired.bootstrap([d.mean(axis=1)], 1000).std(axis=0)
    two = nested.bootstrap([d], 1000).std(axis=0)
    assert np.sqrt((one**2).mean()) == pytest.approx(truth, rel=0.06)
    twice = np.sqrt(truth**2 + nested.draw_variance(d).mean() * 2 / 3 / 3 / 60)
    assert np.sqrt((two**2).mean()) == pytest.approx(twice, rel=0.06)


@pytest.mark.parametrize(("problems", "draws"), [(40, 1), (40, 4)])
def test_bca_of_two_levels_covers_at_least_95_percent(problems, draws):
    benchmarks = 1000
    d = differences(np.random.default_rng(5 + draws), problems, draws, benchmarks, 0.1)
    low, high = paired.bca_interval([d.mean(axis=1)], nested.bootstrap([d], 1000))
    covered = np.mean((low <= -0.1) & (high >= -0.1))
    assert covered >= 0.95 - 4 * sqrt(0.05 * 0.95 / benchmarks) - 0.01
    if draws > 1:
        once_low, once_high = paired.bca_interval([d.mean(axis=1)], paired.bootstrap([d.mean(axis=1)], 1000))
        assert np.mean(high - low) > 1.1 * np.mean(once_high - once_low)


def test_fixed_error_is_that_of_repeated_draws_of_the_same_problems():
    rng = np.random.default_rng(6)
    base, other = rng.beta(0.5, 0.5, (2, 30, 1, 1))
    draws = (rng.random((30, 4, 4000)) < other).astype(float) - (rng.random((30, 4, 4000)) < base)
    spread = draws.mean(axis=(0, 1)).std()
    error = nested.fixed_error([draws])
    assert np.sqrt((error**2).mean()) == pytest.approx(spread, rel=0.05)
    two_tasks = nested.fixed_error([draws, draws])
    assert two_tasks == pytest.approx(error / sqrt(2))
    assert np.isnan(nested.fixed_error([draws[:, :1]])).all()
