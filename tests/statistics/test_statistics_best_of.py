"""Best-of-n against all subsets, and how much of a text goes in circles against counting by hand."""

import time
from itertools import combinations
from math import inf, nan

import numpy as np
import pytest

from prunus.statistics.metrics import best_of_values
from prunus.store.looping import repeated_share, repetition_rate


def best_by_hand(scores, correct, n):
    values = []
    for chosen in combinations(range(len(scores)), n):
        top = max(scores[i] for i in chosen)
        tied = [correct[i] for i in chosen if scores[i] == top]
        values.append(sum(tied) / len(tied))
    return np.mean(values)


@pytest.mark.parametrize("draws", range(1, 7))
def test_best_of_equals_all_subsets_with_ties(draws):
    rng = np.random.default_rng(draws)
    scores = rng.integers(-2, 3, (40, draws)).astype(float)
    scores[scores == -2] = -inf
    correct = rng.random((40, draws)) < 0.5
    for n in range(1, draws + 1):
        expected = [best_by_hand(*row, n) for row in zip(scores.tolist(), correct.tolist(), strict=True)]
        assert best_of_values(scores, correct, n) == pytest.approx(expected, abs=1e-12)


def test_a_constant_score_gives_the_average_and_a_perfect_one_gives_pass_at_n():
    rng = np.random.default_rng(0)
    correct = rng.random((30, 12)) < 0.3
    for n in (1, 5, 12):
        assert best_of_values(np.full((30, 12), -1.5), correct, n) == pytest.approx(correct.mean(axis=1))
    assert best_of_values(correct, correct, 12) == pytest.approx(correct.any(axis=1).astype(float))
    assert best_of_values(rng.random((30, 12)), correct, 1) == pytest.approx(correct.mean(axis=1))


def test_a_missing_score_is_refused_rather_than_ranked():
    with pytest.raises(ValueError, match="no score"):
        best_of_values([[1.0, nan]], [[True, False]], 2)
    for n in (0, 3):
        with pytest.raises(ValueError, match=f"n = {n}"):
            best_of_values([[1.0, 2.0]], [[True, False]], n)


def share_by_hand(tokens, gram, times):
    runs = [tuple(tokens[start : start + gram]) for start in range(len(tokens) - gram + 1)]
    inside = {i for start, run in enumerate(runs) if runs.count(run) >= times for i in range(start, start + gram)}
    return len(inside) / len(tokens)


def test_repeated_share_equals_counting():
    rng = np.random.default_rng(3)
    for _ in range(200):
        tokens = rng.integers(0, 3, rng.integers(1, 40)).tolist()
        assert repeated_share(tokens, gram=3, times=3) == pytest.approx(share_by_hand(tokens, 3, 3))
    assert repeated_share([]) == 0


def test_a_loop_is_told_from_reasoning():
    steps = " ".join(f"Step {i}: {i} + {i * 7 % 13} = {i + i * 7 % 13}, so we carry {i % 5} on." for i in range(60))
    assert repetition_rate(steps) == 0
    assert repetition_rate("But wait, let me check that again. " * 40) == 1
    assert repetition_rate("") == repetition_rate("42") == 0
    loop = "Wait, I should reconsider the problem. " * 20
    assert 0 < repetition_rate(f"{loop} {steps[-400:]}") < 1
    assert repetition_rate(loop + steps) == 0  # it found its way out: the last 200 words are reasoning
    # Twenty-two words the same hold three runs of twenty; twenty-three hold four.
    assert repetition_rate("Wait " * 22) == 0 and repetition_rate("Wait " * 23) == 1


def test_loops_without_spaces_are_seen():
    assert repetition_rate("我们再检查一遍。" * 60) == 1
    assert repetition_rate("abc" * 1000) == 1


@pytest.mark.parametrize("text", ["x" * 1_000_000, " " * 1_000_000, "a b " * 250_000, "\n\u202e(" * 333_333])
def test_a_line_of_a_megabyte_takes_no_time(text):
    start = time.process_time()
    assert 0 <= repetition_rate(text) <= 1
    assert time.process_time() - start < 0.2
