"""What is chosen of made-up forms, what it is said to take, and what is claimed; its check, and its page."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.small_choice import FORMS, Made, declared_of, sample

from prunus.disk import write_text
from prunus.errors import PrunusError
from prunus.plain_data import canonical_json
from prunus.questions import order_of_bets
from prunus.store.stored import Adaptive
from prunus.studies.choose.command import is_fixed
from prunus.studies.choose.files import read_choice
from prunus.studies.choose.outcome import Outcome
from prunus.studies.choose.page import front, page
from prunus.studies.choose.records import Chosen
from prunus.studies.choose.rows import FormRows
from prunus.studies.verify import verify


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "results.db", declared_of())


def states(shown):
    return {(row.form, row.budget): row.state for row in shown.choices}


def test_of_two_that_are_as_accurate_the_faster_is_chosen_and_the_hopeless_form_is_dropped(made):
    shown = made.outcome().shown()
    assert (shown.chosen.form, shown.chosen.budget) == ("gguf-q8_0", 256)
    assert states(shown)["gguf-q4_0", 256] == "worse"
    assert made.asked[0] == (tuple(FORMS), 0, 32)  # the pilot
    assert "gguf-q4_0" not in made.asked[-1][0]
    assert shown.excess <= 0.05
    assert shown.stopped
    assert shown.claims[0].startswith("no other choice that fits is more than")
    assert any("cheapest" in note for note in shown.notes)


def test_its_accuracy_is_that_of_its_rows_after_the_pilot_and_lies_in_its_bounds(made):
    shown = made.outcome().shown()
    rounds = made.declared.order[32 : 32 + shown.rounds]
    problems = {problem for one in rounds for _, problem in one}
    rows = made.store.samples(shown.chosen.run)
    right = [one.correct for one in rows if one.budget == 256 and one.problem_id in problems]
    assert shown.chosen.accuracy == pytest.approx(np.mean(right))
    assert shown.low < shown.chosen.accuracy < shown.high


def test_memory_and_seconds_are_those_of_the_sum_by_hand(made):
    row = made.outcome().shown().chosen
    assert row.bytes == 500_000_000 + (60 + 256 + 16) * 1000 + 100_000_000
    assert row.seconds == pytest.approx(0.1 + (200 + 2 + 8) * 0.02)


def test_what_is_too_large_or_too_slow_is_not_evaluated_further(tmp_path):
    made = Made(tmp_path / "results.db", declared_of(memory=650_000_000, seconds=3.0))
    shown = made.outcome().shown()
    assert states(shown)["dense", 64] == "too large"
    assert states(shown)["gguf-q8_0", 256] == "too slow"
    assert shown.chosen is not None
    assert shown.chosen.name == "small gguf-q8_0, 64 tokens"
    assert not any("dense" in runs for runs, _, _ in made.asked)


MISSED = "; not counted, since they miss a limit by 15 % or less:"


@pytest.mark.parametrize(
    ("seconds", "memory", "says"),
    [
        (4.0, 2_000_000_000, f"{MISSED} small gguf-q8_0, 256 tokens (4.3 s)"),
        (3.7, 2_000_000_000, ""),
        (4.9, 600_400_000, "; it takes 4.3 of 4.9 s and 600.3 MB of 600.4 MB itself"),
        (5.1, 600_000_000, f"{MISSED} small gguf-q8_0, 64 tokens (600.1 MB), small gguf-q8_0, 256 tokens (600.3 MB)"),
    ],
)  # fmt: skip
def test_what_is_within_a_seventh_of_a_limit_is_named_in_the_sentence(tmp_path, seconds, memory, says):
    made = Made(tmp_path / "results.db", declared_of(60, seconds=seconds, memory=memory))
    assert made.outcome().shown().claims[0].partition("at 95 %")[2] == says


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"memory": 1_000_000}, "nothing fits into 1.0 MB"), ({"seconds": 0.1}, "nothing answers in 0.1 s")],
)
def test_without_anything_that_fits_it_says_what_the_least_is(tmp_path, changes, says):
    shown = Made(tmp_path / "results.db", declared_of(**changes)).outcome().shown()
    assert shown.chosen is None
    assert shown.notes[0].startswith(says)


@pytest.mark.slow
def test_votes_of_all_draws_are_choices_that_take_the_longest_chain_and_a_cache_for_each(tmp_path):
    made = Made(tmp_path / "results.db", declared_of(samples=3))
    shown = made.outcome().shown()
    one, three = (
        next(r for r in shown.choices if r.form == "dense" and r.votes == v and r.budget == 64) for v in (1, 3)
    )
    assert three.bytes - one.bytes == 2 * (60 + 64 + 16) * 1000
    rows = FormRows(made.store, made.declared)
    assert rows.values(one.run, 64, 3, range(4)).shape == (4,)


@pytest.mark.slow
@pytest.mark.parametrize(("load", "said"), [(None, False), (2.9, False), (5.3, True)])
def test_a_note_says_where_speeds_were_taken_on_a_busy_machine(made, load, said):
    forms = {run: replace(cost, load=load) for run, cost in made.costs.forms.items()}
    made.costs = replace(made.costs, forms=forms)
    notes = made.outcome().shown().notes
    assert any("busy machine (load 5.3 on 2 cores)" in note for note in notes) == said
    slow = Outcome(replace(made.declared, seconds=0.1), made.costs, made.rows, made.provide).shown().notes
    assert any("busy machine" in note for note in slow) == said


@pytest.mark.slow
def test_after_an_interruption_the_same_is_chosen(made):
    whole = made.outcome().shown()
    assert canonical_json(Outcome(made.declared, made.costs, made.rows).shown().to_json()) == canonical_json(
        whole.to_json()
    )


@pytest.mark.slow
def test_a_store_alone_suffices_and_all_its_rows_are_looked_at(made):
    every = [form.run for form in made.declared.forms]
    made.provide(every, 0, 200)
    shown = Outcome(replace(made.declared, sampled=False), made.costs, made.rows).shown()
    assert shown.rounds == 168
    assert shown.chosen is not None
    assert shown.chosen.form == "gguf-q8_0"


@pytest.mark.slow
def test_bounds_know_the_number_only_where_all_rows_were_there_and_no_run_was_stopped(made, tmp_path):
    stored = replace(made.declared, sampled=False)
    runs = [form.run for form in stored.forms]
    made.provide(runs, 0, 199)
    assert not is_fixed(stored, made.rows, made.store.runs())
    made.provide(runs, 0, 200)
    assert is_fixed(stored, made.rows, made.store.runs())
    other, fixed = stored, replace(stored, fixed=True)
    x = [Outcome(declared, made.costs, made.rows).shown() for declared in (other, fixed)]
    assert x[1].rounds == 168 and x[1].excess <= x[0].excess
    made.declared = fixed
    written(made, tmp_path / "choice.json")
    assert verify(tmp_path / "choice.json", made.store.path).differences == []
    made.store.mark_adaptive(runs[0], Adaptive.of({"by": "choose"}))
    assert not is_fixed(stored, made.rows, made.store.runs())
    says = "it declares that no run was stopped because of its rows, but the store says so of some"
    assert says in verify(tmp_path / "choice.json", made.store.path).differences


def test_the_order_of_problems_follows_from_their_questions_whatever_the_seed(made):
    declared = made.declared
    order = [problem for (each,) in declared.order for problem in [each[1]]]
    assert replace(declared, seed=7).order == declared.order
    assert order == order_of_bets(declared.problems["sums"], declared.questions) != sorted(order)
    renamed = {f"new {name}": key for name, key in declared.questions.items()}
    other = replace(declared, questions=renamed, problems={"sums": [*renamed]})
    assert [each[0][1] for each in other.order] == [f"new {name}" for name in order]
    grouped = replace(declared, groups={order[9]: order[3], order[5]: order[3]}).order
    assert grouped[3] == tuple(("sums", order[place]) for place in (3, 5, 9))
    assert len(grouped) == len(order) - 2
    earlier = replace(declared, questions=None)
    assert earlier.order != replace(earlier, seed=7).order


@pytest.mark.slow
@pytest.mark.parametrize("says", ["follows from the seed", "the question of p0 (1 in all) is another one"])
def test_verify_sees_another_order_of_problems(made, tmp_path, says):
    questions = None if "seed" in says else {**made.declared.questions, "p0": "easier"}
    made.declared = replace(made.declared, questions=questions)
    made.rows = FormRows(made.store, made.declared)
    written(made, tmp_path / "choice.json")
    assert any(says in line for line in verify(tmp_path / "choice.json", made.store.path).differences)


def written(made, file):
    data = made.chosen()
    write_text(file, canonical_json(data.to_json()))
    return data


@pytest.mark.slow
def test_verify_computes_the_claims_again_and_sees_what_was_changed(made, tmp_path):
    file = tmp_path / "choice.json"
    data = written(made, file)
    assert read_choice(file) == data
    checked = verify(file, made.store.path)
    assert checked.differences == []
    assert checked.claims == data.shown.claims
    changed = json.loads(file.read_text())
    changed["shown"]["excess"] = 0.0
    (tmp_path / "other.json").write_text(json.dumps(changed))
    assert any("excess" in line for line in verify(tmp_path / "other.json", made.store.path).differences)
    assert data.shown.chosen is not None
    chosen = data.shown.chosen.run
    wrong = next(one for one in made.store.samples(chosen) if not one.correct)
    made.store.update_grades(chosen, [(wrong.problem_id, wrong.budget, wrong.draw, "1", "ok", True)])
    rows = f"the rows of small gguf-q8_0 (run {chosen}) are not those that were looked at"
    assert rows in verify(file, made.store.path).differences
    with pytest.raises(PrunusError, match="leave it out"):
        verify(file, made.store.path, again=1)


@pytest.mark.slow
def test_verify_says_what_it_could_check_and_what_needs_the_machine(made, tmp_path):
    data = written(made, tmp_path / "choice.json")
    total = sum(2 * row.problems for row in data.shown.choices if row.budget == 256)
    note, *_ = verify(tmp_path / "choice.json", made.store.path).notes
    assert note.startswith(f"{total:,} of {total:,} rows were graded again by their texts; speeds and memory")


def graded(row):
    """A grade that its text does not have."""
    return {"answer": "1", "correct": True}


def emptied(row):
    return {"text": "", "thinking": ""}


def longer(row):
    return {"thinking_tokens": row.budget + 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (graded, "have other grades than their texts"),
        (emptied, "lack texts"),
        (longer, "end otherwise than their numbers of tokens say"),
    ],
)
def test_verify_sees_rows_that_were_changed_before_the_choice_was_made(made, tmp_path, change, says):
    """Rows and choice.json fit each other; only texts tell."""
    wrong = sample(made.declared.forms[1], made.declared.order[40][0][1], 64, 0)
    wrong = replace(wrong, answer="5", correct=False, text="The answer is 5.")
    made.store.add_samples(made.declared.forms[1].run, [replace(wrong, **change(wrong))])
    written(made, tmp_path / "choice.json")
    checked = verify(tmp_path / "choice.json", made.store.path)
    assert checked.claims == []
    where = f"rows of small gguf-q8_0 {says} (first: problem {wrong.problem_id}, budget 64, draw 0)"
    assert [line.partition(" ")[0] for line in checked.differences if line.endswith(where)] == ["1"]


@pytest.mark.slow
def test_its_repr_is_a_table_with_the_chosen_one_marked(made, tmp_path):
    shown = written(made, tmp_path / "choice.json").shown
    parts = {name: getattr(shown, name) for name in ("chosen", "choices", "low", "high", "excess", "claims", "notes")}
    lines = repr(Chosen(out="out", **parts)).splitlines()
    (marked,) = [line for line in lines if line.endswith("  chosen")]
    assert "gguf-q8_0" in marked


@pytest.mark.slow
def test_the_page_has_all_choices_and_escapes_names(made, tmp_path):
    hostile = "<script>window.pwned = 1</script>"
    forms = [replace(form, model=hostile) for form in made.declared.forms]
    made.declared = replace(made.declared, forms=forms)
    made.rows = FormRows(made.store, made.declared)
    text = page(written(made, tmp_path / "choice.json"))
    assert hostile not in text
    assert text.count("too slow") + text.count("chosen") > 1
    assert text.count('<th scope="row">') == 1 + 6 + 3  # the chosen one, all choices, and speeds of forms
    for known in ("processor pretend, cores 2", "Engine pretend", "Threads 2", "2026-11-30"):
        assert known in text


def test_the_front_is_without_what_costs_more_and_solves_no_more():
    points = [(1, 0.2), (2, 0.1), (2, 0.5), (3, 0.5), (4, 0.9)]
    by_hand = [
        (cost, a) for cost, a in points if not any((c, b) != (cost, a) and c <= cost and b >= a for c, b in points)
    ]
    assert front(points) == by_hand
