"""Whatever is named, left out, drawn again or removed after looking: verdicts are corrected for all of it."""

from dataclasses import replace
from math import sqrt

import pytest
from comparable_runs import PLAN, fill, grid
from said import page_of
from simulations import one_comparison, several_comparisons
from staged_runs import IDS, add

from prunus.questions import question_key
from prunus.reporting import prose
from prunus.reporting.report_data import ReportData
from prunus.results.comparison import compare
from prunus.results.family import Family
from prunus.results.verdicts import rare_endings, still_stops
from prunus.results.vocabulary import Verdict
from prunus.settings.margins import Margin
from prunus.statistics.paired import holm
from prunus.store.rows import ProblemRow, Run
from prunus.store.store import Store

AT = {"budgets": [64]}
MISSING = "30 of 120 problems seen before are missing, so these may have been chosen"
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
        store.add_run(Run.of(run_id, first.model, PLAN | AT | plan, {"grader": "1"}))
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
        model = store.find_run("v0").model | {"checksum": "c"}
        for run_id, more in (("a" * 12, {}), ("b" * 12, about)):
            store.add_run(Run.of(run_id, model | more, PLAN | AT, {"grader": "1"}))
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
        base, other = (run.run_id for run in store.runs() if run.plan.tasks == ("a",))
    assert compare(path, base, [other], resamples=100).to_json()["looks"]["bases"] == 2


def bases_of(found):
    return found.looks.bases


def file_of(path, task, ids, rows=None, **plan):
    """Runs of both models on a file of these questions, which has ids of its own."""
    rows = rows or dict.fromkeys(("dense", "pruned"), grid(lambda *_: True, problems=len(IDS)))
    names = {f"a-{p}": f"{task}-{p}" for p in ids}
    with Store(path, create=True) as store:
        store.add_problems(
            ProblemRow(task, names[one], "1", "exact", (), "d", question=question_key(one)) for one in names
        )
    for model, samples in rows.items():
        own = [replace(s, task=task, problem_id=names[s.problem_id]) for s in samples if s.problem_id in names]
        yield add(path, model, own, ids=[*names.values()], problems=task, tasks=[task], **plan)


@pytest.mark.slow
def test_the_same_questions_under_other_ids_and_answer_caps_count_and_what_was_left_out_is_said(tmp_path):
    path = tmp_path / "s.db"
    base, other = file_of(path, "a", range(120), answer_tokens=16)
    assert bases_of(compare(path, base, [other], resamples=100)) == 1
    renamed = [*file_of(path, "renamed", range(120), answer_tokens=16)]
    picked = [*file_of(path, "picked", range(30, 120), answer_tokens=16)]
    capped = [*file_of(path, "a", range(120), answer_tokens=32)]
    elsewhere = [*file_of(path, "elsewhere", (), answer_tokens=16)]
    for (one, two), missing in ((renamed, False), (picked, True), (capped, False), ((base, other), False)):
        found = compare(path, one, [two], resamples=100)
        assert bases_of(found) == 4 and found.others[0].warnings.count(MISSING) == missing
    assert len(elsewhere) == 2  # of no question of these, so it does not count


@pytest.mark.slow
def test_draws_of_the_base_that_stood_before_and_copies_of_it_count(tmp_path):
    """Who may choose among bases after seeing the variant chooses the one that looks worst."""
    path, rows = tmp_path / "s.db", grid(lambda *_: True, problems=120, draws=4)
    bases = [add(path, "dense", rows, draws=draws) for draws in (2, 3, 4)]
    other = add(path, "pruned", rows, draws=2)
    for base in bases:
        assert bases_of(compare(path, base, [other], resamples=100)) == 3
    later = add(path, "dense", rows, draws=1)  # its look is part of the game of bets
    found = compare(path, later, [other], resamples=100)
    assert bases_of(found) == 3 and found.others[0].grown
    with Store(path) as store:
        run = store.run(bases[0])
        for name, parameters in (("copy", 7), ("larger", 8), ("again", 7)):
            plan = run.plan | {"samples": 2}
            model = run.model | {"checksum": name, "name": name, "parameters": parameters}
            store.add_run(Run.of(name, model, plan, {"grader": "1"}))
            store.add_samples(name, [row for row in rows if row.draw < 2])
    found = compare(path, "copy", [other], resamples=100)
    assert bases_of(found) == 2, "by weights of another checksum, which are as many"
    assert {entry.model for entry in found} == {"pruned"}


@pytest.mark.slow
def test_a_base_that_was_made_from_a_model_of_the_store_is_said_to_be(tmp_path):
    path, rows = tmp_path / "s.db", grid(lambda *_: True, problems=120)
    dense, pruned = (add(path, name, rows) for name in ("dense", "pruned"))
    with Store(path) as store:
        run = store.run(pruned)
        for name, source in (("first", "dense"), ("second", "first")):
            steps = [
                {**step, "source": {"name": source, "checksum": source}} for step in run.model.manifest.data["history"]
            ]
            model = {"name": name, "checksum": name, "manifest": {"history": steps}}
            store.add_run(Run.of(name, model, run.plan, {"grader": "1"}))
            store.add_samples(name, rows)
    said = "first was itself made from dense: losses of several steps, each within its margin, add up, so compare with"
    assert any(text.startswith(said) for text in compare(path, "first", ["second"], resamples=100).warnings)
    assert not any("was itself made" in text for text in compare(path, dense, ["first"], resamples=100).warnings)


@pytest.mark.slow
def test_changed_groups_begin_a_series_and_other_names_of_them_do_not(tmp_path):
    path, rows = tmp_path / "s.db", grid(lambda _, p, *__: p % 7, problems=120)
    base, other = (add(path, name, rows) for name in ("dense", "pruned"))

    def found(**first_of):
        with Store(path) as store:
            groups = {one.replace("-", "_"): one for one in IDS} | first_of
            store.add_problems(
                ProblemRow("a", one, "1", "exact", (), "d", group=groups[one.replace("-", "_")]) for one in IDS
            )
            contradictions = [*store.log().contradictions(store.runs(), store.searches(), store.removed())]
        assert not contradictions
        (entry,) = compare(path, base, [other], margin=0.3, resamples=100)
        return entry, next((text for text in entry.warnings if "groups changed" in text), "")

    first, said = found()
    assert not first.grown and not said
    entry, said = found(a_4="a-3")
    assert len(entry.grown or ()) == 2 and "its problems or their groups changed after its rows could be seen" in said
    assert "p is multiplied by 6" in said and entry.primary.n == 119
    assert entry.primary.p_margin == pytest.approx(min(1, 6 * first.primary.p_margin), rel=0.3)
    again, _ = found(a_3="a-4", a_4="a-4")
    assert len(again.grown or ()) == 2, "the same problems are joined"
    entry, said = found()
    assert len(entry.grown or ()) == 3 and "p is multiplied by 12" in said


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
def test_the_same_questions_in_other_forms_are_wrongly_non_inferior_in_5_percent_at_most():
    runs = 200
    for name, (earlier, now) in several_comparisons.same_questions_again(200, 1, 0.05, runs).items():
        assert earlier > 0.06 and now <= 0.05 + 3 * sqrt(0.05 * 0.95 / runs), name


@pytest.mark.slow
def test_what_the_title_says_of_the_best_of_many_holds():
    interval, bound, above = several_comparisons.of_the_best(500, 4, 0.01, 100)
    assert interval > 0.1 and above > 0.005 and bound <= 0.05 + 4 * sqrt(0.05 * 0.95 / 100)


@pytest.mark.slow
def test_a_model_whose_chains_are_cut_is_not_said_to_still_stop(tmp_path):
    by_margin, by_us = one_comparison.said_to_still_stop(0.06, 0.015, 500, 4, 0.05, 20)
    assert by_margin > 0 == by_us
    ends = one_comparison.blank_ending
    assert still_stops(ends(0.95, 0.95), Verdict.NON_INFERIOR, Margin(0.05))
    assert not still_stops(ends(0.95, 0.96), Verdict.WORSE_WITHIN_MARGIN, Margin(0.05))  # a loss is shown
    assert not still_stops(ends(0.49, 0.5), Verdict.NON_INFERIOR, Margin(0.05))  # most chains are cut
    assert not still_stops(ends(0.8, 0.8), Verdict.NON_INFERIOR, Margin(0.3))  # more than a third of what the base has
    for base, part in ((0.06, "would be 83 % of them"), (0.04, "all of them")):
        assert part in (rare_endings(Margin(0.05), base) or "")
    assert rare_endings(Margin(0.05), 0.16) is None and rare_endings(Margin(0.05), 0.149) is not None
    seldom = grid(lambda _, p, *__: p % 2, problems=100, budgets=(64,))
    rows = [replace(row, ended="natural" if int(row.problem_id[2:]) % 20 == 0 else "forced") for row in seldom]
    found = compare(fill(tmp_path / "s.db", {"dense": rows, "v0": rows}), "dense", margin=0.2, resamples=100)
    assert any("5.0 % of the chains of the base end by themselves" in text for text in found.warnings)
    (entry,) = found
    title = prose.title(page_of([replace(entry, stops=Verdict.NON_INFERIOR)], ["W"], 0))
    assert title.endswith("but most of its thinking is cut") and title.startswith("W loses less than ")
