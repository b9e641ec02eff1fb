"""The weight of matched draws: plain loops, means that no weight changes, power and error by simulation."""

from math import sqrt

import numpy as np
import pytest
from simulations.differences import sharing
from simulations.one_comparison import by_weights

from prunus.statistics import anytime, betting, coupling


def test_weights_are_those_of_plain_loops_from_problems_before():
    rng = np.random.default_rng(0)
    every, matched = rng.uniform(-1, 1, (2, 30, 3))
    found = coupling.mixed(every, matched)
    for c in range(3):
        products = squares = 0.0
        for t in range(30):
            x = every[t, c] - matched[t, c]
            weight = min(1.0, max(0.0, products / (squares + 1)))
            assert found[t, c] == pytest.approx((1 - weight) * every[t, c] + weight * matched[t, c])
            products, squares = products + every[t, c] * x, squares + x * x
    assert (coupling.weights(every, matched)[0] == 0).all() and np.abs(found).max() <= 1
    assert coupling.mixed(every[:0], matched[:0]).shape == (0, 3)


def test_bets_take_the_weights_in_their_own_order():
    rng = np.random.default_rng(1)
    every, matched = rng.choice((-0.5, 0.0, 0.25, 0.5), (2, 40, 4))
    mixed = coupling.mixed(every, matched)
    for function in (betting.p_value, betting.lower_bound):
        found = function([every], 0.05, matched=[matched])
        assert (found == function([mixed], 0.05)).all()
        assert (found == function([every], 0.05, matched=[every])).sum() < 4, "other weights, other numbers"
    both = betting.direction_p([every], 4, matched=[matched])
    assert both["p_worse"] == pytest.approx(betting.p_value([-mixed]))


@pytest.mark.slow
def test_matched_draws_find_more_where_noise_is_shared_and_cost_nothing_where_it_is_not():
    """500 problems, 3 draws, 16 of the base, margin 2: equal models called non-inferior."""
    for share, least in ((0.0, 0.6), (0.7, 0.84)):
        alike, weighted, _ = by_weights(500, 3, 16, [share], 600, 0.02)
        assert weighted > least - 3 * sqrt(least * (1 - least) / 600), share
        assert weighted > alike + 0.1 if share else abs(weighted - alike) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shares", "chances", "breaking"),
    [([0.93, -0.93], (), None), ([0.0, 0.93], (), None), ([0.7], (0.02, 0.97), None), ([0.7], (0.9,), 0.1)],
)
def test_a_loss_of_the_margin_is_ruled_out_in_5_percent_at_most(shares, chances, breaking):
    runs = 1200
    for share in by_weights(200, 2, 8, shares, runs, 0.05, 0.05, chances, breaking):
        assert 0.002 < share < 0.05 + 3.5 * sqrt(0.05 * 0.95 / runs)


def test_where_few_break_the_rest_gains_what_the_loss_leaves():
    every, matched = sharing(np.random.default_rng(1), 500, 3, 16, [0.7], 300, 0.02, (0.9,), 0.07)
    assert every.mean() == pytest.approx(-0.02, abs=0.002) and matched.mean() == pytest.approx(-0.02, abs=0.002)
    assert (every < -0.5).mean() == pytest.approx(0.07, abs=0.01) and np.median(every) > 0


def test_the_share_of_noise_in_common_is_the_share_that_is_made():
    rng = np.random.default_rng(2)
    base = rng.choice((-0.5, 0.5), (2000, 3))
    same = rng.random(base.shape) < 0.7
    other = np.where(same, base, rng.choice((-0.5, 0.5), base.shape))
    assert coupling.noise_in_common([base], [other]) == pytest.approx(0.7, abs=0.04)
    assert coupling.noise_in_common([base[:9], base], [-base[:9], -base]) == pytest.approx(-1)
    assert coupling.noise_in_common([np.zeros((4, 2))], [np.ones((4, 2))]) is None


def test_searches_bet_on_the_weighted_differences():
    """The largest wealth so far never follows from problems that come later."""
    rng = np.random.default_rng(3)
    every, matched = rng.choice((-0.5, 0.0, 0.5), (2, 60))
    whole = anytime.log_e_values(coupling.mixed(every, matched), 0.1)[0]
    part = anytime.log_e_values(coupling.mixed(every[:25], matched[:25]), 0.1)[0]
    assert (whole[:25] == part).all()
