"""Whatever is named, left out, drawn again or removed after looking: verdicts are corrected for all of it."""

from dataclasses import replace
from math import sqrt

import pytest
from simulations import one_comparison, several_comparisons
from test_comparison import PLAN, fill, grid
from test_stages import IDS, add

from prunus.reporting import prose
from prunus.reporting.report_data import ReportData
from prunus.results.comparison import compare
from prunus.results.family import Family
from prunus.results.verdicts import rare_endings, still_stops
from prunus.settings.margins import Margin
from prunus.statistics.paired import holm
from prunus.store.rows import Run
from prunus.store.store import Store

AT = {"budgets": [64]}
SAME = grid(lambda _task, p, *_: p % 2, problems=60, budgets=(64,))


def of(found, model="v0"):
    return next(entry for entry in found["others"] if entry["model"] == model)["primary"]


def store_of(path, **plans):
    """A dense run and variants, all with the same rows; plans: of each variant, besides the usual one."""
    whole = {name: AT | plan for name, plan in ({"dense": {}} | plans).items()}
    return fill(path, {"dense": SAME} | dict.fromkeys(plans, SAME), whole)


def again(path, model, run_id, **plan):
    """Add a run of a model of the store under another plan."""
    with Store(path) as store:
        first = store.find_run(model)
        store.add_run(Run(run_id, first.model, PLAN | AT | plan, {"grader": "1"}))
        store.add_samples(run_id, SAME)


@pytest.mark.slow
def test_who_is_named_changes_no_verdict(tmp_path):
    path = store_of(tmp_path / "s.db", **{f"v{k}": {} for k in range(14)})
    records = [compare(path, "dense", names, margin=0.3, resamples=100) for names in (None, ["v0"])]
    whole, named = (one.to_json() for one in records)
    assert of(named)["p_margin_adjusted"] == of(whole)["p_margin_adjusted"] == 14 * of(named)["p_margin"] < 1
    assert of(named)["lower_bound_adjusted"] == of(whole)["lower_bound_adjusted"] < of(named)["lower_bound"]
    assert named["looks"] == {"comparisons": 14, "others": 13, "removed": 0, "bases": 1}
    assert "14 comparisons that could be shown from this store, among them 13 of runs that are not shown" in (
        prose.corrected_for(records[1].looks)
    )
    with Store(path) as store:
        ids = {store.find_run(name).run_id for name in ("dense", "v0")}
        page = ReportData.read(store, ids, margin=0.3).comparison
    assert page.others[0].primary.p_margin_adjusted == of(whole)["p_margin_adjusted"]


@pytest.mark.slow
@pytest.mark.parametrize("plan", [{"seed": 1}, {"budgets": [64, 128]}, {"batch_size": 7}])
def test_other_draws_of_a_variant_count_and_other_sizes_do_not(tmp_path, plan):
    path = store_of(tmp_path / "s.db", v0={})
    alone = of(compare(path, "dense", ["v0"], margin=0.3, resamples=100).to_json())
    assert alone["p_margin_adjusted"] == alone["p_margin"]
    first = "1" + "f" * 11
    again(path, "v0", "a" * 12, samples=2)  # the same rows, of more draws: one game
    assert (
        of(compare(path, "dense", [first], margin=0.3, resamples=100).to_json())["p_margin_adjusted"]
        >= alone["p_margin"]
    )
    assert compare(path, "dense", [first], margin=0.3, resamples=100).to_json()["looks"]["comparisons"] == 1
    again(path, first, "b" * 12, **plan)
    assert compare(path, "dense", [first], margin=0.3, resamples=100).to_json()["looks"]["comparisons"] == 2
    again(path, "dense", "c" * 12, **plan)  # another run that could be the base
    found = compare(path, "0" + "f" * 11, [first], margin=0.3, resamples=100).to_json()["looks"]
    assert (found["comparisons"], found["bases"]) == (4, 2)


@pytest.mark.slow
@pytest.mark.parametrize("about", [{"serving": {"engine_args": {"x": 1}}}, {"content": "another chat template"}])
def test_other_servings_and_templates_of_a_variant_count(tmp_path, about):
    """Weights alone do not tell what was compared: the best of 20 engine settings could be shown, too."""
    path = store_of(tmp_path / "s.db", v0={})
    with Store(path) as store:
        model = {**store.find_run("v0").model, "checksum": "c"}
        for run_id, more in (("a" * 12, {}), ("b" * 12, about)):
            store.add_run(Run(run_id, model | more, PLAN | AT, {"grader": "1"}))
            store.add_samples(run_id, SAME)
    assert compare(path, "dense", ["a" * 12], margin=0.3, resamples=100).to_json()["looks"]["comparisons"] == 3


@pytest.mark.slow
def test_a_copy_of_a_file_under_another_name_counts(tmp_path):
    """Its problems are the same, or some of them, so who chooses between the two files chooses after seeing."""
    path = tmp_path / "s.db"
    for task, ids in (("a", IDS), ("copy", IDS[:50])):
        rows = [replace(row, task=task) for row in grid(lambda *_: True, problems=len(ids))]
        for name in ("dense", "pruned"):
            add(path, name, rows, ids=ids, problems=task, tasks=[task])
    with Store(path) as store:
        base, other = (run.run_id for run in store.runs() if run.plan["tasks"] == ["a"])
    assert compare(path, base, [other], resamples=100).to_json()["looks"]["bases"] == 2


@pytest.mark.slow
def test_runs_that_were_removed_count(tmp_path):
    path = store_of(tmp_path / "s.db", v0={}, v1={}, v2={"mode": "legacy"})
    before = compare(path, "dense", ["v0"], margin=0.3, resamples=100).to_json()
    with Store(path) as store:
        for name in ("v1", "v2"):
            store.remove_run(name)
    after = compare(path, "dense", ["v0"], margin=0.3, resamples=100).to_json()
    assert after["looks"] == {"comparisons": 2, "others": 0, "removed": 1, "bases": 1}
    assert of(after)["p_margin_adjusted"] == of(before)["p_margin_adjusted"] == 2 * of(after)["p_margin"]
    with Store(path) as store:  # removed, and drawn again
        run = store.find_run("v0")
        store.remove_run("v0")
        store.add_run(replace(run, stages=(), planned=None))
        store.add_samples(run.run_id, SAME)
    assert compare(path, "dense", ["v0"], margin=0.3, resamples=100).to_json()["looks"]["comparisons"] == 3


def test_adjusted_p_of_games_and_of_runs_that_are_gone():
    p = [0.01, 0.04, 0.03, 0.005]
    places = [(run, "") for run in range(4)]
    assert Family(range(4)).adjusted(p, places) == pytest.approx(holm(p))
    assert Family(range(4), bases=3).adjusted(p, places) == pytest.approx(3 * holm(p))
    assert Family(range(4), unseen=2).adjusted(p, places) == pytest.approx(holm([*p, 1, 1])[:4])
    # The first two are one game, of which the smaller p is what the game guarantees.
    game = Family([0, 0, 1, 2]).adjusted(p, places)
    assert game == pytest.approx([holm([0.01, 0.03, 0.005])[0], holm([0.04, 0.03, 0.005])[0], 0.03, 0.015])


@pytest.mark.slow
def test_the_best_of_many_is_wrongly_non_inferior_in_5_percent_at_most():
    runs = 100
    for name, (alone, corrected) in several_comparisons.chosen_after_seeing(200, 1, 0.05, runs).items():
        assert alone > 0.12, name
        if "one after another" not in name:
            assert corrected <= 0.05 + 4 * sqrt(0.05 * 0.95 / runs), name


@pytest.mark.slow
def test_what_the_title_says_of_the_best_of_many_holds():
    interval, bound, above = several_comparisons.of_the_best(500, 4, 0.01, 100)
    assert interval > 0.1 and above > 0.005 and bound <= 0.05 + 4 * sqrt(0.05 * 0.95 / 100)


@pytest.mark.slow
def test_a_model_whose_chains_are_cut_is_not_said_to_still_stop(tmp_path):
    by_margin, by_us = one_comparison.said_to_still_stop(0.06, 0.015, 500, 4, 0.05, 20)
    assert by_margin > 0 == by_us
    ends = one_comparison.blank_ending
    assert still_stops(ends(0.95, 0.95), "non-inferior", Margin(0.05))
    assert not still_stops(ends(0.95, 0.96), "worse, within the margin", Margin(0.05))  # a loss is shown
    assert not still_stops(ends(0.49, 0.5), "non-inferior", Margin(0.05))  # most chains are cut
    assert not still_stops(ends(0.8, 0.8), "non-inferior", Margin(0.3))  # more than a third of what the base has
    for base, part in ((0.06, "would be 83 % of them"), (0.04, "all of them")):
        assert part in (rare_endings(Margin(0.05), base) or "")
    assert rare_endings(Margin(0.05), 0.16) is None and rare_endings(Margin(0.05), 0.149) is not None
    seldom = grid(lambda _, p, *__: p % 2, problems=100, budgets=(64,))
    rows = [replace(row, ended="natural" if int(row.problem_id[2:]) % 20 == 0 else "forced") for row in seldom]
    found = compare(fill(tmp_path / "s.db", {"dense": rows, "v0": rows}), "dense", margin=0.2, resamples=100)
    assert any("5.0 % of the chains of the base end by themselves" in text for text in found.warnings)
    (entry,) = found
    title = prose.title([replace(entry, stops="non-inferior")], ["W"], "dense", 0)
    assert title.endswith("but most chains are cut") and title.startswith("W loses less than ")
