"""Bands of one run's accuracies hold for all budgets at once, about as often as they say."""

import numpy as np
import pytest
from fake_store import make_store

from prunus.results.summary import describe
from prunus.statistics import paired
from prunus.statistics.metrics import accuracy_bands, estimate, max_t_quantile
from prunus.store.rows import tables
from prunus.store.store import Store

TRUTH = np.array([0.08, 0.2, 0.45, 0.7, 0.85, 0.9])


def scores(rng: np.random.Generator, problems: int, draws: int) -> np.ndarray:
    """(P, B) shares correct: a problem solved at a budget is solved at larger ones; budgets have accuracies TRUTH."""
    difficulty_P = rng.random(problems)
    if draws == 1:
        return (difficulty_P[:, None] < TRUTH).astype(float)
    chance_PB = 0.7 * (difficulty_P[:, None] < TRUTH) + 0.3 * TRUTH
    return rng.binomial(draws, chance_PB) / draws


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("draws", [1, 4])
def test_bands_cover_the_whole_curve_and_single_intervals_do_not(draws):
    rng = np.random.default_rng(1)
    bands, singles, trials = 0, 0, 400
    for _ in range(trials):
        shares_PB = scores(rng, 80, draws)
        bands += all(
            low <= true <= high for (low, high), true in zip(accuracy_bands(shares_PB, draws), TRUTH, strict=True)
        )
        each = [estimate(shares_P, draws) for shares_P in shares_PB.T]
        singles += all(one.low <= true <= one.high for one, true in zip(each, TRUTH, strict=True))
    assert 0.93 <= bands / trials <= 0.99
    assert singles / trials < 0.88


def test_budgets_that_go_together_cost_less_than_independent_ones():
    rng = np.random.default_rng(0)
    one = (rng.random((200, 1)) < 0.5).astype(float)
    apart_PB = (rng.random((200, 6)) < 0.5).astype(float)
    together, apart = (
        max_t_quantile(shares_PB.mean(axis=0), paired.bootstrap([shares_PB], 4000))
        for shares_PB in (np.repeat(one, 6, axis=1), apart_PB)
    )
    assert together == pytest.approx(1.96, abs=0.08) and apart == pytest.approx(2.63, abs=0.12)  # 6 independent: 2.631


def test_bands_hold_the_intervals_and_stay_inside():
    shares_PB = np.array([[0.0, 1.0, 0.5], [0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    for (low, high), shares_P in zip(accuracy_bands(shares_PB, 2), shares_PB.T, strict=True):
        single = estimate(shares_P, 2)
        assert 0 <= low <= single.low <= single.value <= single.high <= high <= 1
    alike = estimate(np.ones(4), 1)
    assert accuracy_bands(np.ones((4, 2)), 1) == [(alike.low, alike.high)] * 2


def test_cells_of_a_summary_get_them(tmp_path):
    path = make_store(tmp_path / "a.db", names=("tiny",), problems=20, budgets=(16, 64), draws=2)
    with Store(path) as store:
        (run,) = store.runs()
        summary = describe(run, tables(store.samples(run.run_id)), bands=True)
    for cell in summary.cells("tiny").values():
        assert cell.band_low is not None and cell.band_high is not None
        assert cell.band_low <= cell.low <= cell.high <= cell.band_high
