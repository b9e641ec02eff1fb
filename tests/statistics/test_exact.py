"""Exact tests of lost against gained: enumeration of all outcomes, a published value, and the power of bets."""

from itertools import pairwise
from math import factorial, log, sqrt
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import beta

from prunus.statistics import betting, exact


def outcomes(n: int) -> list[tuple[int, int]]:
    return [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]


def probability(n: int, of: tuple[int, int], share_lost: float, share_gained: float) -> float:
    lost, gained = of
    same = n - lost - gained
    ways = factorial(n) // factorial(lost) // factorial(gained) // factorial(same)
    return ways * share_lost**lost * share_gained**gained * max(1 - share_lost - share_gained, 0.0) ** same


def slow_score(n: int, of: tuple[int, int], margin: float) -> float:
    """The difference less the margin, by its standard error where the likelihood is largest at the margin."""
    lost, gained = of

    def unlikely(g: float) -> float:
        shares = ((lost, g + margin), (gained, g), (n - lost - gained, 1 - 2 * g - margin))
        return -sum(count * log(share) for count, share in shares if count)

    low = max(0.0, -margin)
    found: Any = minimize_scalar(unlikely, bounds=(low + 1e-12, (1 - margin) / 2 - 1e-12), options={"xatol": 1e-12})
    g = found.x
    return ((gained - lost) / n + margin) / sqrt((2 * g + margin - margin**2) / n)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "margin"), [(7, 0.2), (12, 0.05), (9, -0.1)])
def test_p_is_the_largest_probability_of_outcomes_as_good(n, margin):
    scores = {of: slow_score(n, of, margin) for of in outcomes(n)}
    for lost, gained in outcomes(n)[::6]:
        good = [of for of in scores if scores[of] >= scores[lost, gained] - 1e-6]
        ends = beta.ppf(5e-7, gained, n - gained + 1), beta.ppf(1 - 5e-7, gained + 1, n - gained)
        low, high = (0.0 if gained == 0 else ends[0]), (1.0 if gained == n else ends[1])
        shares = np.linspace(max(low, -margin), min(high, (1 - margin) / 2), 300)
        most = max(sum(probability(n, of, g + margin, g) for of in good) for g in shares)
        found = exact.p_value(lost, gained, n, margin)[0]
        assert found == pytest.approx(min(1.0, most + 1e-6), rel=1e-3), (lost, gained)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "margin"), [(10, 0.3), (25, 0.1), (30, 0.0), (30, 0.02), (20, -0.1)])
def test_a_loss_of_the_margin_is_ruled_out_with_the_probability_that_it_may_be(n, margin):
    """Whatever the share gained; and hardly less often, which no test could do much better."""
    pairs = np.array(outcomes(n)).T
    p, most = exact.p_value(pairs[0], pairs[1], n, margin), {}
    for g in np.linspace(max(0.0, -margin), (1 - margin) / 2, 200):
        weights = np.array([probability(n, of, g + margin, g) for of in outcomes(n)])
        for alpha in (0.05, 0.025, 0.001):
            most[alpha] = max(most.get(alpha, 0.0), float(weights[p <= alpha].sum()))
    assert all(share <= alpha * (1 + 1e-9) for alpha, share in most.items()), most
    assert most[0.05] > 0.03, most


@pytest.mark.slow
def test_bounds_hold_and_say_what_p_says():
    n, margin = 10, 0.1
    pairs = np.array(outcomes(n)).T
    bounds, p = exact.lower_bound(pairs[0], pairs[1], n, 0.05, [-margin]), exact.p_value(pairs[0], pairs[1], n, margin)
    assert ((bounds >= -margin) == (p <= 0.05)).all() and 0 < (p <= 0.05).sum() < len(p) - 5
    most = 0.0
    for mean in np.linspace(-0.6, 0.4, 41):
        for gained in np.linspace(max(0.0, mean), (1 + mean) / 2, 40):
            wrong = [of for of, bound in zip(outcomes(n), bounds, strict=True) if bound > mean + 1e-9]
            most = max(most, sum(probability(n, of, gained - mean, gained) for of in wrong))
    assert 0.03 < most <= 0.05


def test_the_statistic_is_tangos():
    """44 patients, of whom one was disinfected by the old method only, and a margin of 10 points: Z = 1.709 (1998)."""
    assert exact.score(np.array(1.0), np.array(0.0), 44, 0.1) == pytest.approx(1.709, abs=5e-4)


def test_p_rises_with_losses_and_falls_with_gains_and_margins():
    for n, margin in ((50, 0.02), (200, 0.05)):
        lost = [exact.p_value(count, 4, n, margin)[0] for count in range(12)]
        gained = [exact.p_value(4, count, n, margin)[0] for count in range(12)]
        assert all(one < other for one, other in pairwise(lost))
        assert all(one > other for one, other in pairwise(gained))
    assert exact.p_value(6, 6, 200, 0.1)[0] < 0.1 * exact.p_value(6, 6, 200, 0.05)[0]


def test_without_a_difference_it_cannot_rule_out_more_than_so_few_problems_can():
    """The probability of n problems without a loss of the margin is (1 - margin)^n."""
    for n, margin in ((5, 0.05), (30, 0.1), (100, 0.02), (500, 0.01)):
        assert (1 - margin) ** n <= exact.p_value(0, 0, n, margin)[0] < 2 * (1 - margin) ** n
    assert exact.lower_bound(0, 0, 300, 0.05, [-0.01]) == -0.01 > exact.lower_bound(0, 0, 290, 0.05, [-0.01])


@pytest.mark.slow
def test_it_finds_much_that_bets_do_not():
    """200 problems, of which 3 % are lost and 3 % gained, and a margin of 5 points."""
    rng = np.random.default_rng(0)
    values = rng.choice((-1.0, 0.0, 1.0), (200, 600), p=(0.03, 0.94, 0.03))
    lost, gained = ((sign * values > 0).sum(axis=0) for sign in (-1, 1))
    by_bets = np.mean(betting.p_value([values], 0.05) <= 0.05)
    assert 0.8 < np.mean(exact.p_value(lost, gained, 200, 0.05) <= 0.05) < 0.9 and by_bets < 0.7
