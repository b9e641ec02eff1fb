"""Claims about one finite set of problems: enumeration of all samples, betting without replacement, and their power."""

from math import comb, log

import numpy as np
import pytest

from prunus.statistics import betting, exact, finite


def outcomes(n: int) -> list[tuple[int, int]]:
    return [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]


def probability(of: tuple[int, int], n: int, size: int, lost: int, gained: int) -> float:
    """That a sample of n has this outcome if so many of the set are lost and gained."""
    same, rest = n - sum(of), size - lost - gained
    return comb(lost, of[0]) * comb(gained, of[1]) * comb(rest, same) / comb(size, n)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "size", "margin"), [(8, 13, 0.15), (15, 20, 0.1), (12, 30, 0.0), (9, 16, -0.125)])
def test_a_loss_of_the_margin_is_ruled_out_with_the_probability_that_it_may_be(n, size, margin):
    """In every set that loses the margin or more, whatever is gained in it; and often nearly as often as that."""
    least, most = int(np.ceil(margin * size - 1e-9)), 0.0
    p = {of: finite.p_value(*of, n, size, least) for of in outcomes(n)}
    assert all(p[lost, gained] <= p[lost + 1, gained] + 1e-9 for lost, gained in p if (lost + 1, gained) in p)
    for lost in range(size + 1):
        for gained in range(size + 1 - lost):
            if lost - gained >= least:
                for alpha in (0.05, 0.2, 0.5):
                    chance = sum(probability(of, n, size, lost, gained) for of in p if p[of] <= alpha)
                    assert chance <= alpha + 1e-9, (lost, gained)
                    most = max(most, chance / alpha)
    assert most > 0.8


def test_p_is_the_largest_probability_of_outcomes_as_good():
    n, size, margin = 10, 17, 2 / 17
    pairs = np.array(outcomes(n), float).T
    scores = dict(zip(outcomes(n), exact.score(pairs[0], pairs[1], n, margin), strict=True))
    for seen in [(0, 0), (1, 0), (1, 3), (4, 2)]:
        good = [of for of in scores if scores[of] >= scores[seen] - 1e-9]
        plausible = [g for g in range(size) if seen[1] <= g <= size - n + seen[1] and 2 * g + 2 <= size]
        worst = max(sum(probability(of, n, size, g + 2, g) for of in good) for g in plausible)
        assert finite.p_value(*seen, n, size, 2) == pytest.approx(worst + 1e-6)


def test_a_bound_is_the_largest_loss_that_is_not_ruled_out_and_sharper_than_that_of_all_problems():
    for lost, gained in [(0, 0), (20, 20), (30, 22)]:
        bound = finite.lower_bound(lost, gained, 800, 1319)
        assert finite.p_value(lost, gained, 800, 1319, 1 - round(1319 * bound)) <= 0.05
        assert finite.p_value(lost, gained, 800, 1319, -round(1319 * bound)) > 0.05
        assert exact.lower_bound(lost, gained, 800)[0] < bound <= (gained - lost) / 800
    assert finite.lower_bound(5, 0, 5, 1319) == pytest.approx(-1, abs=0.01)


def test_a_set_of_which_hardly_anything_is_left_is_known():
    """The five that are left can lose five more; and of a huge set a sample says what the usual test says."""
    assert finite.p_value(0, 0, 95, 100, 6) == pytest.approx(finite.UNLIKELY)
    assert finite.p_value(0, 0, 95, 100, 5) < 0.001
    assert finite.p_value(12, 8, 200, 200_000, 10_000) == pytest.approx(exact.p_value(12, 8, 200, 0.05)[0], rel=0.02)


def test_bets_know_what_is_left_of_the_set():
    kept = np.zeros(95)
    assert finite.bets_lower_bound(kept, 100, nulls=[-0.0501]) >= -0.0501
    assert betting.lower_bound([kept[:, None]])[0] < -0.03 < finite.bets_lower_bound(kept, 110)
    lost = np.r_[-np.ones(30), kept[:65]]
    assert finite.bound(lost, 100, 0.05, 0.05, one_outcome=False)[0] <= -0.3, "what is left cannot make up for it"
    assert finite.bound(kept, 100, 0.0501, 0.05, one_outcome=False)[1]
    assert not finite.bound(lost, 100, 0.0501, 0.05, one_outcome=False)[1]


def test_bets_on_a_huge_set_are_the_usual_bets():
    differences = np.random.default_rng(3).choice([-1, -0.5, 0, 0.5, 1], 300, p=[0.02, 0.03, 0.9, 0.03, 0.02])
    assert finite.bets_lower_bound(differences, 10**9) == betting.lower_bound([differences[:, None]])[0]


@pytest.mark.slow
def test_bets_seldom_rule_out_what_the_set_loses():
    """Samples of sets that lose exactly the margin, in many small or a few whole losses."""
    generator = np.random.default_rng(0)
    for values, share in (([-1, 0, 1], 0.03), ([-0.5, 0, 0.5], 0.05)):
        size, n, margin = 200, 120, 0.05
        gained = int(share * size)
        lost = gained + round(margin * size / values[2])
        parts = np.full(lost, values[0], float), np.full(gained, values[2], float), np.zeros(size - lost - gained)
        problems = np.concatenate(parts)
        found = [
            (finite.wealth(generator.permutation(problems)[:n], np.full(1, -margin), log(20), size) >= log(20)).item()
            for _ in range(600)
        ]
        assert np.mean(found) < 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5
