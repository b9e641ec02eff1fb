"""The same scores through statsmodels and evalconfidence give the same numbers."""

from typing import Any

import evalconfidence
import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from prunus.statistics import metrics, paired, power


def scores(seed, problems, draws):
    """(2, P, N) verdicts of two models on the same problems."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(0.6, 0.6, (problems, 1))
    return np.stack([rng.random((problems, draws)) < factor * chance for factor in (1.0, 0.85)]).astype(float)


def rows(name, values_PN):
    return [
        evalconfidence.ItemResult(item_id=f"p{problem:04d}", model_id=name, score=float(score), epoch=draw)
        for problem, draws in enumerate(values_PN)
        for draw, score in enumerate(draws)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 12, 480])
def test_adjusted_p_are_statsmodels(size):
    p = np.random.default_rng(size).beta(0.5, 2, size)
    p[: size // 4] = p[0]  # ties
    assert paired.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


@pytest.mark.parametrize(("lost", "won"), [(8, 2), (2, 8), (0, 5), (6, 6), (13, 4), (0, 0)])
def test_exact_mcnemar_is_theirs(lost, won):
    better, worse = paired.mcnemar_p(lost, won), paired.mcnemar_p(won, lost)
    exact = min(1.0, 2 * float(np.minimum(better, worse)))
    result: Any = mcnemar(np.array([[40, lost], [won, 7]]), exact=True)
    assert exact == pytest.approx(result.pvalue)
    base = np.array([1.0] * 40 + [1.0] * lost + [0.0] * won + [0.0] * 7)
    other = np.array([1.0] * 40 + [0.0] * lost + [1.0] * won + [0.0] * 7)
    theirs = evalconfidence.compare(rows("other", other[:, None]), rows("base", base[:, None]))
    assert theirs.method == "mcnemar" and exact == pytest.approx(theirs.p_value)


def test_the_error_of_an_accuracy_is_their_clustered_one():
    _, other = scores(1, 40, 5)
    ours = metrics.estimate(other.mean(axis=1), 5).se
    fit = sm.OLS(other.ravel(), np.ones((other.size, 1))).fit(
        cov_type="cluster", cov_kwds={"groups": np.repeat(np.arange(40), 5)}
    )
    assert ours == pytest.approx(fit.bse[0])
    theirs = evalconfidence.standard_error(rows("other", list(other)), cluster="item")
    assert ours == pytest.approx(theirs.se_clustered)


def test_paired_difference_is_theirs():
    base, other = scores(3, 120, 4)
    differences = (other.mean(axis=1) - base.mean(axis=1))[:, None]
    theirs = evalconfidence.compare(rows("other", other), rows("base", base))
    assert theirs.method == "paired_t"
    assert paired.estimate([differences])[0] == pytest.approx(theirs.diff)
    # The interval and the test that decide are made otherwise, and agree where nothing is extreme.
    extended = paired.with_pseudo_problems([differences])
    ends = paired.bca_interval(extended, paired.bootstrap(extended))
    assert [float(end[0]) for end in ends] == pytest.approx(theirs.ci_diff, abs=0.006)
    assert paired.sign_flip_p([differences])[0] == pytest.approx(theirs.p_value, abs=0.01)


def test_problems_needed_are_theirs():
    base, other = scores(4, 600, 4)
    differences = other - base
    pilot = rows("other", other), rows("base", base)
    for effect in (0.02, 0.05):
        ours = power.problems_needed([differences[:, :, None]], np.array([effect]))[0]
        theirs = evalconfidence.power(pilot, mde=effect).n_required
        deviation = differences.mean(axis=1).std(ddof=1)
        exact = TTestPower().solve_power(effect_size=effect / deviation, alpha=0.05, power=0.8)
        assert theirs is not None
        # Ours add one draw, as the test that decides counts draws and is no t test.
        assert theirs < ours < 1.06 * theirs and exact < ours < 1.06 * exact


def test_wilsons_interval_is_theirs():
    for right in (0, 3, 30):
        ours = metrics.wilson_interval(right / 30, 30)
        assert ours == pytest.approx(proportion_confint(right, 30, method="wilson"), abs=1e-12)
