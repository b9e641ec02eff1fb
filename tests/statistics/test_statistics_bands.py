"""Simultaneous bands cover whole curves."""

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from prunus.statistics import metrics, paired

BUDGETS = 6


def curves(rng, problems, draws, benchmarks, loss):
    """(benchmarks, P, B) differences of shares correct; one chain is cut at every budget, so budgets go together."""
    needs = np.exp(rng.normal(2.2, 1.0, (benchmarks, problems, 1, 1)))
    budgets = 2.0 ** np.arange(1, BUDGETS + 1)

    def shares(factor):
        lengths = needs * factor * np.exp(rng.normal(0, 0.5, (benchmarks, problems, draws, 1)))
        return (lengths <= budgets).mean(axis=2)

    return shares(1 + loss) - shares(1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "draws", "loss"), [(40, 1, 0.0), (40, 4, 0.3), (100, 4, 0.3)])
def test_bands_cover_all_budgets_at_once_in_95_percent(problems, draws, loss):
    benchmarks = 700
    rng = np.random.default_rng(problems + draws)
    truth = curves(rng, 40_000, 1, 5, loss).mean(axis=(0, 1))
    all_inside, each_inside = [], []
    for differences in curves(rng, problems, draws, benchmarks, loss):
        extended = paired.with_pseudo_problems([differences])
        resampled = paired.bootstrap(extended, 1000)
        low, high = metrics.simultaneous_bands(paired.estimate(extended), resampled)
        all_inside.append(((low <= truth) & (truth <= high)).all())
        own_low, own_high = np.quantile(resampled, (0.025, 0.975), axis=0)
        each_inside.append(((own_low <= truth) & (truth <= own_high)).all())
    margin = 4 * sqrt(0.05 * 0.95 / benchmarks)
    assert 0.95 - margin - 0.01 <= np.mean(all_inside) <= 0.95 + margin + 0.015
    assert np.mean(each_inside) < np.mean(all_inside) - 0.05  # what bands are for


def test_budgets_that_go_together_cost_nothing_and_independent_ones_sidaks_price():
    rng = np.random.default_rng(4)
    independent = rng.normal(0, 1, (100_000, BUDGETS))
    for draws, quantile in (
        (independent[:, :1] * np.arange(1, 7), 1.96),
        (independent, stats.norm.ppf((1 + 0.95 ** (1 / 6)) / 2)),
    ):
        low, high = metrics.simultaneous_bands(np.zeros(BUDGETS), draws)
        assert high / draws.std(axis=0) == pytest.approx(quantile, rel=0.01)
        assert low == pytest.approx(-high)


def test_one_contrast_has_its_usual_interval_and_none_is_a_point():
    differences = np.random.default_rng(0).normal(0.1, 1, (60, 1))
    draws = paired.bootstrap([differences], 20_000)
    low, high = metrics.simultaneous_bands(differences.mean(axis=0), draws)
    reach = 1.96 * differences.std() / sqrt(60)
    assert (low[0], high[0]) == pytest.approx(
        (differences.mean() - reach, differences.mean() + reach), abs=0.02 * reach
    )
    low, high = metrics.simultaneous_bands(np.zeros(2), np.zeros((100, 2)))
    assert (low == 0).all() and (high == 0).all()
