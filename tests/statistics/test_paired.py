"""Intervals and tests of paired differences: full enumeration, other software, textbook values, and simulation."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from prunus.statistics import paired


def interval(strata, resamples=2000, level=0.95):
    """The ends that a comparison shows: BCa with the pseudo-problems."""
    extended = paired.with_pseudo_problems(strata)
    return paired.bca_interval(extended, paired.bootstrap(extended, resamples), level)


def simulate(rng, problems, draws, benchmarks, loss=0.0, shape=(0.4, 0.4)):
    """(benchmarks, problems) differences of shares correct; the other model loses `loss` on average."""
    base = rng.beta(shape[0], shape[1], (benchmarks, problems))
    other = np.where(rng.random((benchmarks, problems)) < loss / base.mean(), 0.0, base)
    return (rng.binomial(draws, other) - rng.binomial(draws, base)) / draws


def columns(differences_SP):
    """Many benchmarks as contrasts of one stratum: they then share resamples and flips, which makes simulating fast."""
    return [np.ascontiguousarray(differences_SP.T)]


def test_p_of_random_flips_counts_the_data_as_one_of_them():
    """(1 + hits) / (1 + flips): never 0, however clear the difference; without it tests of few flips are too easy."""
    clear = np.ones((40, 1))
    assert paired.sign_flip_p([clear], flips=99)[0] == pytest.approx(1 / 100)
    assert paired.sign_flip_p([clear], flips=999)[0] == pytest.approx(1 / 1000)


def test_estimate_and_error_by_hand():
    strata = [np.array([[0.5], [-0.25], [0.0], [0.75]]), np.array([[1.0], [0.0]])]
    assert paired.estimate(strata) == pytest.approx([(0.25 + 0.5) / 2])
    errors = [d.std(ddof=1) / np.sqrt(len(d)) for d in strata]
    assert paired.standard_error(strata) == pytest.approx([np.hypot(*errors) / 2])


def flips_by_hand(tasks):
    observed = np.mean([np.mean(task) for task in tasks])
    flat = [value / len(task) / len(tasks) for task in tasks for value in task]
    sums = [sum(s * v for s, v in zip(signs, flat, strict=True)) for signs in product((1, -1), repeat=len(flat))]
    return np.mean([abs(total) >= abs(observed) - 1e-9 for total in sums])


@pytest.mark.parametrize(
    "tasks",
    [
        [[0.5, 0.25, -0.25, 1.0, 0.0, 0.75]],
        [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]],
        [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]],
        [[1 / 3, -1 / 3, 2 / 3, 1 / 3], [0.5, -1.0]],
    ],
)
def test_sign_flips_equal_full_enumeration_on_six_problems(tasks):
    strata = [np.array(task)[:, None] for task in tasks]
    assert paired.sign_flip_p(strata) == pytest.approx([flips_by_hand(tasks)])
    sampled = paired.sign_flip_p(strata, flips=63)  # fewer than the 64 swaps: random ones
    assert sampled == pytest.approx([flips_by_hand(tasks)], abs=0.2)


def test_sampled_flips_with_one_draw_are_mcnemars_test():
    for lost, won in ((20, 8), (15, 15), (40, 12)):
        differences = np.array([-1.0] * lost + [1.0] * won + [0.0] * 50)[:, None]
        exact = min(1.0, 2 * float(paired.mcnemar_p(won, lost)))
        assert paired.sign_flip_p([differences], flips=40_000) == pytest.approx([exact], abs=0.01)


def test_mcnemar_against_hand_values():
    """P(at least 8 of 10), at least 2 of 10, 0 of 0, 6 of 6 under equal chances."""
    assert paired.mcnemar_p([2, 8, 0, 0], [8, 2, 0, 6]) == pytest.approx([56 / 1024, 1013 / 1024, 1, 1 / 64])


def test_holm_on_textbook_values():
    p = [0.01, 0.04, 0.03, 0.005]
    assert paired.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # The fifteen p of Benjamini and Hochberg 1995, section 4: at .05 Bonferroni and Holm reject three.
    thrombolysis = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719,
                    0.6528, 0.7590, 1.0000]  # fmt: skip
    assert (paired.holm(thrombolysis) <= 0.05).sum() == 3
    assert paired.holm([]).size == 0 and paired.holm([0.2]).tolist() == [0.2]


def test_intervals_equal_scipys_bootstrap():
    differences = simulate(np.random.default_rng(1), 80, 4, 1, loss=0.15)[0]
    strata = [differences[:, None]]
    draws = paired.bootstrap(strata, 20_000)
    for method, (low, high) in {
        "percentile": np.quantile(draws, (0.025, 0.975), axis=0),
        "BCa": paired.bca_interval(strata, draws),
    }.items():
        theirs = stats.bootstrap((differences,), np.mean, n_resamples=20_000, method=method, rng=5).confidence_interval
        width = theirs.high - theirs.low
        assert (low[0], high[0]) == pytest.approx((theirs.low, theirs.high), abs=0.03 * width)


def test_bca_leans_towards_the_long_tail():
    skewed = np.concatenate([np.zeros(45), np.ones(5)])[:, None]
    draws = paired.bootstrap([skewed], 20_000)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    bca_low, bca_high = paired.bca_interval([skewed], draws)
    assert bca_low[0] > low[0] and bca_high[0] > high[0]
    point = paired.bca_interval([np.ones((4, 1))], paired.bootstrap([np.ones((4, 1))], 100))
    assert [float(end[0]) for end in point] == [1, 1]


def test_resamples_are_seeded_and_shared_by_contrasts_but_not_by_tasks():
    values = np.random.default_rng(0).random((20, 1))
    strata = [np.concatenate([values, 2 * values], axis=1), np.concatenate([values, 2 * values], axis=1)]
    draws = paired.bootstrap(strata, 1500, seed=3)
    assert draws[:, 1] == pytest.approx(2 * draws[:, 0])
    assert (draws == paired.bootstrap(strata, 1500, seed=3)).all()
    assert (draws != paired.bootstrap(strata, 1500, seed=4)).any()
    one = paired.bootstrap(strata[:1], 1500, seed=3)
    assert draws[:, 0].std() == pytest.approx(one[:, 0].std() / np.sqrt(2), rel=0.1)


def test_last_bits_of_resamples_do_not_depend_on_how_a_product_is_computed():
    """Columns alone take another way through BLAS than together, as do other numbers of threads."""
    d = np.random.default_rng(4).integers(-3, 4, (420, 9)) / 3 * np.linspace(0.1, 1, 9)
    together = paired.bootstrap([d], 200)
    assert all(np.array_equal(paired.bootstrap([d[:, c : c + 1]], 200), together[:, c : c + 1]) for c in range(9))


def test_no_difference_at_all_is_not_certainty():
    for problems in (30, 600):
        strata = [np.zeros((problems, 1))]
        low, high = interval(strata, 10_000)
        assert paired.sign_flip_p(strata) == [1]
        # The rule of three: a share of 3/n of problems that differ goes unseen once in twenty times.
        assert 2.5 / problems < high[0] < 4 / problems and low[0] == pytest.approx(-high[0], rel=0.01)


def test_pseudo_problems_are_bonett_and_prices_adjustment():
    lost, won, both = 12, 5, 183
    strata = [np.array([-1.0] * lost + [1.0] * won + [0.0] * both)[:, None]]
    n = lost + won + both
    p12, p21 = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    centre, half = p12 - p21, 1.96 * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    low, high = interval(strata, 10_000)
    assert (low[0], high[0]) == pytest.approx((centre - half, centre + half), abs=0.1 * half)


# --- simulation: benchmarks of Bernoulli draws, 4 binomial standard deviations of Monte Carlo error allowed

BENCHMARKS = 2000
ERROR = 4 * np.sqrt(0.05 * 0.95 / BENCHMARKS)


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "draws"), [(40, 1), (40, 4), (200, 1), (200, 4)])
def test_size_of_the_tests_is_nominal(problems, draws):
    null = columns(simulate(np.random.default_rng(problems + draws), problems, draws, BENCHMARKS))
    flips = np.mean(paired.sign_flip_p(null, flips=2000) <= 0.05)
    assert flips <= 0.05 + ERROR
    if draws > 1 or problems > 100:  # with few one-draw problems an exact test of so coarse a statistic stays below
        assert flips >= 0.05 - ERROR - 0.01
    low, high = interval(null)
    assert np.mean((low > 0) | (high < 0)) <= 0.05 + ERROR + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize(("problems", "draws"), [(40, 1), (40, 4), (100, 4), (200, 1)])
def test_intervals_cover_95_percent(problems, draws, loss):
    rng = np.random.default_rng(1000 + problems + draws)
    strata = columns(simulate(rng, problems, draws, BENCHMARKS, loss))
    truth = -loss
    low, high = interval(strata)
    assert 0.95 - ERROR - 0.015 <= np.mean((low <= truth) & (truth <= high)) <= 0.99
    bound, _ = interval(strata, level=0.9)
    assert 0.95 - ERROR - 0.015 <= np.mean(bound <= truth) <= 0.99


@pytest.mark.slow
def test_bca_errs_less_on_one_side_where_a_few_problems_lose_much():
    """Why it is chosen over percentiles."""
    rng = np.random.default_rng(8)
    strata = columns(simulate(rng, 30, 16, BENCHMARKS, loss=0.1))
    extended = paired.with_pseudo_problems(strata)
    draws = paired.bootstrap(extended, 2000)
    ends = {"percentile": np.quantile(draws, (0.025, 0.975), axis=0), "BCa": paired.bca_interval(extended, draws)}
    above = {name: np.mean(low > -0.1) for name, (low, _) in ends.items()}
    covered = {name: np.mean((low <= -0.1) & (high >= -0.1)) for name, (low, high) in ends.items()}
    width = {name: np.mean(high - low) for name, (low, high) in ends.items()}
    assert above["BCa"] < above["percentile"] - 0.01 and covered["BCa"] > covered["percentile"] + 0.005
    assert width["BCa"] < 1.06 * width["percentile"]


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "share"), [(30, 0.03), (40, 0.03), (100, 0.01), (200, 0.03)])
def test_intervals_cover_where_few_problems_differ(problems, share):
    rng = np.random.default_rng(problems)
    strata = columns(-(rng.random((BENCHMARKS, problems)) < share).astype(float))
    low, high = interval(strata)
    covered = np.mean((low <= -share) & (-share <= high))
    (differences,) = strata
    plain_low, plain_high = stats.ttest_1samp(differences, 0).confidence_interval()
    plain = np.mean((plain_low <= -share) & (-share <= plain_high))
    assert covered >= 0.92 and covered >= plain - ERROR
    if problems * share < 2:
        assert plain < 0.8  # why the pseudo-problems are there
