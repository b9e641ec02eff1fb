"""The verdict on a recipe over calibration seeds: how often its interval holds, its parts, and which runs it is of."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from comparable_runs import PLAN, grid
from pandas import DataFrame
from simulations import several_comparisons
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

import prunus
from prunus.cli import main
from prunus.results.comparison import compare
from prunus.results.seeds import over_seeds, p_values, seeds_needed
from prunus.settings.margins import Margin
from prunus.store.rows import ProblemRow, Run
from prunus.store.store import Store


def made(rng, seeds=5, problems=60, of_seeds=0.03, of_problems=0.2, rest=0.3):
    return (
        rng.normal(0, of_seeds, (seeds, 1))
        + rng.normal(0, of_problems, problems)
        + rng.normal(0, rest, (seeds, problems))
    )


@pytest.mark.slow
@pytest.mark.parametrize(("of_seeds", "tasks"), [(0.0, 1), (0.02, 2), (0.05, 1), (0.2, 2)])
def test_intervals_cover_95_percent_with_five_seeds(of_seeds, tasks):
    """Over new seeds and new problems; an interval over problems alone covers far less where seeds differ."""
    rng, runs, held, naive = np.random.default_rng(0), 1000, 0, 0
    for _ in range(runs):
        strata = [made(rng, problems=size, of_seeds=0) for size in (60, 150)[:tasks]]
        common = rng.normal(0, of_seeds, (5, 1))
        found = over_seeds([y + common for y in strata])
        held += found["low"] <= 0 <= found["high"]
        naive += abs(found["difference"]) < 2 * found["se_problems"]
    error = sqrt(0.05 * 0.95 / runs)
    assert 0.95 - 3 * error < held / runs < (0.985 if of_seeds < 0.05 else 0.965)
    if of_seeds == 0.2:
        assert naive / runs < 0.6


def test_parts_are_those_of_an_analysis_of_variance():
    y = made(np.random.default_rng(1), of_seeds=0.1)
    cells = DataFrame({"y": y.ravel(), "s": np.repeat(range(5), 60), "p": np.tile(range(60), 5)})
    table = anova_lm(ols("y ~ C(s) + C(p)", cells).fit())
    seeds, problems, rest = (table.loc[name, "mean_sq"] for name in ("C(s)", "C(p)", "Residual"))
    found = over_seeds([y])
    assert found["difference"] == pytest.approx(y.mean())
    assert found["se_seeds"] ** 2 == pytest.approx((seeds - rest) / 300) and found["se_problems"] ** 2 == pytest.approx(
        problems / 300
    )
    assert found["se"] ** 2 == pytest.approx((seeds + problems - rest) / 300)
    by_hand = (seeds + problems - rest) ** 2 / (seeds**2 / 4 + problems**2 / 59 + rest**2 / (4 * 59))
    assert found["freedom"] == pytest.approx(by_hand)
    same = over_seeds([np.tile(y[:1], (5, 1))])  # all seeds alike: what five times the same checkpoint says of problems
    assert same["se_seeds"] == 0 and same["freedom"] == pytest.approx(59)
    assert same["se"] == pytest.approx(y[0].std(ddof=1) / sqrt(60))


@pytest.mark.slow
def test_a_word_takes_the_number_of_seeds_that_is_said():
    """Of a recipe that changes nothing: from that number on it is non-inferior, and before it is not."""
    for margin, tests in ((0.02, 1), (0.05, 1), (0.05, 3)):
        needed = seeds_needed(Margin(margin), 0.8, tests)
        assert needed is not None
        p = [
            tests * p_values([np.zeros((seeds, 500))], [np.zeros((seeds, 500))], -margin)["p_margin"]
            for seeds in (needed - 1, needed)
        ]
        assert p[0] > 0.05 >= p[1] - 1e-9
    assert seeds_needed(Margin(0.02), 0.8) == 152 and seeds_needed(Margin(0.9), 0.8) is None
    apart = np.repeat(np.linspace(-0.4, 0.5, 5)[:, None], 400, axis=1)  # seeds say opposite things
    assert min(p_values([apart], [apart], -0.02).values()) > 0.3
    gone = np.full((15, 300), -0.6)  # a loss of 60 points by every seed
    assert p_values([gone], [gone], -0.02)["p_worse"] <= 0.025


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("collapse", [0.05, 0.1, 0.2])
def test_no_recipe_is_called_non_inferior_where_some_seeds_collapse(seeds, collapse):
    """The t test says so in half of the cases or more, since no seed that it saw collapsed."""
    wrong = several_comparisons.collapsing_seeds(seeds, collapse, runs=20)
    assert wrong["non-inferior"] == wrong["better"] == 0
    assert wrong["non-inferior, by t"] > 0 and wrong["better, by t"] > 0.2


def store_of(path, shift, seeds=(0, 1, 2, 3, 4), **more):
    """A dense run, and one of each seed, which loses this share of the problems (shift: by seed)."""
    rng = np.random.default_rng(3)
    right = rng.random(400) < 0.8
    with Store(path, create=True) as store:
        rows = grid(lambda _, p, *__: right[p], problems=400)
        store.add_problems(ProblemRow("a", f"a-{p}", "1", "exact", (), "d") for p in range(400))
        for number, seed in enumerate((None, *seeds)):
            lost = rng.random(400) < (0 if seed is None else shift(seed))
            recipe = {"method": "wanda", "sparsity": 0.5, "calibration": "c4", "seed": seed} | more
            steps = [] if seed is None else [{"action": "prune", "recipe": recipe, "source": {"checksum": "c"}}]
            model = {
                "name": "dense" if seed is None else f"w{seed}",
                "checksum": f"c{number}",
                "manifest": {"history": steps},
            }
            store.add_run(Run.of(f"{number:x}{'f' * 11}", model, PLAN, {"grader": "1"}))
            of = [replace(r, correct=r.correct and not lost[int(r.problem_id[2:])]) for r in rows]
            store.add_samples(f"{number:x}{'f' * 11}", of)
    return path


@pytest.mark.thorough
@pytest.mark.slow
def test_a_recipe_is_judged_over_its_seeds(tmp_path, capsys):
    lossy = store_of(tmp_path / "lossy.db", lambda _: 0.15)
    found = compare(lossy, "dense", margin=0.02, resamples=200).to_json()
    (recipe,) = found["recipes"]
    assert (recipe["label"], recipe["seeds"], recipe["verdict"]) == ("Wanda 50\u00a0%", [0, 1, 2, 3, 4], "cannot tell")
    means = [one["primary"]["difference"] for one in found["others"]]
    assert recipe["each"] == pytest.approx(means) and recipe["needed"] == 152
    assert recipe["difference"] == pytest.approx(np.mean([one["primary"]["difference"] for one in found["others"]]))
    # Seeds that differ much: each checkpoint has a verdict of its own, and of the recipe nothing can be told.
    apart = compare(
        store_of(tmp_path / "apart.db", lambda seed: 0.4 * (seed == 4)), "dense", margin=0.02, resamples=200
    ).to_json()
    assert apart["recipes"][0]["verdict"] == "cannot tell" and apart["recipes"][0]["freedom"] < 6
    assert [one["verdict"] == "worse" for one in apart["others"]] == [False] * 4 + [True]
    harmless = compare(store_of(tmp_path / "same.db", lambda _: 0.002), "dense", margin=0.05, resamples=200).to_json()
    assert harmless["recipes"][0]["verdict"] == "cannot tell" and harmless["recipes"][0]["needed"] == 60
    # Who names some of the seeds sees all of them, and who removed one gets no word.
    named = compare(lossy, "dense", ["w0", "w1"], margin=0.02, resamples=200).to_json()
    assert named["recipes"] == found["recipes"] and len(named["others"]) == 2
    with Store(lossy) as opened:
        opened.remove_run("w4")
    (without,) = compare(lossy, "dense", margin=0.02, resamples=200).to_json()["recipes"]
    assert without["seeds"] == [0, 1, 2, 3] and without["p_worse"] == without["p_margin"] == 1
    prunus.report(lossy, tmp_path / "r.html")
    assert "Wanda 50\u00a0%, over 4 calibration seeds" in (tmp_path / "r.html").read_text()
    main(["compare", str(lossy), "--details"])
    assert "Recipes over calibration seeds" in capsys.readouterr().out


@pytest.mark.slow
def test_only_seeds_may_differ(tmp_path):
    two = compare(store_of(tmp_path / "two.db", lambda _: 0.1, seeds=(0, 1)), "dense", resamples=200).to_json()
    assert two["recipes"] == []  # two seeds say next to nothing of how seeds differ
    path = store_of(tmp_path / "s.db", lambda _: 0.1, seeds=(0, 1, 2))
    with Store(path) as store:
        run = store.runs()[1]
        other = {**run.model.manifest.data["history"][0]["recipe"], "seed": 7, "calibration": "wikitext2"}
        history = [{"action": "prune", "recipe": other, "source": {"checksum": "c"}}]
        store.add_run(
            Run.of("e" * 12, {"name": "x", "checksum": "x", "manifest": {"history": history}}, PLAN, {"grader": "1"})
        )
        store.add_samples("e" * 12, store.samples(run.run_id))
    (recipe,) = compare(path, "dense", resamples=200).to_json()["recipes"]
    assert recipe["seeds"] == [0, 1, 2] and "e" * 12 not in recipe["runs"]
