"""More draws of the base than of what is compared with it: all of them count, in the store, in words, and in plans."""

import json
import sqlite3
from dataclasses import replace
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparable_runs import BUDGETS, fill, grid, mean, random_run, row
from html_page import Page
from simulations import differences, one_comparison
from small_search import CALIBRATION, PLAN
from staged_runs import add
from study_with_find import FIND, GRID, STUDY, write

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.questions import order_of_bets
from prunus.recipes import EvalPlan
from prunus.reporting.render.text import percent
from prunus.reporting.terminal import detail_tables
from prunus.results import ladder
from prunus.results.comparison import compare
from prunus.results.growth import growth
from prunus.statistics import betting, coupling, paired, power
from prunus.store.rows import tables
from prunus.store.store import Store
from prunus.studies.find.forecast import advice
from prunus.text_table import printed

STORE = "out/results.db"


def accuracy(samples, budget, problem):
    return mean(s.correct for s in samples if s.budget == budget and s.problem_id == f"a-{problem}")


def two(tmp_path, base, other, **settings):
    return compare(
        fill(tmp_path / "s.db", {"dense": base, "pruned": other}), "dense", resamples=200, **settings
    ).to_json()


def test_differences_are_of_means_over_all_draws_of_each_side(tmp_path):
    """Budgets, area, slope, endings and tokens by plain loops, with 5 draws of the base and 2 of the other model."""
    rng = np.random.default_rng(3)

    def drawn(chance, draws):
        def one(sample):
            ended = "natural" if rng.random() < 0.5 else "forced"
            return row("a", sample.problem_id[2:], sample.budget, sample.draw, sample.correct, ended=ended,
                       thinking_tokens=int(rng.integers(0, sample.budget + 1)))  # fmt: skip

        return [one(s) for s in random_run(int(10 * chance), chance, problems=20, draws=draws)]

    base, other = drawn(0.7, 5), drawn(0.5, 2)
    (entry,) = two(tmp_path, base, other)["others"]
    how, share = entry["warnings"]
    assert how == "of each problem the mean over 2 draws is compared with that over the base's 5"
    assert share.startswith(
        f"draws of equal numbers have {100 * entry['noise_in_common']:.0f} % of their noise in common"
    )
    sides = {budget: [(accuracy(other, budget, p), accuracy(base, budget, p)) for p in range(20)] for budget in BUDGETS}
    at = {budget: mean(theirs - ours for theirs, ours in pairs) for budget, pairs in sides.items()}
    cells = entry["tasks"]["a"]["budgets"]
    assert {budget: cell["difference"] for budget, cell in cells.items()} == pytest.approx(at)
    assert {(cell["n"], cell["samples"], cell["base_samples"]) for cell in cells.values()} == {(20, 2, 5)}
    assert entry["primary"]["difference"] == pytest.approx((at[16] + at[64]) / 2)
    assert entry["primary"]["base_samples"] == 5 and entry["scaling"]["base_samples"] == 5
    assert entry["scaling"]["difference"] == pytest.approx((at[64] - at[16]) / log2(64 / 16))

    last = {name: [s for s in side if s.budget == 64] for name, side in (("base", base), ("other", other))}
    ends = {name: mean(s.ended == "natural" for s in side) for name, side in last.items()}
    cell = entry["stopping"]["endings"]["ends"]
    assert cell["difference"] == pytest.approx(ends["other"] - ends["base"]) and cell["base_samples"] == 5
    tokens = {name: mean(s.thinking_tokens + s.answer_tokens for s in side) for name, side in last.items()}
    assert entry["stopping"]["tokens_ratio"] == pytest.approx(tokens["other"] / tokens["base"])


def made_together(problems: int, draws: int, base_draws: int, seed: int):
    """Rows of a base and of a model whose draws repeat the base's of the same number in seven of eight cases."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(1, 1, problems)
    right = rng.random((problems, base_draws)) < chance[:, None]
    again = rng.random((problems, draws)) < 7 / 8
    other = np.where(again, right[:, :draws], rng.random((problems, draws)) < chance[:, None])
    sides = ((base_draws, right), (draws, other))
    both = [grid(lambda _, p, __, n, of=of: of[p, n], problems=problems, budgets=(64,), draws=d) for d, of in sides]
    return *both, right, other


def test_matched_draws_have_a_weight_of_their_own(tmp_path):
    """In the order of the bets, over problems before each one; margins in points and of what the base solves."""
    base, other, ours, theirs = made_together(60, 2, 6, 0)
    shares = [(theirs.mean(axis=1) - ours[:, :n].mean(axis=1))[:, None] for n in (6, 2)]
    names = [f"a-{p}" for p in range(60)]
    order = [names.index(name) for name in order_of_bets(names, {})]
    every, matched = (values[order] for values in shares)
    (entry,) = two(tmp_path, base, other, margin=0.1)["others"]
    cell = entry["primary"]
    assert cell["p_margin"] == pytest.approx(betting.p_value([every], 0.1, 6, [matched])[0])
    assert cell["p_margin"] < betting.p_value([every], 0.1, 6)[0]
    bound = betting.lower_bound([every], 0.05, 6, [-0.1], [matched])[0]
    assert cell["lower_bound"] == pytest.approx(min(bound, every.mean()))
    apart = [
        side[:, :2] - side[:, :2].mean(axis=1, keepdims=True) for side in (ours.astype(float), theirs.astype(float))
    ]
    share = (apart[0] * apart[1]).sum() / (apart[0] ** 2).sum()
    assert entry["noise_in_common"] == pytest.approx(share) and share > 0.5
    (tmp_path / "relative").mkdir()
    (entry,) = two(tmp_path / "relative", base, other, margin="20%")["others"]
    of = [(2 * d + 0.2 * (2 * ours[order, :n].mean(axis=1)[:, None] - 1)) / 1.8 for d, n in ((every, 6), (matched, 2))]
    assert entry["primary"]["p_margin"] == pytest.approx(betting.p_value(of[:1], 0.2 / 1.8, 6, of[1:])[0])


@pytest.mark.slow
@pytest.mark.parametrize("draws", [(2, 6), (3, 3)])
def test_the_share_of_noise_in_common_stands_with_each_comparison(tmp_path, draws):
    base, other, *_ = made_together(60, draws[0], draws[1], 0)
    two(tmp_path, base, other, margin=0.1)
    comparison = compare(tmp_path / "s.db", "dense")
    (entry,) = comparison.others
    assert entry.noise_in_common is not None
    share = percent(entry.noise_in_common)
    shown = printed(detail_tables(comparison), width=200).splitlines()
    (place,) = (place for place, line in enumerate(shown) if line.endswith("noise in common, %"))
    assert shown[place + 1].endswith(f" {share}")
    page = Page(prunus.report(tmp_path / "s.db", tmp_path / "r.html"))
    heading, *column = (row[-2] for row in page.rows("costs"))
    assert heading.startswith("Noise in") and column == ["", share]


def test_a_search_gives_matched_draws_their_weight():
    base, other, ours, theirs = made_together(40, 2, 6, 1)
    order = [(("a", f"a-{p}"),) for p in np.random.default_rng(0).permutation(40)]
    found = ladder.differences(tables(base), tables(other), order, [64], 2, 6)
    places = [int(problem[2:]) for ((_, problem),) in order]
    means = [side[places, :n].mean(axis=1)[:, None] for side, n in ((ours, 6), (ours, 2), (theirs, 2))]
    weight = coupling.weights(means[2] - means[0], means[2] - means[1])
    assert weight.max() > 0.3
    expected = means[2] - (1 - weight) * means[0] - weight * means[1]
    assert found[ladder.ACCURACY] == pytest.approx(expected[:, 0])
    assert found[ladder.ACCURACY] + found[ladder.DENSE[ladder.ACCURACY]] == pytest.approx(means[2][:, 0])


@pytest.mark.slow
def test_one_draw_beside_several_is_not_judged_by_mcnemars_test(tmp_path):
    """A base that is always right, with 1 and with 4 draws; the other is wrong on 9 of 40 problems."""
    other = grid(lambda _, problem, *__: problem >= 9, problems=40)
    p = {}
    for draws in (1, 4):
        base = grid(lambda *_: True, problems=40, draws=draws)
        (tmp_path / str(draws)).mkdir()
        (entry,) = two(tmp_path / str(draws), base, other)["others"]
        p[draws] = entry["tasks"]["a"]["budgets"][64]["p_worse"]
    assert p[1] == pytest.approx(paired.mcnemar_p(0, 9)) and p[4] > 1.1 * p[1]


@pytest.mark.slow
@pytest.mark.parametrize("draws", [(1, 3), (3, 1)])
def test_the_bound_after_choosing_among_one_is_the_bound(tmp_path, draws):
    """With several tasks the way to bet depends on the draws, of which both bounds have to take the same number."""
    base, other = (random_run(n, 0.7, tasks=("a", "b"), problems=40, draws=d) for n, d in enumerate(draws))
    (entry,) = two(tmp_path, base, other)["others"]
    assert entry["primary"]["lower_bound_adjusted"] == pytest.approx(entry["primary"]["lower_bound"])


def test_what_would_settle_counts_draws_of_the_other_model(tmp_path):
    """By the variances: with draws of one side only, the base's part of the noise remains."""
    rng = np.random.default_rng(0)
    chance = rng.beta(0.4, 0.4, (4000, 1, 1))
    base, other = (rng.random((4000, n, 1)) < chance for n in (16, 4))
    means = [other.mean(axis=1) - base.mean(axis=1)]
    ((rest, v),) = power.variance_components([other.astype(float)], means)
    noise = float((chance * (1 - chance)).mean())
    assert v[0] == pytest.approx(noise, rel=0.05) and rest[0] == pytest.approx(noise / 16, rel=0.5)
    effect = np.array([2.81 * (noise / 16 + noise / 8) ** 0.5 / 4000**0.5])
    assert 6 <= power.draws_needed([other.astype(float)], effect, means=means)[0] <= 10
    needed = power.problems_needed([other.astype(float)], effect, means=means)[0]
    assert needed == pytest.approx(4000 * (1 / 16 + 1 / 4) / (1 / 16 + 1 / 8), rel=0.05)


@pytest.mark.slow
def test_several_seeds_of_a_recipe_have_all_draws_of_the_base(tmp_path):
    runs = {"dense": random_run(0, 0.7, problems=30, draws=6)}
    runs |= {f"seed{n}": random_run(n, 0.6, problems=30, draws=2) for n in (1, 2, 3)}
    plans = {name: {} for name in runs}
    path = fill(tmp_path / "s.db", runs, plans)
    with Store(path) as store:
        for number, run in enumerate(store.runs()[1:]):
            step = {"action": "prune", "recipe": {"seed": number}, "sparsity": {}, "source": {"checksum": "d"}}
            model = json.dumps({**run.model.data, "checksum": run.run_id, "manifest": {"history": [step]}})
            store._connection.execute("UPDATE run SET model = ? WHERE run_id = ?", (model, run.run_id))
    found = compare(path, "dense", resamples=200).to_json()
    (recipe,) = found["recipes"]
    assert recipe["difference"] == pytest.approx(mean(one["primary"]["difference"] for one in found["others"]))
    assert recipe["samples"] == 2


@pytest.mark.slow
def test_draws_of_the_base_that_are_added_after_a_look_are_another_look(tmp_path):
    """Else who sees no word would add draws of the base until one comes."""
    rows = {name: random_run(n, 0.9 - 0.3 * n, problems=120, draws=3) for n, name in enumerate(("dense", "pruned"))}
    store = tmp_path / "s.db"
    add(store, "dense", rows["dense"], draws=1)
    run = add(store, "pruned", rows["pruned"], draws=1)
    more = add(store, "dense", rows["dense"], draws=3)
    (entry,) = compare(store, more, [run], resamples=200).to_json()["others"]
    assert [(one["samples"], one.get("base_samples")) for one in entry["grown"]] == [(1, None), (1, 3)]
    assert any("draws changed from 1 to 1 (base 3)" in note and "multiplied by 6" in note for note in entry["warnings"])
    with Store(store) as opened:
        seen = growth(opened.find_run(more), opened.find_run(run))
    assert seen is not None and seen.share == 1 / 6
    # Without naming it, the dense run with most draws is the base, and its other run is no variant.
    found = compare(store, resamples=200).to_json()
    assert found["base"]["run"] == more and [one["run"] for one in found["others"]] == [run]


@pytest.mark.slow
def test_draws_planned_beforehand_are_one_look(tmp_path):
    rows = {name: random_run(n, 0.9 - 0.3 * n, problems=120, draws=3) for n, name in enumerate(("dense", "pruned"))}
    add(tmp_path / "s.db", "dense", rows["dense"], draws=3)
    add(tmp_path / "s.db", "pruned", rows["pruned"], draws=1)
    (entry,) = compare(tmp_path / "s.db", resamples=200).to_json()["others"]
    assert entry["grown"] is None and entry["primary"]["base_samples"] == 3 and entry["verdict"] == "worse"


# Errors and power, as `benchmarks/verdicts.py` prints them for docs/measurements/verdicts.md.


@pytest.mark.slow
@pytest.mark.parametrize("shape", differences.UNEQUAL)
@pytest.mark.parametrize(("problems", "draws"), [(60, 3), (300, 1)])
def test_words_keep_their_error_with_more_draws_of_the_base(shape, problems, draws):
    found = one_comparison.errors_of_unequal(shape, problems, draws, 16, runs=500)
    limits = {"non-inferior": 0.05, "certified": 0.05, "better": 0.025, "worse": 0.025}
    for word, most in limits.items():
        assert found[word] <= most + 3 * (most / 500) ** 0.5, (word, found[word])


@pytest.mark.slow
@pytest.mark.parametrize("shape", differences.UNEQUAL)
def test_the_simulated_losses_are_what_they_say(shape):
    for mean_ in (-0.02, 0.0):
        values = differences.unequal(np.random.default_rng(1), shape, 400, 3, 16, mean_, 500)
        assert values.mean() == pytest.approx(mean_, abs=0.002)


@pytest.mark.slow
def test_more_draws_of_the_base_decide_more():
    now, more = (one_comparison.power_of_unequal(500, 3, draws, runs=600) for draws in (3, 16))
    assert now["non-inferior"] < 0.51 and more["non-inferior"] >= 0.58
    assert more["certified"] > now["certified"] + 0.1 and more["worse"] > now["worse"] + 0.05
    assert one_comparison.power_of_unequal(1000, 3, 16, runs=300)["non-inferior"] >= 0.84


def test_the_square_root_rule_costs_least():
    """Among all numbers of draws of the base, that of the rule needs fewest chains for the same variance."""
    found = power.more_of_base(14, 500, 3, 3)
    assert found is not None and found.draws == 12 and found.chains == 500 * 9

    def chains(base):
        problems = 500 * (1 / 3 + 1 / base) / (1 / 3 + 1 / found.draws)
        return problems * (14 * 3 + base)

    assert min(range(1, 65), key=chains) in (11, 12)
    assert found.problems == 800 and found.chains_of_problems == 300 * 45
    assert found.ratio == pytest.approx((500 / 800) ** 0.5)
    assert power.more_of_base(1, 500, 3, 3) is None and power.more_of_base(14, 500, 3, 12) is None


# Plans, studies and searches.


def test_plans_keep_their_json_without_it():
    assert "base_samples" not in EvalPlan(("tiny",)).to_json()
    assert EvalPlan(("tiny",), samples=4, base_samples=4) == EvalPlan(("tiny",), samples=4)
    with pytest.raises(PrunusError, match="base_samples must be at least 1"):
        EvalPlan(("tiny",), base_samples=0)


SAMPLED = STUDY.replace('profile = "tiny"\n', 'profile = "tiny"\ntemperature = 1.0\nsamples = 2\nbase_samples = 5\n')
studied = pytest.mark.usefixtures("few_resamples", "search_folder")


def counts() -> dict[str, int]:
    """Rows of each run, by model."""
    with Store(STORE) as store:
        return {f"{run.model.name} x {run.plan.samples}": len(store.keys(run.run_id)) for run in store.runs()}


@pytest.mark.thorough
@pytest.mark.slow
@studied
def test_a_study_draws_its_base_more_often(scripted):
    file = write(GRID, SAMPLED)
    planned = prunus.plan_study(file, out="out").to_json()
    assert [cell["answers"] for cell in planned["cells"]] == [200 * 2 * 5, 200 * 2 * 2]
    done = prunus.study(file, out="out").to_json()
    assert counts() == {"model x 5": 2000, "model/magnitude-20 x 2": 800}
    (entry,) = done["comparisons"][0]["comparison"]["others"]
    assert (entry["primary"]["samples"], entry["primary"]["base_samples"]) == (2, 5) and entry["grown"] is None
    with Store(STORE) as store:
        dense, pruned = store.runs()
        assert "base_samples" not in {**dense.plan.data, **pruned.plan.data}
    # The base's run is that of `prunus eval` with as many draws: nothing is left to compute.
    plan = EvalPlan(**{**vars(DRAWN), "samples": 5, "base_samples": None})
    assert prunus.evaluate("model", plan, STORE).run_id == dense.run_id


@pytest.mark.slow
@studied
def test_a_base_that_is_a_variant_has_the_draws(scripted):
    file = write(GRID + '[report]\nbase = "magnitude-20"\n', SAMPLED)
    prunus.study(file, out="out")
    assert counts() == {"model x 2": 800, "model/magnitude-20 x 5": 2000}


@pytest.mark.thorough
@pytest.mark.slow
@studied
def test_more_draws_keep_the_rows_that_exist(scripted, capsys):
    """A study whose base has 2 draws goes on with 5: only three more are drawn, and the earlier run stays."""
    prunus.study(write(GRID, SAMPLED.replace("base_samples = 5\n", "")), out="out")
    first = {row.problem_id: row for row in _rows("model", 2) if (row.budget, row.draw) == (16, 1)}
    file = write(GRID, SAMPLED)
    planned = prunus.plan_study(file, out="out").to_json()
    assert [cell["done"] for cell in planned["cells"]] == [800, 800] and planned["advice"] == []
    scripted.clear()
    done = prunus.study(file, out="out").to_json()
    assert scripted == {"dense": 200 * 3}
    assert counts() == {"model x 2": 800, "model/magnitude-20 x 2": 800, "model x 5": 2000}
    assert {row.problem_id: row for row in _rows("model", 5) if (row.budget, row.draw) == (16, 1)} == first
    assert "800 of its answers are those of run" in capsys.readouterr().err
    (entry,) = done["comparisons"][0]["comparison"]["others"]
    assert [one.get("base_samples") for one in entry["grown"]] == [None, 5]
    # Fewer draws are those of the larger run.
    scripted.clear()
    prunus.study(write(GRID, SAMPLED.replace("base_samples = 5", "base_samples = 3")), out="out")
    assert not scripted and counts()["model x 3"] == 1200


def _rows(model: str, samples: int) -> list[Any]:
    with Store(STORE) as store:
        (run,) = (run for run in store.runs() if run.model.name == model and run.plan.samples == samples)
        return store.samples(run.run_id, texts=True)


@pytest.mark.slow
@studied
def test_a_study_says_when_draws_of_the_base_are_cheaper_than_problems(scripted, capsys):
    grid_ = GRID.replace("0.2", "[0.1, 0.2, 0.3, 0.4]")
    text = SAMPLED.replace("base_samples = 5\n", "")
    (line,) = prunus.plan_study(write(grid_, text), out="out").to_json()["advice"]
    # 200 problems x 2 more draws, or 267 problems: 67 x 10 more chains; each of at most 16 + 2 x 8 tokens.
    for part in ("base_samples = 4 instead of 2", "is 13 % smaller", "267 problems instead of 200"):
        assert part in line
    chain = 16 + 2 * 8
    assert f"at most {400 * chain:,} tokens more" in line and f"for {round(200 / 3 * 10) * chain:,}" in line
    main(["study", "plan", "small.toml", "--out", "out"])
    assert "base_samples = 4" in capsys.readouterr().out.replace("\n", " ")
    assert prunus.plan_study(write(grid_, SAMPLED), out="out").to_json()["advice"] == []
    greedy = text.replace("temperature = 1.0", "temperature = 0")
    assert prunus.plan_study(write(grid_, greedy), out="out").to_json()["advice"] == []


@pytest.mark.slow
@studied
def test_what_makes_no_sense_is_refused():
    with pytest.raises(PrunusError, match=r"line \d+: two plans of \[eval\] are the same for the base"):
        prunus.plan_study(write(GRID, SAMPLED.replace("samples = 2", "samples = [1, 2]", 1)), out="out")
    with pytest.raises(PrunusError, match="base_samples is of studies and searches"):
        prunus.evaluate("model", EvalPlan(("sums.jsonl",), (8,), base_samples=3), "rows.db")
    with pytest.raises(PrunusError, match="base_samples"):
        prunus.plan_study(write(GRID, SAMPLED.replace("base_samples = 5", "base_samples = 0")), out="out")


DRAWN = replace(PLAN, temperature=1.0, samples=2, base_samples=5)
RULE: dict[str, Any] = {"methods": ["magnitude"], "settings": CALIBRATION, "margin": 0.1, "stop_margin": 0.1}


@pytest.mark.thorough
@pytest.mark.slow
@studied
def test_a_search_draws_the_dense_model_more_often(scripted, capsys):
    """And who changes the declared draws afterwards is found out."""
    ahead = prunus.plan_find("model", "out", DRAWN, "0.1:0.4:0.1", store="rows.db", **RULE).to_json()
    assert "200 problems with 2 draws each (5 of the original)" in ahead["lines"][0]
    assert ahead["grid_tokens"] == round((4 * 2 + 5) * 200 * ahead["chain_tokens"])
    fewer = prunus.plan_find("model", "out", EvalPlan(**{**vars(DRAWN), "base_samples": None}), "0.1:0.4:0.1",
                             store="rows.db", **RULE).to_json()  # fmt: skip
    assert ahead["forecasts"]["accuracy"]["rounds"] < fewer["forecasts"]["accuracy"]["rounds"]
    found = prunus.find("model", "out", DRAWN, "0.1:0.4:0.1", store="rows.db", **RULE).to_json()
    assert found["found"] == "magnitude-20"
    certificate = json.loads(Path("out/certificate.json").read_text())
    assert (certificate["declared"]["samples"], certificate["declared"]["base_samples"]) == (2, 5)
    looked = certificate["shown"]["dense"]["looked"]
    with Store("rows.db") as store:
        draws = {run.model.name: {key[2] for key in store.keys(run.run_id)} for run in store.runs()}
        dense = next(run for run in store.runs() if run.model.name == "model")
        assert len(store.keys(dense.run_id)) == looked * 5 * 2
    assert draws["model"] == set(range(5)) and draws["model/magnitude-20"] == {0, 1}
    assert "2 answers (5 of the original)" in Path("out/find.html").read_text()
    checked = prunus.verify("out/certificate.json", "rows.db")
    assert checked.claims and not [*checked.differences, *checked.notes]
    # Interrupted or repeated, it takes the same decisions without another chain.
    scripted.clear()
    again = prunus.find("model", "again", DRAWN, "0.1:0.4:0.1", store="rows.db", **RULE).to_json()
    assert not scripted and again["found"] == "magnitude-20"
    certificate["declared"]["base_samples"] = 3
    Path("out/certificate.json").write_text(json.dumps(certificate))
    differences = prunus.verify("out/certificate.json", "rows.db").differences
    assert "samples of the runs in the store are 5, the certificate declares 3" in differences


@pytest.mark.thorough
@pytest.mark.slow
@studied
def test_a_search_takes_over_draws_of_the_dense_model(scripted):
    plan = EvalPlan(**{**vars(DRAWN), "base_samples": None})
    dense = prunus.evaluate("model", plan, "rows.db").run_id
    with sqlite3.connect("rows.db") as rows:  # the script of `find` names no device, and samples otherwise than hf
        as_script = "json_set(json_remove(versions, '$.device', '$.dtype'), '$.protocol', '2')"
        rows.execute(f"UPDATE run SET versions = {as_script}")
    scripted.clear()
    prunus.find("model", "out", DRAWN, "0.1:0.4:0.1", store="rows.db", **RULE)
    with Store("rows.db") as store:
        assert dense in {run.run_id for run in store.runs()}
        looked = json.loads(Path("out/certificate.json").read_text())["shown"]["dense"]["looked"]
    assert scripted["dense"] <= looked * 3 + 20  # whole batches
    checked = prunus.verify("out/certificate.json", "rows.db")
    assert checked.claims and not checked.differences


@pytest.mark.thorough
@pytest.mark.slow
@studied
def test_searches_of_a_study_share_the_rows_of_its_base(scripted):
    done = prunus.study(write(GRID + FIND, SAMPLED), out="out").to_json()
    assert counts()["model x 5"] == 2000 and done["searches"][0]["found"] == "magnitude-20"
    with Store(STORE) as store:
        assert not any(run.adaptive for run in store.runs() if run.model.name == "model")


@pytest.mark.slow
@studied
def test_the_option_of_find(scripted, capsys):
    with pytest.raises(SystemExit):
        main(["eval", "model", "--task", "sums.jsonl", "--base-samples", "3", "--store", "rows.db"])
    capsys.readouterr()
    command = ["find", "model", "out", "--task", "sums.jsonl", "--budgets", "8,16", "--answer-tokens", "8", "--profile"]
    command += ["tiny", "--method", "magnitude", "--store", "rows.db", "--calibration", "text.jsonl", "--seqlen", "16"]
    main([*command, "--sequences", "8", "--samples", "2", "--base-samples", "5", "--dry-run", "--json"])
    assert "(5 of the original)" in json.loads(capsys.readouterr().out)["lines"][0]


@pytest.mark.slow
def test_a_forecast_names_the_cheapest_draws_that_are_enough():
    """With one rung two draws of both models are fewest, with seven rungs eight of the dense model."""
    few = ladder.rounds_needed(0.04 * (1 + 1 / 8) / 2, 0.02)
    (found, _) = ladder.forecast(ladder.Rule(0.02, 0.5), ceil(few), 1).values()
    assert (found.draws, found.base_draws) == (2, 8) and found.rounds > few
    assert advice(found, 1, 1, 1).startswith("--samples 2") and advice(found, 1, 1, 7).startswith("--base-samples 8")
    (more, _) = ladder.forecast(ladder.Rule(0.02, 0.5), ceil(few), 1, base_draws=8).values()
    assert more.rounds == few
