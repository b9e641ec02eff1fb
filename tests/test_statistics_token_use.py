"""Accuracy of two runs at equal tokens used: areas by fine sums, and errors and coverage by repeated benchmarks."""

from dataclasses import replace
from math import isnan, sqrt

import numpy as np
import pytest

from prunus.results import paired, scaling, token_use
from prunus.results.rows import Sample
from prunus.results.table import Table

BUDGETS = (16, 32, 64, 128, 256)


def table(correct_PBN, thinking_PBN, budgets=BUDGETS):
    """A complete table with these outcomes; answers take five tokens."""
    P, B, N = correct_PBN.shape
    rows = np.empty((P, B, N), dtype=object)
    for p, b, n in np.ndindex(P, B, N):
        rows[p, b, n] = Sample(
            "t", f"p{p}", budgets[b], n, int(thinking_PBN[p, b, n]), 5, 0, "natural", False, False, "1", "ok",
            bool(correct_PBN[p, b, n]),
        )  # fmt: skip
    return Table(tuple(f"p{p}" for p in range(P)), tuple(budgets), tuple(range(N)), rows)


def chains(rng, problems, draws, slower):
    """Outcomes of base, and of a model that needs `slower` times the tokens for the same problems."""
    needs = np.exp(rng.normal(4, 1, (problems, 1, 1)) + rng.normal(0, 0.5, (2, problems, 1, draws)))
    needs[1] *= slower
    budgets = np.array(BUDGETS)[:, None]
    return [(need <= budgets, np.minimum(need, budgets)) for need in needs]


def test_areas_equal_fine_sums_over_the_shared_range():
    rng = np.random.default_rng(0)
    for _ in range(50):
        theirs_x, ours_x = rng.random((2, 5)) * 100
        theirs, ours = rng.random((2, 5))
        got = token_use.areas(np.concatenate([theirs, theirs_x, ours, ours_x]))
        low, high = max(theirs_x.min(), ours_x.min()), min(theirs_x.max(), ours_x.max())
        grid = low + (np.arange(20_000) + 0.5) / 20_000 * (high - low)
        for value, x, f in zip(got, (theirs_x, ours_x), (theirs, ours), strict=True):
            order = np.argsort(x)
            assert value == pytest.approx(np.interp(grid, x[order], f[order]).mean(), abs=1e-4)
    apart = token_use.areas(np.array([0.1, 0.2, 1.0, 2.0, 0.1, 0.2, 3.0, 4.0]))
    assert isnan(apart[0]) and isnan(apart[1])


def test_a_slower_model_is_as_good_for_its_tokens_or_worse():
    rng = np.random.default_rng(1)
    base, other = (table(*outcome) for outcome in chains(rng, 120, 2, 1.6))
    cell = token_use.token_area_cell(base, other, 0, 2000)
    assert cell is not None and (cell["n"], cell["samples"]) == (120, 2)
    means = [part.mean(axis=(0, 2)) for t in (base, other) for part in (t.correct, t.used)]
    assert (cell["base_accuracy"], cell["accuracy"]) == pytest.approx(token_use.areas(np.concatenate(means)))
    assert (cell["from"], cell["to"]) == (max(means[1][0], means[3][0]), min(means[1][-1], means[3][-1]))
    assert cell["high"] < 0 and cell["p"] < 0.01
    same = token_use.token_area_cell(base, base, 0, 500)
    assert same is not None and (same["difference"], same["p"]) == (0, 1)


def test_ratio_of_tokens_covers_and_has_the_bootstraps_ends():
    rng = np.random.default_rng(2)
    base, other = (table(*outcome) for outcome in chains(rng, 60, 2, 2.0))
    ours, theirs = (t.used.mean(axis=2).astype(float) for t in (other, base))
    draws = paired.bootstrap([np.hstack([ours, theirs])], 10_000)
    low, high = np.quantile(draws[:, :5] / draws[:, 5:], (0.025, 0.975), axis=0)
    for b, cell in enumerate(token_use.token_ratios(base, other)):
        assert (cell["tokens"], cell["base_tokens"]) == pytest.approx((ours[:, b].mean(), theirs[:, b].mean()))
        assert cell["tokens_ratio"] == pytest.approx(ours[:, b].mean() / theirs[:, b].mean())
        ends = cell["tokens_ratio_low"], cell["tokens_ratio_high"]
        assert ends == pytest.approx((low[b], high[b]), abs=0.12 * (high[b] - low[b]) + 1e-9)
    big = [thinking.mean(axis=(0, 2)) + 5 for _, thinking in chains(rng, 200_000, 2, 2.0)]
    truth = big[1] / big[0]
    cells = [token_use.token_ratios(*(table(*outcome) for outcome in chains(rng, 40, 1, 2.0))) for _ in range(300)]
    for b in range(1, 5):
        inside = [run[b]["tokens_ratio_low"] <= truth[b] <= run[b]["tokens_ratio_high"] for run in cells]
        assert np.mean(inside) == pytest.approx(0.95, abs=4 * sqrt(0.05 * 0.95 / 200) + 0.01)


def test_nothing_shared_is_none():
    always = np.ones((4, 2, 1))
    short = table(always, always * np.array([[2.0], [4.0]]), (16, 32))
    long = table(always, always * np.array([[20.0], [24.0]]), (16, 32))
    assert token_use.token_area_cell(short, long, 0, 500) is None
    one = table(always[:1], always[:1] * np.array([[2.0], [4.0]]), (16, 32))
    assert token_use.token_area_cell(one, one, 0, 500) is None


@pytest.mark.parametrize("slower", [1.0, 1.6])
def test_errors_are_those_of_repeated_benchmarks(slower):
    rng = np.random.default_rng(3)

    def columns(problems):
        return np.hstack([part.mean(axis=2) for outcome in chains(rng, problems, 2, slower) for part in outcome])

    truth = float(token_use.area_differences(columns(200_000).mean(axis=0)))
    found = [scaling.jackknife(columns(40), token_use.area_differences) for _ in range(225)]
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / 15)
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)  # 4 / sqrt(2 * 225)
    assert np.mean(np.abs(values - truth) <= 2.0 * errors) == pytest.approx(0.95, abs=4 * sqrt(0.05 * 0.95 / 225))


def test_tokens_that_budgets_share_are_counted_once():
    """Two draws of a problem, cut at 8 and 32 tokens: the first ended alone after 5, the second thought on to 20."""
    one = Sample("t", "p", 8, 0, 5, 3, 0, "natural", False, False, "1", "ok", True)
    two = replace(one, draw=1, thinking_tokens=8, answer_tokens=4, ended="forced")
    samples = [one, replace(one, budget=32), two, replace(two, budget=32, thinking_tokens=20, ended="natural")]
    assert token_use.sampled_tokens(token_use.chains_of(samples)) == (5 + 20, 3 + 4 + 4)
    assert token_use.sampled_tokens(token_use.chains_of(samples), reuse=False) == (5 + 5 + 8 + 20, 3 + 3 + 4 + 4)
    assert token_use.sampled_tokens([]) == (0, 0)
