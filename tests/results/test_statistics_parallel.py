"""One long chain or k short ones: by loops over subsets of a run's rows, and by simulation at equal tokens used."""

from itertools import combinations
from math import sqrt

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from prunus.results import parallel
from prunus.statistics import metrics, paired
from prunus.store.rows import Sample, tables

BUDGETS = (0, 16, 32, 64)


def run(seed, problems=8, draws=4, budgets=BUDGETS, scores=True, ability=1.0):
    """Samples of one task; a chain that needs no more than the budget is right, as a rule."""
    rng = np.random.default_rng(seed)
    samples = []
    for problem in range(problems):
        typical = 8 * 2 ** (4 * problem / problems) / ability
        for draw in range(draws):
            needs = int(typical * np.exp(rng.normal(0, 0.6))) + 1
            for budget in budgets:
                answer = "1" if needs <= budget or rng.random() < 0.2 else str(rng.integers(2, 4))
                samples.append(
                    Sample(
                        "t", f"p{problem:03d}", budget, draw, min(needs, budget), 4 + draw, 2,
                        "natural" if needs <= budget else "forced", False, False, answer, "ok", answer == "1",
                        logprob=-needs / 50 if scores else None, self_certainty=float(rng.random()) if scores else None,
                    )
                )  # fmt: skip
    return samples


def table(samples):
    return tables(samples)["t"]


def of(samples, problem, budget):
    return [s for s in samples if (s.problem_id, s.budget) == (problem, budget)]


def best(chosen, key):
    top = max(key(s) for s in chosen)
    return np.mean([s.correct for s in chosen if key(s) == top])


def vote(chosen):
    answers = [s.answer for s in chosen]
    top = max(map(answers.count, answers))
    winners = {answer for answer in answers if answers.count(answer) == top}
    return ("1" in winners) / len(winners)


METHODS = {
    "majority": vote,
    "logprob": lambda chosen: best(chosen, lambda s: s.logprob),
    "self_certainty": lambda chosen: best(chosen, lambda s: s.self_certainty),
    "shortest": lambda chosen: best(chosen, lambda s: -s.thinking_tokens - s.answer_tokens),
    "any": lambda chosen: any(s.correct for s in chosen),
}


def test_every_pair_equals_loops_over_subsets():
    samples = run(0)
    problems = sorted({s.problem_id for s in samples})
    rows = [one.to_json() for one in parallel.compare_parallel(table(samples), resamples=500)]
    pairs = [(row["budget"], row["chains"], row["chain_budget"], row["method"]) for row in rows]
    assert pairs == [(b * k, k, b, m) for b, k in ((16, 2), (16, 4), (32, 2)) for m in METHODS]
    for row in rows:
        short = [of(samples, problem, row["chain_budget"]) for problem in problems]
        long = [of(samples, problem, row["budget"]) for problem in problems]
        k = row["chains"]
        ours = [np.mean([METHODS[row["method"]](chosen) for chosen in combinations(draws, k)]) for draws in short]
        theirs = [np.mean([s.correct for s in draws]) for draws in long]
        assert (row["n"], row["samples"]) == (8, 4)
        assert (row["parallel"], row["sequential"]) == pytest.approx((np.mean(ours), np.mean(theirs)))
        differences = np.subtract(ours, theirs)
        assert row["difference"] == pytest.approx(differences.mean())
        assert row["se"] == pytest.approx(differences.std(ddof=1) / sqrt(8))
        assert row["p"] == pytest.approx(paired.sign_flip_p([differences[:, None]], flips=500)[0])
        assert row["low"] <= row["difference"] <= row["high"]
        used = [[s.thinking_tokens + s.answer_tokens for draws in side for s in draws] for side in (long, short)]
        assert (row["tokens_sequential"], row["tokens_parallel"]) == pytest.approx(
            (np.mean(used[0]), k * np.mean(used[1]))
        )
    assert [row["q"] for row in rows] == pytest.approx(multipletests([row["p"] for row in rows], method="fdr_bh")[1])


def test_at_equal_use_the_single_chain_is_read_off_its_curve():
    samples = run(0, ability=0.3)
    mean = {
        b: np.mean([(s.thinking_tokens + s.answer_tokens, s.correct) for s in samples if s.budget == b], axis=0)
        for b in BUDGETS
    }
    tokens, accuracy = np.array(list(mean.values())).T
    rows = [one.to_json() for one in parallel.compare_parallel(table(samples), resamples=500)]
    assert {row["used"] is None for row in rows} == {True, False}
    for row in rows:
        inside = row["tokens_parallel"] <= tokens.max()
        assert (row["used"] is not None) == inside
        if inside:
            expected = np.interp(row["tokens_parallel"], tokens, accuracy)
            assert row["used"]["sequential"] == pytest.approx(expected)
            assert row["used"]["difference"] == pytest.approx(row["parallel"] - expected)


def test_rows_without_scores_leave_those_methods_out():
    rows = parallel.compare_parallel(table(run(1, scores=False)), resamples=200)
    assert {row.method for row in rows} == {"majority", "shortest", "any"}


def test_nothing_to_compare_is_an_empty_list():
    for samples in (run(1, draws=1), run(1, budgets=(0, 64)), run(1, budgets=(24, 64))):
        assert parallel.compare_parallel(table(samples)) == []


def chains(rng, problems):
    """(P, B) shares correct and tokens used of four chains, as they are cut at four budgets."""
    budgets = np.array([16.0, 32.0, 64.0, 256.0])
    needs = np.exp(rng.normal(4.3, 1.0, (problems, 1, 1)) + rng.normal(0, 0.5, (problems, 1, 4)))
    return (needs <= budgets[:, None]).mean(axis=2), np.minimum(needs, budgets[:, None]).mean(axis=2) + 6


@pytest.mark.slow
def test_spread_at_equal_use_is_that_of_repeated_benchmarks():
    rng = np.random.default_rng(4)

    def estimate(problems):
        shares, used = chains(rng, problems)
        line = parallel.at_equal_use(shares, used, 2 * used[:, 1])  # as two chains of 32 use
        assert line is not None
        return shares[:, 1] - line

    truth = estimate(400_000).mean()
    found = [estimate(60) for _ in range(2000)]
    means, errors = np.array([(d.mean(), d.std(ddof=1) / sqrt(60)) for d in found]).T
    assert means.mean() == pytest.approx(truth, abs=0.01)
    assert errors.mean() == pytest.approx(means.std(), rel=0.07)
    covered = np.mean(np.abs(means - truth) <= 2.0 * errors)
    assert covered == pytest.approx(0.95, abs=4 * sqrt(0.05 * 0.95 / 2000) + 0.01)
    naive = []  # the line taken as known: its spread is not that of the estimate
    for _ in range(2000):
        shares, used = chains(rng, 60)
        mean = used.mean(axis=0)
        at = 2 * mean[1]
        right = int(np.searchsorted(mean, at))
        share = (at - mean[right - 1]) / (mean[right] - mean[right - 1])
        d = shares[:, 1] - (1 - share) * shares[:, right - 1] - share * shares[:, right]
        naive.append(d.std(ddof=1) / sqrt(60))
    assert abs(np.mean(naive) / means.std() - 1) > 0.07


def test_no_line_outside_the_measured_tokens_and_a_flat_one_where_budgets_used_the_same():
    shares, used = np.array([[0.2, 0.6], [0.4, 0.8]]), np.array([[10.0, 20.0], [10.0, 20.0]])
    for wanted in (9.0, 21.0):
        assert parallel.at_equal_use(shares, used, np.full(2, wanted)) is None
    middle = parallel.at_equal_use(shares, used, np.full(2, 15.0))
    assert middle == pytest.approx([0.4, 0.6])
    same = parallel.at_equal_use(shares, np.full((2, 2), 10.0), np.full(2, 10.0))
    assert same is not None and same.tolist() == [0.6, 0.8]


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "draws", "chains_k"), [(30, 4, 4), (100, 4, 2)])
def test_size_is_nominal_although_pass_at_k_and_an_average_are_not_exchangeable(problems, draws, chains_k):
    """The single chain is as likely right as any of k short ones, which is a null that no swap of labels gives."""
    rng, benchmarks = np.random.default_rng(5), 2000
    chance = rng.beta(0.3, 0.9, (benchmarks * problems, 1))
    short = metrics.pass_values(rng.random((benchmarks * problems, draws)) < chance, chains_k)
    long = (rng.random((benchmarks * problems, draws)) < 1 - (1 - chance) ** chains_k).mean(axis=1)
    differences = [np.ascontiguousarray((short - long).reshape(benchmarks, problems).T)]
    error = 4 * sqrt(0.05 * 0.95 / benchmarks)
    assert np.mean(paired.sign_flip_p(differences, 1000) <= 0.05) == pytest.approx(0.05, abs=error + 0.005)
    extended = paired.with_pseudo_problems(differences)
    low, high = paired.bca_interval(extended, paired.bootstrap(extended, 1000))
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(0.95, abs=error + 0.01)
