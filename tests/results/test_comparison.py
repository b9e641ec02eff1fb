"""From rows to verdicts: numbers by plain loops, what is paired with what, the words, and how often they are wrong."""

import json
from dataclasses import replace
from hashlib import sha256
from itertools import product
from math import hypot, log2, sqrt

import numpy as np
import pytest
from comparable_runs import BUDGETS, PLAN, fill, grid, mean, random_run, row
from statsmodels.stats.multitest import multipletests

from prunus.errors import PrunusError
from prunus.questions import question_key
from prunus.reporting.sections.result import remark
from prunus.results.comparison import compare
from prunus.results.order import settled_by, two_digits
from prunus.results.summary import summarise
from prunus.results.verdicts import CLAIMS, word_of
from prunus.settings.margins import Margin
from prunus.statistics import betting, exact, paired
from prunus.statistics.betting import direction_p
from prunus.store.rows import ProblemRow, Run
from prunus.store.store import Store

NO_CHAIN_ENDS = "no chain of the base ends by itself within the largest budget, so no model is shown to stop: raise it"


def test_runs_of_different_protocols_are_compared_with_a_warning(tmp_path):
    path = fill(tmp_path / "s.db", {"dense": random_run(0, 0.6), "pruned": random_run(1, 0.4)})
    with Store(path) as store:
        store.update_environment("0" + "f" * 11, {"protocol": "1"})
        store.update_environment("1" + "f" * 11, {"protocol": "2"})
    (entry,) = compare(path, "dense").to_json()["others"]
    assert [text for text in entry["warnings"] if "truncated" in text] == [
        "answers of exactly their cap are counted as truncated by different rules (protocol 2, base 1), so compare"
        " `truncated` with care"
    ]


@pytest.mark.slow
def test_numbers_equal_plain_loops(tmp_path):
    shape = {"tasks": ("a", "b"), "draws": 2}
    base, other = random_run(0, 0.6, **shape), random_run(1, 0.4, **shape)
    result = compare(fill(tmp_path / "s.db", {"dense": base, "pruned": other}), "dense").to_json()
    json.dumps(result, allow_nan=False)
    assert result["base"] == {"run": "0" + "f" * 11, "model": "dense", "recipe": []}
    (entry,) = result["others"]
    assert entry["recipe"] == [{"action": "prune", "recipe": {"sparsity": 0.5}}]
    assert entry["warnings"] == [] and result["warnings"] == [NO_CHAIN_ENDS]

    def share(samples, task, problem, budget):
        return mean(s.correct for s in samples if (s.problem_id, s.budget) == (f"{task}-{problem}", budget))

    def draw_differences(task, problem, budget):
        ours, theirs = (
            np.array([int(s.correct) for s in samples if (s.problem_id, s.budget) == (f"{task}-{problem}", budget)])
            for samples in (other, base)
        )
        return ours - theirs

    def area(samples, task, problem):
        first, last = (share(samples, task, problem, budget) for budget in (16, 64))
        return (first + last) / 2 * (log2(64) - log2(16)) / (log2(64) - log2(16))

    per_task = {}
    for task in ("a", "b"):
        for budget in BUDGETS:
            cell = entry["tasks"][task]["budgets"][budget]
            ours = [share(other, task, p, budget) for p in range(6)]
            theirs = [share(base, task, p, budget) for p in range(6)]
            assert (cell["n"], cell["samples"]) == (6, 2)
            assert (cell["accuracy"], cell["base_accuracy"]) == pytest.approx((mean(ours), mean(theirs)))
            assert cell["difference"] == pytest.approx(mean(ours) - mean(theirs))
        per_task[task] = [area(other, task, p) - area(base, task, p) for p in range(6)]
        assert entry["tasks"][task]["auc"]["difference"] == pytest.approx(mean(per_task[task]))
    macro = entry["macro"]["auc"]
    assert entry["primary"] == macro and macro["n"] == 12
    assert macro["difference"] == pytest.approx(mean(map(mean, per_task.values())))
    errors = [float(np.std(d, ddof=1)) / sqrt(6) for d in per_task.values()]
    assert macro["se"] == pytest.approx(hypot(*errors) / 2)
    flat = [d / 12 for values in per_task.values() for d in values]
    sums = [abs(sum(s * d for s, d in zip(signs, flat, strict=True))) for signs in product((1, -1), repeat=12)]
    assert macro["p_flip"] == pytest.approx(mean(total >= abs(sum(flat)) - 1e-9 for total in sums))
    for cell in (macro, *entry["tasks"]["a"]["budgets"].values()):
        assert cell["low"] <= cell["difference"] <= cell["high"] and cell["lower_bound"] <= cell["difference"]
        assert 0.05 < cell["p_margin"] <= cell["p_margin_adjusted"] <= 1
    # So few problems would detect no loss at all.
    assert macro["mde"] is None and entry["tasks"]["a"]["budgets"][16]["mde"] is None
    strata = []
    for task, values in per_task.items():  # in the order of hashes: of the ids, as there are no questions
        order = sorted(range(6), key=lambda p: place_of(f"{task}-{p}"))
        strata.append(np.array([values[p] for p in order])[:, None])
    assert macro["lower_bound"] == pytest.approx(betting.lower_bound(strata, draws=2, nulls=[-0.02])[0])
    assert macro["lower_bound_adjusted"] == macro["lower_bound"]  # of one comparison
    assert macro["p_margin"] == pytest.approx(betting.p_value(strata, 0.02, draws=2)[0])
    several = [*entry["tasks"].values(), entry["macro"]]
    cells = [cell for part in several for cell in part["budgets"].values()]
    cells += [task["auc"] for task in entry["tasks"].values()]
    for name in ("p_better", "p_worse", "p_margin"):  # all details of all runs together; here of one run
        assert [c[f"{name}_adjusted"] for c in cells] == pytest.approx(paired.holm([c[name] for c in cells]))
    for task in ("a", "b"):
        slopes = [(share(run, task, p, 64) - share(run, task, p, 16)) / 2 for run in (base, other) for p in range(6)]
        slope = entry["tasks"][task]["slope"]
        assert (slope["base_accuracy"], slope["accuracy"]) == pytest.approx((mean(slopes[:6]), mean(slopes[6:])))


@pytest.mark.slow
def test_one_draw_has_mcnemars_p(tmp_path):
    base = grid(lambda _task, p, *_: p < 8, problems=20)
    other = grid(lambda _task, p, *_: 8 <= p < 10, problems=20)
    path = fill(tmp_path / "s.db", {"dense": base, "pruned": other})
    (entry,) = compare(path, "dense").to_json()["others"]
    cell = entry["tasks"]["a"]["budgets"][16]
    assert cell["p"] == pytest.approx(0.109375)  # 8 lost, 2 gained
    assert (cell["p_worse"], cell["p_better"]) == (pytest.approx(56 / 1024), pytest.approx(1013 / 1024))
    assert cell["p_flip"] == pytest.approx(cell["p"], abs=0.01)
    assert cell["settle"]["draws"] is None and "one draw" in cell["settle"]["note"]
    assert cell["settle"]["problems"] > 20


@pytest.mark.slow
def test_one_draw_at_one_budget_has_the_exact_test_of_the_margin(tmp_path):
    """8 of 60 problems lost, 2 gained; bets judge the area over two budgets and margins relative to the base."""
    base = grid(lambda _task, p, *_: p < 48, problems=60)
    other = grid(lambda _task, p, *_: 8 <= p < 50, problems=60)
    path = fill(tmp_path / "s.db", {"dense": base, "pruned": other})
    for margin, single in ((0.2, True), ("25%", False)):
        (entry,) = compare(path, "dense", margin=margin, stop_margin=margin, resamples=200).to_json()["others"]
        cell, size = entry["tasks"]["a"]["budgets"][64], 0.2 if single else 0.25
        p = exact.p_value(8, 2, 60, 0.2)[0]
        assert (cell["p_margin"] == pytest.approx(p)) == single and p < 0.05
        assert cell["lower_bound"] == pytest.approx(exact.lower_bound(8, 2, 60, nulls=[-size])[0])
        assert entry["primary"]["p_margin"] != pytest.approx(p)
    ends = entry["stopping"]["endings"]["ends"]
    assert ends["bound"] == pytest.approx(exact.lower_bound(0, 0, 60, nulls=[-0.25])[0])
    same = {name: [one for one in side if one.budget == 64] for name, side in (("dense", base), ("pruned", other))}
    (entry,) = compare(fill(tmp_path / "1.db", same), "dense", margin=0.2, resamples=200).to_json()["others"]
    assert entry["primary"]["p_margin"] == pytest.approx(p) and entry["verdict"] == "non-inferior"
    assert entry["primary"]["lower_bound_adjusted"] == pytest.approx(exact.lower_bound(8, 2, 60, nulls=[-0.2])[0])


@pytest.mark.slow
def test_cells_have_bands_and_what_would_settle_them(tmp_path):
    runs = {
        "dense": random_run(0, 0.6, problems=40, draws=4),
        "pruned": random_run(1, 0.45, problems=40, draws=4),
        "large": random_run(2, 0.6, problems=40, draws=4),
    }
    result = compare(fill(tmp_path / "s.db", runs), "dense", margin=0.03).to_json()
    for entry in result["others"]:
        task = entry["tasks"]["a"]
        for cell in task["budgets"].values():
            assert cell["band_low"] <= cell["low"] <= cell["difference"] <= cell["high"] <= cell["band_high"]
        assert sum(c["band_high"] - c["band_low"] for c in task["budgets"].values()) > 1.1 * sum(
            c["high"] - c["low"] for c in task["budgets"].values()
        )
        for cell in (*task["budgets"].values(), task["auc"]):
            settle = cell["settle"]
            assert settle["effect"] == pytest.approx(max(abs(cell["difference"]), 0.03))
            # Settled already if and only if the effect is no smaller than what can be detected.
            assert (settle["problems"] <= 40) == (cell["mde"] <= settle["effect"])
            if settle["draws"] is not None:
                assert (settle["draws"] <= 4) == (cell["mde"] <= settle["effect"])
            else:
                assert "no number of draws" in settle["note"]
    cells = [c for e in result["others"] for c in (*e["tasks"]["a"]["budgets"].values(), e["tasks"]["a"]["auc"])]
    assert [c["q"] for c in cells] == pytest.approx(multipletests([c["p"] for c in cells], method="fdr_bh")[1])


@pytest.mark.slow
def test_ends_are_two_sided_95_percent_and_the_bound_is_one_sided(tmp_path):
    runs = {name: random_run(seed, 0.6, problems=400, draws=2) for seed, name in enumerate(("dense", "pruned"))}
    (entry,) = compare(fill(tmp_path / "s.db", runs), "dense").to_json()["others"]
    cell = entry["primary"]
    for name, quantile in (("low", -1.96), ("high", 1.96)):
        assert (cell[name] - cell["difference"]) / cell["se"] == pytest.approx(quantile, abs=0.1)
    # The bound holds at any number of problems; its distance from a bootstrap's -1.645 depends on the order.
    assert -2.6 < (cell["lower_bound"] - cell["difference"]) / cell["se"] < -1.2


@pytest.mark.slow
def test_slope_is_kept_or_lost(tmp_path):
    """Retention is said only where the base has a slope to keep; its word is the outcome of two tests."""
    grows = grid(lambda _task, p, budget, _draw: p < {0: 0, 16: 10, 64: 30}[budget], problems=40)
    half = grid(lambda _task, p, budget, _draw: p < {0: 0, 16: 10, 64: 20}[budget], problems=40)
    path = fill(tmp_path / "s.db", {"dense": grows, "pruned": half})
    entry = compare(path, "dense").to_json()["others"][0]
    slope = entry["tasks"]["a"]["slope"]
    assert entry["scaling"] == slope
    assert (slope["base_accuracy"], slope["accuracy"]) == pytest.approx((0.25, 0.125))
    assert slope["retention"] == pytest.approx(0.5) and slope["high"] < 0
    assert slope["word"] == "lost" and slope["retention_low"] < 0.5 < slope["retention_high"] < 0.9
    many = [grid(lambda _t, p, b, _d: p < {0: 0, 16: 50, 64: 150}[b], problems=200) for _ in range(2)]
    same = compare(fill(tmp_path / "k.db", dict(zip(("dense", "same"), many, strict=True))), "dense").to_json()[
        "others"
    ][0]
    assert (same["scaling"]["word"], same["scaling"]["retention"]) == ("kept", 1)
    flat = {name: random_run(seed, 0.5, problems=40) for seed, name in enumerate(("dense", "pruned"))}
    assert (
        compare(fill(tmp_path / "f.db", flat), "dense").to_json()["others"][0]["tasks"]["a"]["slope"]["retention"]
        is None
    )
    assert compare(tmp_path / "f.db", "dense").to_json()["others"][0]["scaling"]["word"] == "cannot tell"
    one = {name: random_run(seed, 0.5, budgets=(0, 16)) for seed, name in enumerate(("dense", "pruned"))}
    assert compare(fill(tmp_path / "o.db", one), "dense").to_json()["others"][0]["tasks"]["a"]["slope"] is None
    assert compare(tmp_path / "o.db", "dense").to_json()["others"][0]["scaling"] is None


@pytest.mark.slow
def test_a_comparison_is_read_by_names_and_attributes(tmp_path):
    names = ("dense", "one", "two")
    runs = {name: random_run(seed, 0.6, tasks=("a", "b"), draws=2) for seed, name in enumerate(names)}
    found = compare(fill(tmp_path / "s.db", runs), "dense", margin="5%", resamples=100)
    first, second = found
    assert found.margin == Margin(0.05, relative=True) and second.tasks["b"].budgets[16].n == 6
    assert list(found.to_json()["others"][0]["macro"]) == ["budgets", "auc", "slope", "stopping"]
    assert first.area is first.primary and first.tasks["a"].area is first.tasks["a"].auc
    assert "parameters" not in found.to_json()["base"], "the keys are those of 0.2.0"
    for entry, model in ((first, "one"), (second, "two")):
        assert all(found[name] is entry for name in (model, entry.run, entry.run[:6], entry))
        cell = [f"{100 * share:+.1f}" for share in (entry.area.difference, entry.low or 0, entry.high or 0)]
        points = f"{cell[0]} points, 95 % interval {cell[1]} to {cell[2]}"
        assert repr(entry).endswith(f"({entry.run}): {entry.verdict} ({points})")
    with pytest.raises(PrunusError, match=f"'three' is no run of this comparison: name one of one .{first.run}"):
        found["three"]
    text = repr(found)
    assert text.startswith("Compared with dense: accuracy averaged over budgets (log2), mean of all tasks")


@pytest.mark.slow
def test_verdicts(tmp_path):
    def accuracy(share, problems=600):
        return grid(lambda _task, p, *_: p < share * problems, problems=problems)

    runs = {"dense": accuracy(0.8), "same": accuracy(0.8), "hurt": accuracy(0.5), "gain": accuracy(0.95),
            "dent": accuracy(0.785)}  # fmt: skip
    result = compare(fill(tmp_path / "large.db", runs), "dense", margin=0.02).to_json()
    found = {entry["model"]: (entry["verdict"], entry["within_margin"]) for entry in result["others"]}
    assert found == {"same": ("non-inferior", True), "hurt": ("worse", False), "gain": ("better", True),
                     "dent": ("worse", False)}  # fmt: skip
    dent = compare(tmp_path / "large.db", "dense", ["dent"], margin=0.05).to_json()["others"][0]
    assert (dent["verdict"], dent["within_margin"], dent["margin"]) == ("worse, within the margin", True, 0.05)
    for name in ("p_better", "p_worse", "p_margin"):
        areas = [entry["primary"][name] for entry in result["others"]]
        assert [e["primary"][f"{name}_adjusted"] for e in result["others"]] == pytest.approx(paired.holm(areas))

    small = {"dense": accuracy(0.8, 30), "same": accuracy(0.8, 30)}
    (entry,) = compare(fill(tmp_path / "small.db", small), "dense", margin=0.02).to_json()["others"]
    assert entry["verdict"] == "cannot tell" and entry["primary"]["low"] < -0.02 < 0 < entry["primary"]["mde"]


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "draws"), [(5, 16), (2, 64), (30, 1), (140, 1)])
def test_almost_no_data_is_never_non_inferior(tmp_path, problems, draws):
    """One draw of one problem differs, or none at all; a bootstrap sees no more than that."""
    same = grid(lambda *_: True, problems=problems, draws=draws, budgets=(64,))
    one = grid(
        lambda _task, p, _b, draw: draws == 1 or (p, draw) != (1, 3), problems=problems, draws=draws, budgets=(64,)
    )
    path = fill(tmp_path / "s.db", {"dense": same, "pruned": one})
    for base, other in (("dense", "pruned"), ("pruned", "dense")):
        (entry,) = compare(path, base, [other], margin=0.02, resamples=500).to_json()["others"]
        assert entry["verdict"] == "cannot tell" and entry["primary"]["lower_bound"] < -0.02
    assert compare(path, "dense", margin=0.15 if problems > 5 else 0.9, resamples=500).to_json()["others"][0][
        "within_margin"
    ] == (problems > 2)


@pytest.mark.slow
def test_claims_of_many_variants_are_corrected(tmp_path):
    """250 problems without a difference rule two points out for one variant, and not for fourteen at once."""
    same = grid(lambda _task, p, *_: p % 2, problems=250, budgets=(64,))
    runs = {"dense": same} | {f"v{k}": same for k in range(14)}
    path = fill(tmp_path / "s.db", runs)
    alone, asked = fill(tmp_path / "one.db", {"dense": same, "v0": same}), {"margin": 0.02, "resamples": 200}
    one = compare(alone, "dense", **asked).to_json()["others"]
    all_of_them = compare(path, "dense", **asked).to_json()["others"]
    assert one[0]["verdict"] == "non-inferior" and {e["verdict"] for e in all_of_them} == {"cannot tell"}
    assert all_of_them[0]["primary"]["lower_bound"] == one[0]["primary"]["lower_bound"] > -0.02
    assert all_of_them[0]["primary"]["p_margin_adjusted"] == pytest.approx(14 * one[0]["primary"]["p_margin"])
    ratio = all_of_them[0]["primary"]["mde"] / one[0]["primary"]["mde"]
    assert 1.3 < ratio < 1.6  # 3.76 standard errors instead of 2.80, and the variance that a larger loss brings


@pytest.mark.slow
def test_the_curve_decides_what_is_said_of_it(tmp_path):
    """+21 points at 512 and -33 at 4096 are not `worse at every budget`, nor are 0 or -1 point among large losses."""
    budgets, problems = (512, 1024, 2048, 4096), 200
    dense = {512: 0.3, 1024: 0.5, 2048: 0.7, 4096: 0.9}
    crossing = {512: 0.51, 1024: 0.45, 2048: 0.45, 4096: 0.57}
    below = {512: 0.15, 1024: 0.35, 2048: 0.5, 4096: 0.6}
    equal, unsure = below | {512: 0.3}, below | {512: 0.29}
    noisy = {512: 0.305, 1024: 0.35, 2048: 0.5, 4096: 0.6}
    runs = {
        name: grid(lambda _t, p, b, _d, c=curve: p < c[b] * problems, problems=problems, budgets=budgets)
        for name, curve in {
            "dense": dense,
            "crossing": crossing,
            "below": below,
            "noisy": noisy,
            "equal": equal,
            "unsure": unsure,
        }.items()
    }
    record = compare(fill(tmp_path / "s.db", runs), "dense", resamples=500)
    found = {e["model"]: e for e in record.to_json()["others"]}
    assert {e["verdict"] for e in found.values()} == {"worse"}
    assert {name: e["whole_curve"] for name, e in found.items()} == {name: name == "below" for name in found}
    (against,) = found["crossing"]["contradicted_at"]
    assert (against["budget"], against["verdict"]) == (512, "better") and against["difference"] == pytest.approx(0.21)
    assert found["below"]["contradicted_at"] == found["noisy"]["contradicted_at"] == []
    remarks = [remark(record[name]).remark for name in ("crossing", "below", "equal", "unsure")]
    assert remarks == ["but better at 512 (+21.0)", "at every budget", "", ""]
    assert all(cell.p_worse_adjusted <= 0.025 for cell in record["below"].tasks["a"].budgets.values())
    for name in found:
        cell = record[name].primary
        assert (
            cell.upper_bound_adjusted is not None and cell.difference < cell.upper_bound_adjusted < 0
        )  # all are worse


@pytest.mark.slow
def test_of_a_single_budget_nothing_is_said_of_every_budget(tmp_path):
    runs = {
        name: grid(lambda _t, p, *_, n=n: p < n, problems=200, budgets=(512,)) for name, n in (("a", 150), ("b", 50))
    }
    (entry,) = compare(fill(tmp_path / "s.db", runs), "a", resamples=200)
    assert entry.verdict == "worse" and not entry.whole_curve and remark(entry).remark == ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_upper_bound_is_below_0_exactly_where_a_loss_is_shown(tmp_path, seed):
    """Of one comparison, whose p-value is by the same kind of bets; with two draws McNemar's test decides nothing."""
    rng = np.random.default_rng(seed)
    for number, lost in enumerate((0, 4, 7, 9, 12, 30)):
        worse = set(rng.choice(60, lost, replace=False).tolist())
        better = set(rng.choice(60, 2, replace=False).tolist()) - worse
        dense = grid(lambda _t, p, *_, b=better: p not in b, problems=60, budgets=(64,), draws=2)
        pruned = grid(lambda _t, p, *_, w=worse: p not in w, problems=60, budgets=(64,), draws=2)
        (entry,) = compare(fill(tmp_path / f"{number}.db", {"dense": dense, "pruned": pruned}), "dense", resamples=100)
        cell = entry.primary
        assert cell.upper_bound_adjusted is not None
        assert (cell.upper_bound_adjusted <= 0) == (cell.p_worse <= 0.025), (lost, cell)


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [1, 2])
def test_more_problems_are_called_for_only_where_these_do_not_detect_the_effect(tmp_path, grouped):
    """By the minimum detectable effect beside it, which is simulated; groups of problems are counted as problems."""
    runs = {"dense": random_run(0, 0.6, problems=60), "pruned": random_run(1, 0.55, problems=60)}
    path, enough = tmp_path / "s.db", set[bool]()
    with Store(path, create=True) as store:
        firsts = {f"a-{number}": f"a-{number // grouped * grouped}" for number in range(60)}
        store.add_problems([ProblemRow("a", one, "1", "exact", (), "d", group=first) for one, first in firsts.items()])
    fill(path, runs)
    for margin in (0.01, 0.225, 0.3, 0.5):
        (entry,) = compare(path, "dense", margin=margin, resamples=200).others
        cell = entry.primary
        assert (cell.n, cell.all_problems) == (60 // grouped, 60) and cell.mde and cell.settle.problems
        enough.add(cell.mde <= cell.settle.effect)
        assert (cell.settle.problems <= 60) == (cell.mde <= cell.settle.effect)
        said = settled_by([entry])
        assert (said == "") == (cell.settle.problems <= 60)
        assert not said or said == f"about {two_digits(cell.settle.problems):,} problems"
    assert enough == {True, False}


def place_of(question):
    """By which bets take the problem with this question."""
    return sha256(f"bets|{question}".encode()).digest()


@pytest.mark.slow
def test_the_order_of_bets_follows_from_the_questions_whatever_file_id_or_group_they_come_in(tmp_path):
    runs = {"dense": random_run(0, 0.6, problems=40), "pruned": random_run(1, 0.5, problems=40)}
    found, gains = [], dict[int, float]()
    questions = [question_key(f"question {p}") for p in range(40)]
    for number, task in enumerate(("a", "z-another-file")):
        names = {f"a-{p}": f"{task}-{(7 * p) % 40 if number else p}" for p in range(40)}
        store = tmp_path / f"{number}.db"
        renamed = {
            model: [replace(s, task=task, problem_id=names[s.problem_id]) for s in rows] for model, rows in runs.items()
        }
        with Store(store, create=True) as opened:
            opened.add_problems(
                ProblemRow(task, names[f"a-{p}"], "1", "exact", (), "d", question=key)
                for p, key in enumerate(questions)
            )
        (entry,) = compare(fill(store, renamed), "dense", resamples=200).to_json()["others"]
        found.append(entry)
    for entry in found:
        del entry["tasks"], entry["warnings"]
    assert found[0] == found[1]
    for p in range(40):
        ours, theirs = (mean(s.correct for s in runs[m] if s.problem_id == f"a-{p}" and s.budget) for m in runs)
        gains[p] = theirs - ours
    with Store(tmp_path / "grouped.db", create=True) as opened:
        opened.add_problems(
            ProblemRow("a", f"a-{p}", "1", "exact", (), "d", question=key, group="a-0" if p in (0, 11, 12) else None)
            for p, key in enumerate(questions)
        )
    (entry,) = compare(fill(tmp_path / "grouped.db", runs), "dense", resamples=200).to_json()["others"]
    first, *rest = sorted((0, 11, 12), key=lambda p: place_of(questions[p]))
    order = [p for p in sorted(range(40), key=lambda p: place_of(questions[p])) if p not in rest]
    bets = [mean(gains[one] for one in (0, 11, 12)) if p == first else gains[p] for p in order]
    strata = [np.array(bets)[:, None]]
    assert entry["primary"]["n"] == 38
    assert entry["primary"]["lower_bound"] == pytest.approx(betting.lower_bound(strata, nulls=[-0.02])[0])
    assert entry["primary"]["p_worse"] == pytest.approx(betting.p_value([-strata[0]])[0])


def test_only_what_both_have_is_compared(tmp_path):
    base = random_run(0, 0.6, problems=10, draws=2)
    unfinished = [s for s in random_run(1, 0.6, problems=12, draws=4, budgets=(16, 64, 256))
                  if s.problem_id != "a-3" and (s.problem_id, s.budget, s.draw) != ("a-5", 64, 1)]  # fmt: skip
    (entry,) = compare(fill(tmp_path / "s.db", {"dense": base, "pruned": unfinished}), "dense").to_json()["others"]
    assert list(entry["tasks"]["a"]["budgets"]) == [16, 64]
    cell = entry["tasks"]["a"]["budgets"][64]
    assert (cell["n"], cell["samples"], cell["base_samples"]) == (8, 4, 2)
    assert entry["primary"]["n"] == 8
    kept = [s for s in unfinished if s.budget == 64 and s.problem_id in {f"a-{i}" for i in range(10)}]
    assert cell["accuracy"] == pytest.approx(mean(s.correct for s in kept if s.problem_id != "a-5"))
    notes = " | ".join(entry["warnings"])
    for part in (
        "a: 8 of 12 problems",
        "budgets 0, 256",
        "the mean over 4 draws is compared with that over the base's 2",
    ):
        assert part in notes


def test_tasks_that_only_one_has_are_left_out_and_named(tmp_path):
    runs = {"dense": random_run(0, 0.6, tasks=("a", "b")), "pruned": random_run(1, 0.6, tasks=("b", "c"))}
    (entry,) = compare(fill(tmp_path / "s.db", runs), "dense").to_json()["others"]
    assert list(entry["tasks"]) == ["b"] and "macro" not in entry
    assert "task a, c" in entry["warnings"][0]


@pytest.mark.slow
def test_other_plans_are_left_out_unless_named(tmp_path):
    runs = {"dense": random_run(0, 0.6), "pruned": random_run(1, 0.6), "legacy": random_run(2, 0.6)}
    plans = {"legacy": {"mode": "legacy"}, "pruned": {"seed": 7, "samples": 3}}
    path = fill(tmp_path / "s.db", runs, plans)
    result = compare(path, "dense").to_json()
    assert [entry["model"] for entry in result["others"]] == ["pruned"]
    left_out, _ = result["warnings"]
    assert "legacy" in left_out and "mode" in left_out
    (entry,) = compare(path, "dense", ["legacy"]).to_json()["others"]
    assert "mode is legacy, not strict" in entry["warnings"][0]
    with pytest.raises(PrunusError, match=r"nothing to compare with legacy .*mode is strict, not legacy"):
        compare(path, "legacy")


@pytest.mark.parametrize(
    ("limit", "said"), [(9, "limit is 9, not 5"), (None, "limit is all, not 5"), (5, "problems differ")]
)
def test_other_problems_are_told_without_their_hashes(tmp_path, limit, said):
    plans = {"dense": {"limit": 5, "problems": "59ecef95"}, "pruned": {"limit": limit, "problems": "21a514d9"}}
    runs = {"dense": random_run(0, 0.6), "pruned": random_run(1, 0.6)}
    (entry,) = compare(fill(tmp_path / "s.db", runs, plans), "dense", ["pruned"]).to_json()["others"]
    assert said in entry["warnings"][0] and "21a514d9" not in str(entry["warnings"])


@pytest.mark.slow
def test_a_context_that_cut_no_answer_is_no_difference_and_another_one_is(tmp_path):
    runs = {name: random_run(number, 0.6) for number, name in enumerate(("dense", "short", "same", "longer"))}
    plans = {name: {"context": size} for name, size in (("dense", 4096), ("same", 4096), ("longer", 8192))}
    result = compare(fill(tmp_path / "s.db", runs, plans), "dense").to_json()
    assert [entry["model"] for entry in result["others"]] == ["short", "same"]
    assert "context is 8192, not 4096" in result["warnings"][0]


@pytest.mark.slow
def test_names(tmp_path):
    runs = {"dense": random_run(0, 0.6), "pruned": random_run(1, 0.6)}
    path = fill(tmp_path / "s.db", runs)
    with Store(path) as store:
        store.add_run(Run.of("1abc00000000", {"name": "pruned"}, PLAN, {}))
        assert store.find_run("pruned").run_id == "1fffffffffff"  # the other one has no rows
    assert compare(path, "0f", ["1f"]).to_json()["others"][0]["model"] == "pruned"
    for base, others, message in (
        ("none", None, r"no run of 'none'.*dense.*pruned"),
        ("dense", ["0f"], "cannot be compared with itself"),
        ("dense", ["1abc"], "shares no finished problem"),
    ):
        with pytest.raises(PrunusError, match=message) as error:
            compare(path, base, others)
        assert "\n" not in str(error.value)
    assert "pruned (1abc00000000) is left out" in compare(path, "dense").to_json()["warnings"][0]


@pytest.mark.parametrize("settings", [{"margin": -0.01}, {"margin": 2}, {"resamples": 0}])
def test_settings_are_checked(tmp_path, settings):
    with pytest.raises(PrunusError, match=next(iter(settings))):
        compare(tmp_path / "none.db", "dense", **settings)


def test_one_positive_budget_decides_by_its_accuracy(tmp_path):
    runs = {name: random_run(seed, 0.6, budgets=(0, 64)) for seed, name in enumerate(("dense", "pruned"))}
    (entry,) = compare(fill(tmp_path / "s.db", runs), "dense").to_json()["others"]
    at_64 = entry["tasks"]["a"]["budgets"][64]
    assert entry["primary"]["difference"] == at_64["difference"] and entry["primary"]["p"] == pytest.approx(at_64["p"])


def test_summary_by_hand(tmp_path):
    run = [
        row("a", 0, 16, 0, True, answer_tokens=600, ended="natural", thinking_tokens=10),
        row("a", 0, 16, 1, False, answer=None, status="no_answer", answer_truncated=True),
        row("a", 1, 16, 0, True, reopened_think=True),
        row("a", 1, 16, 1, True),
        row("a", 2, 16, 0, False),  # its second draw is missing
    ]
    with Store(fill(tmp_path / "s.db", {"dense": run})) as store:
        result = summarise(store, "0" + "f" * 11).to_json()
    json.dumps(result, allow_nan=False)
    task = result["tasks"]["a"]
    assert (task["problems"], task["started"], task["samples"]) == (2, 3, 2)
    assert task["slope"] is None and task["auc"]["value"] == 0.75 and task["gain"]["value"] == 0
    assert task["scaling"] is None and task["parallel"] == []
    assert task["performance"] == {"value": 0.75, "budget": 16}
    assert (task["control"], task["control_total"]) == (1, 0.75)
    assert task["monotonicity"] == {"steps": 0, "rises": 0, "falls": 0}
    cell = task["budgets"][16]
    assert (cell["n"], cell["samples"], cell["accuracy"]) == (2, 2, 0.75)
    assert cell["se"] == pytest.approx(0.25) and 0 < cell["low"] < 0.75 < cell["high"] < 1
    assert cell["pass_at"] == {1: 0.75, 2: 1.0} and cell["maj_at"] == {1: 0.75, 2: 1.0}
    assert cell["tokens"]["thinking"]["mean"] == (10 + 3 * 16) / 4
    assert cell["tokens"]["total"]["mean"] == (610 + 3 * 21) / 4
    assert cell["tokens_per_correct"] == (610 + 3 * 21) / 3
    assert cell["best_of"]["logprob"] is cell["best_of"]["self_certainty"] is None  # these rows have no scores
    # Shortest of two: of problem 0 the second (21 tokens, wrong), of problem 1 either (right).
    assert cell["best_of"]["shortest"] == {1: 0.75, 2: 0.5}
    assert cell["repetition"] is None and cell["looping"] == 0
    shares = {"forced": 0.75, "leaked": 0.25, "no_answer": 0.25, "malformed": 0, "failed": 0, "truncated": 0.25,
              "reopened": 0.25}  # fmt: skip
    assert {name: cell[name] for name in shares} == shares


def test_summary_has_scores_and_repetition_where_rows_have_them(tmp_path):
    run = [
        row("a", 0, 16, 0, True, logprob=-0.2, self_certainty=3.0, repetition=0.0),
        row("a", 0, 16, 1, False, logprob=-0.4, self_certainty=5.0, repetition=0.5, loops=True),
        row("a", 1, 16, 0, True, logprob=-0.1, self_certainty=2.0, repetition=1.0, loops=True),
        row("a", 1, 16, 1, False, logprob=None, self_certainty=None, repetition=0.0, thinking_tokens=0,
            answer_tokens=0),
    ]  # fmt: skip
    old = [row("a", 2, 16, draw, True) for draw in range(2)]  # of a store without these columns
    with Store(fill(tmp_path / "s.db", {"dense": run, "mixed": run + old})) as store:
        new, mixed = (summarise(store, run.run_id).to_json()["tasks"]["a"]["budgets"][16] for run in store.runs())
    assert new["best_of"]["logprob"] == {1: 0.5, 2: 1.0}  # the draw without a token is not taken
    assert new["best_of"]["self_certainty"] == {1: 0.5, 2: 0.5}
    assert (new["repetition"], new["looping"]) == (0.375, 0.5)
    assert mixed["best_of"]["logprob"] is None and mixed["repetition"] is None
    assert mixed["looping"] == 2 / 6


def test_summary_of_curves_and_several_tasks(tmp_path):
    run = random_run(3, 0.5, tasks=("a", "b"), problems=20, draws=3)
    with Store(fill(tmp_path / "s.db", {"dense": run})) as store:
        result = summarise(store, "0" + "f" * 11).to_json()
    accuracy = {
        task: [mean(s.correct for s in run if (s.task, s.budget) == (task, budget)) for budget in BUDGETS]
        for task in "ab"
    }
    for task in "ab":
        at_0, at_16, at_64 = accuracy[task]
        curve = result["tasks"][task]
        assert [cell["accuracy"] for cell in curve["budgets"].values()] == pytest.approx(accuracy[task])
        assert curve["auc"]["value"] == pytest.approx((at_16 + at_64) / 2)
        assert curve["slope"]["value"] == pytest.approx((at_64 - at_16) / 2)
        assert curve["gain"]["value"] == pytest.approx(at_64 - at_0)
        # Thinking tokens are the budgets, five more are the answer's.
        area = (at_0 + at_16) / 2 * 16 / 64 + (at_16 + at_64) / 2 * 48 / 64
        assert curve["auc_tokens"]["value"] == pytest.approx(area) and curve["auc_tokens"]["se"] > 0
        assert (curve["auc_tokens"]["from"], curve["auc_tokens"]["to"]) == (5, 69)
        slopes = [(at_16 - at_0) / 16, (at_64 - at_0) / 64, (at_64 - at_16) / 48]
        assert curve["scaling"]["value"] == pytest.approx(1000 * mean(slopes))
        assert curve["performance"]["value"] == pytest.approx(max(at_0, at_16, at_64))
        assert curve["monotonicity"]["rises"] == (at_16 > at_0) + (at_64 > at_16)


def test_summary_of_a_run_without_rows_or_right_answers(tmp_path):
    path = fill(tmp_path / "s.db", {"empty": [], "wrong": grid(lambda *_: False, problems=1, budgets=(16,))})
    with Store(path) as store:
        assert summarise(store, "0" + "f" * 11).to_json()["tasks"] == {}
        cell = summarise(store, "1" + "f" * 11).to_json()["tasks"]["a"]["budgets"][16]
    assert cell["tokens_per_correct"] is None and cell["se"] is None and cell["accuracy"] == 0 < cell["high"] < 1


@pytest.mark.slow
def test_false_claims_among_six_runs_stay_below_5_percent():
    """Six models as good as the base, on one set of problems: any `worse` or `better` at all is a false claim."""
    rng, benchmarks, problems = np.random.default_rng(5), 600, 100
    chance = rng.beta(0.4, 0.4, (benchmarks, problems, 1))
    base = rng.random((benchmarks, problems, 1)) < chance
    others = rng.random((benchmarks, problems, 6)) < chance
    differences = others.astype(float) - base
    columns = [np.ascontiguousarray(differences.transpose(1, 0, 2).reshape(problems, -1))]
    p = direction_p(columns, mcnemar_C=np.full(columns[0].shape[1], True)) | {
        "p_margin": betting.p_value(columns, 0.02)
    }
    words = []
    for page in range(benchmarks):
        adjusted = [paired.holm(p[name][6 * page : 6 * page + 6]) for name in CLAIMS]
        words.append([word_of(*of_run) for of_run in zip(*adjusted, strict=True)])
    false = mean(bool({"worse", "better"} & set(run)) for run in words)
    assert 0.005 < false < 0.05 + 4 * sqrt(0.05 * 0.95 / benchmarks)
    flat = [word for run in words for word in run]
    assert flat.count("cannot tell") > 0.96 * len(flat)  # 100 problems with one draw each do not settle two points


@pytest.mark.slow
def test_a_margin_of_a_third_of_what_the_base_solves_is_warned_of(tmp_path):
    dense = grid(lambda _, problem, *__: problem == 0, problems=20)
    path = fill(tmp_path / "s.db", {"dense": dense, "pruned": grid(lambda *_: False, problems=20)})
    warning, _ = compare(path, "dense", margin=0.04).to_json()["warnings"]
    assert warning.startswith("the base solves 5.0 % on average over the budgets") and "would be 80 % of it" in warning
    assert "4 points, would be 80 %" in warning
    assert "2 points, would be 40 %" in compare(path, "dense", margin=0.02).to_json()["warnings"][0]
    assert compare(path, "dense", margin=0.016).to_json()["warnings"] == [NO_CHAIN_ENDS]
    assert "would be all of it" in compare(path, "dense", margin=0.05).to_json()["warnings"][0]
