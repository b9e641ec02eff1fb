"""Metrics against brute force over all subsets, hand-made numbers and simulation."""

from fractions import Fraction
from itertools import combinations
from math import inf, isnan

import numpy as np
import pytest
from scipy import integrate, stats

from prunus.statistics import metrics


def pass_by_hand(rows, k):
    return np.mean([np.mean([any(chosen) for chosen in combinations(row, k)]) for row in rows])


def vote_by_hand(answers, verdicts, k):
    scores = []
    for chosen in combinations(range(len(answers)), k):
        votes = [answers[i] for i in chosen if answers[i] is not None]
        if not votes:
            scores.append(Fraction(0))
            continue
        top = max(votes.count(answer) for answer in votes)
        winners = {answer for answer in votes if votes.count(answer) == top}
        right = [verdicts[answers.index(winner)] for winner in winners]
        scores.append(Fraction(sum(right), len(right)))
    return float(sum(scores) / len(scores))


@pytest.mark.parametrize("draws", range(1, 7))
def test_pass_at_k_equals_all_subsets(draws):
    rows = [[(number >> bit) & 1 for bit in range(draws)] for number in range(2**draws)]
    for k in range(1, draws + 1):
        assert metrics.pass_values(rows, k).mean() == pytest.approx(pass_by_hand(rows, k), abs=1e-12)
    assert metrics.pass_values(rows, draws).mean() == np.mean([any(row) for row in rows])
    assert metrics.pass_values(rows, 1).mean() == pytest.approx(np.mean(rows))


def test_values_of_each_problem_have_the_scores_as_their_mean():
    rng = np.random.default_rng(4)
    answers = rng.choice(["1", "2", "3"], (20, 5)).tolist()
    correct = [[answer == "1" for answer in row] for row in answers]
    for k in (1, 3, 5):
        assert metrics.pass_values(correct, k) == pytest.approx([pass_by_hand([row], k) for row in correct])
        votes = [vote_by_hand(*row, k) for row in zip(answers, correct, strict=True)]
        assert metrics.majority_values(answers, correct, k) == pytest.approx(votes)
        assert metrics.vote(metrics.ballots(answers, correct), k) == pytest.approx(votes)


@pytest.mark.parametrize("draws", range(1, 7))
def test_majority_equals_all_subsets(draws):
    rng = np.random.default_rng(draws)
    for _ in range(60):
        answers = [str(a) if (a := rng.integers(0, 5)) else None for _ in range(draws)]
        verdicts = [answer in ("1", "4") for answer in answers]  # two right answers: forms the normaliser did not merge
        for k in range(1, draws + 1):
            got = metrics.majority_values([answers], [verdicts], k)
            assert got[0] == pytest.approx(vote_by_hand(answers, verdicts, k), abs=1e-12)


def test_majority_of_one_and_two_is_the_average_when_all_vote():
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 4, (50, 9)).astype(str).tolist()
    correct = [[answer == "2" for answer in row] for row in answers]
    average = np.mean(correct)
    assert metrics.majority_values(answers, correct, 1).mean() == pytest.approx(average)
    assert metrics.majority_values(answers, correct, 2).mean() == pytest.approx(average)
    assert metrics.majority_values([["2", "2", None, None]], [[True, True, False, False]], 2) == pytest.approx(5 / 6)


def test_majority_of_many_draws_equals_random_subsets():
    rng = np.random.default_rng(1)
    answers = rng.choice(["1", "2", "3", "4"], size=64, p=[0.35, 0.3, 0.3, 0.05])
    subsets = rng.permuted(np.tile(answers, (40_000, 1)), axis=1)[:, :16]
    counts = np.stack([(subsets == answer).sum(1) for answer in "1234"], axis=1)
    winners = counts == counts.max(1, keepdims=True)
    simulated = np.mean(winners[:, 0] / winners.sum(1))
    (got,) = metrics.majority_values([answers.tolist()], (answers == "1")[None], 16)
    assert got == pytest.approx(simulated, abs=4 * 0.5 / 200)


def test_k_must_fit():
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k = {k}"):
            metrics.pass_values([[True, False]], k)
        with pytest.raises(ValueError, match=f"k = {k}"):
            metrics.majority_values([["1", "2"]], [[True, False]], k)


def test_area_and_slope_on_the_papers_grid():
    budgets, accuracy = (512, 1024, 2048, 4096, 8192), np.array([0.1, 0.3, 0.2, 0.6, 0.7])
    f1, f2, f3, f4, f5 = accuracy
    assert metrics.auc_weights(budgets) @ accuracy == pytest.approx((f1 / 2 + f2 + f3 + f4 + f5 / 2) / 4)
    assert metrics.slope_weights(budgets) @ accuracy == pytest.approx((-2 * f1 - f2 + f4 + 2 * f5) / 10)
    assert metrics.gain_weights(budgets) @ accuracy == pytest.approx(0.6)


def test_area_and_slope_leave_out_budget_0_and_take_uneven_grids():
    budgets, accuracy = (0, 16, 32, 256), np.array([0.9, 0.1, 0.3, 0.8])
    area = integrate.trapezoid(accuracy[1:], np.log2(budgets[1:])) / 4
    assert metrics.auc_weights(budgets) @ accuracy == pytest.approx(area)
    slope = stats.linregress(np.log2(budgets[1:]), accuracy[1:]).slope  # pyright: ignore[reportAttributeAccessIssue]
    assert metrics.slope_weights(budgets) @ accuracy == pytest.approx(slope)
    assert metrics.gain_weights(budgets) @ accuracy == pytest.approx(-0.1)


def test_area_with_one_or_no_positive_budget_is_the_accuracy_there():
    assert metrics.auc_weights((0, 64)).tolist() == [0, 1]
    assert metrics.auc_weights((0,)).tolist() == [1]
    assert all(isnan(weight) for weight in metrics.slope_weights((0, 64)))


def test_standard_error_is_over_problems():
    values = np.array([0.25, 0.5, 1.0, 0.0, 0.75])
    got = metrics.estimate(values, draws=4)
    mean = values.mean()
    assert got.value == pytest.approx(mean)
    assert got.se == pytest.approx(np.sqrt(((values - mean) ** 2).sum() / (5 * 4)))


def test_one_draw_gives_wilsons_interval():
    for right in (0, 3, 20):
        got = metrics.estimate([1.0] * right + [0.0] * (20 - right))
        low, high = stats.binomtest(right, 20).proportion_ci(method="wilson")
        assert (got.low, got.high) == pytest.approx((low, high), abs=1e-12)


def test_interval_of_saturated_problems_is_not_a_point():
    got = metrics.estimate([1.0] * 30, draws=16)
    assert got.se == 0 and got.high == 1 and 0.85 < got.low < 0.95
    assert metrics.estimate([0.5], draws=2).se is None


@pytest.mark.parametrize(("problems", "draws", "shape"), [(40, 1, (2, 1)), (40, 4, (0.3, 0.3)), (100, 8, (0.3, 3))])
def test_interval_covers_95_percent(problems, draws, shape):
    rng = np.random.default_rng(problems + draws)
    chance = rng.beta(shape[0], shape[1], (1000, problems))
    values = rng.binomial(draws, chance) / draws
    truth = shape[0] / sum(shape)
    covered = np.mean([one.low <= truth <= one.high for one in (metrics.estimate(row, draws) for row in values)])
    assert 0.93 <= covered <= 0.98


def test_tokens_and_shares():
    assert metrics.tokens(range(101)) == metrics.Tokens(mean=50, p95=95)
    assert metrics.tokens_per_correct([10, 20, 30], [True, False, True]) == 30
    assert metrics.tokens_per_correct([10], [False]) == inf
    assert metrics.share([True, False, False, False]) == 0.25
    assert metrics.leaked([512, 513], 16).tolist() == [False, True]
    assert metrics.leaked([1024, 1025], 2048).tolist() == [False, True]
