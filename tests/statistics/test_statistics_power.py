"""What would settle a comparison: variances by simulation, a table of minimum detectable effects, and power itself."""

from math import inf, sqrt

import numpy as np
import pytest

from prunus.statistics import paired, power


def normal(rng, problems, draws, omega, v, effect=0.0, benchmarks=1):
    """(P, N, benchmarks) differences of single draws."""
    true = effect + omega * rng.normal(size=(problems, 1, benchmarks))
    return true + sqrt(v) * rng.normal(size=(problems, draws, benchmarks))


def test_spread_finds_the_two_variances():
    d = normal(np.random.default_rng(0), 300, 4, 0.3, 0.5, benchmarks=400)
    ((omega2, v),) = power.variance_components([d])
    assert omega2.mean() == pytest.approx(0.09, rel=0.03)
    assert v.mean() == pytest.approx(0.5, rel=0.01)
    ((none, _),) = power.variance_components([normal(np.random.default_rng(1), 50, 4, 0.0, 0.5, benchmarks=200)])
    assert (none >= 0).all() and none.mean() < 0.02


def test_they_add_up_to_the_standard_error():
    d = normal(np.random.default_rng(2), 80, 5, 0.3, 0.5)
    ((omega2, v),) = power.variance_components([d])
    error = paired.standard_error(paired.with_pseudo_problems([d.mean(axis=1)]))
    assert np.sqrt((omega2 + v / 5) / 80) == pytest.approx(error)


# (problems, v of one model, omega): minimum detectable effect in points at each number of draws.
TABLE = {
    (30, 0.11, 0.12): (24.8, 15.2, 10.5, 8.6, 7.5, 6.8),
    (40, 0.08, 0.10): (18.3, 11.1, 7.7, 6.3, 5.4, 5.0),
    (198, 0.13, 0.12): (10.4, 6.3, 4.3, 3.5, 3.0, 2.7),
    (500, 0.05, 0.06): (4.0, 2.4, 1.6, 1.2, 1.0, 0.9),
}
DRAWS = (1, 3, 8, 16, 32, 64)


@pytest.mark.parametrize("case", TABLE)
def test_draws_needed_turn_the_published_table_round(case):
    problems, v, omega = case
    for draws, points in zip(DRAWS, TABLE[case], strict=True):
        more, fewer = (power.draws_for(omega**2, 2 * v, problems, (points + off) / 100) for off in (-0.1, 0.1))
        assert fewer <= draws <= more
    assert power.draws_for(omega**2, 2 * v, problems, 2.79 * omega / sqrt(problems)) == inf


def test_power_with_the_draws_and_with_the_problems_it_asks_for_is_80_percent():
    rng = np.random.default_rng(3)
    omega, v, problems, effect = 0.2, 0.3, 100, 0.08
    pilot = normal(rng, problems, 4, omega, v, benchmarks=300)
    wanted = np.full(300, effect)
    draws, more = (
        int(np.median(power.draws_needed([pilot], wanted))),
        int(np.median(power.problems_needed([pilot], wanted))),
    )
    assert 6 <= draws <= 8 and 135 <= more <= 150
    for n, N in ((problems, draws), (more, 4)):
        found = paired.sign_flip_p([normal(rng, n, N, omega, v, effect, 1500).mean(axis=1)], flips=1000) <= 0.05
        assert np.mean(found) == pytest.approx(0.8, abs=0.05)
    few = (
        paired.sign_flip_p([normal(rng, problems, draws // 2, omega, v, effect, 1500).mean(axis=1)], flips=1000) <= 0.05
    )
    assert np.mean(few) < 0.7


def test_more_draws_cannot_help_where_problems_differ_too_much():
    d = normal(np.random.default_rng(4), 40, 8, 0.5, 0.1)
    assert power.draws_needed([d], np.array([0.05])) == [inf]
    assert 700 < power.problems_needed([d], np.array([0.05]))[0] < 1100
    assert power.problems_needed([d], np.array([0.0])) == power.draws_needed([d], np.array([0.0])) == [inf]
    assert np.isnan(power.draws_needed([d[:, :1]], np.array([0.05])))


def test_several_tasks_ask_for_what_their_mean_needs():
    rng = np.random.default_rng(5)
    tasks = [normal(rng, 30, 4, 0.1, 0.5), normal(rng, 200, 4, 0.1, 0.2)]
    error = paired.standard_error(paired.with_pseudo_problems([d.mean(axis=1) for d in tasks]))
    effect = power.detectable(1, 228) * error + power.one_draw(tasks) / 4
    # What can be detected now needs what there is now.
    assert power.draws_needed(tasks, effect) == [4]
    assert power.problems_needed(tasks, effect) == [230]
    assert power.problems_needed(tasks, effect / 2) == pytest.approx([900], abs=20)  # four times, less for the draw
    same = normal(rng, 50, 4, 0.1, 0.5)
    one, two = (power.draws_needed([same] * k, np.array([0.4]) / sqrt(k)) for k in (1, 2))
    assert one == two
