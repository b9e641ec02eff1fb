"""Forgeries of a choice: choice.json fits the store as it is after the forgery, and verify sees it all the same."""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.small_choice import FORMS, Made, declared_of

from prunus.disk import write_text
from prunus.errors import PrunusError
from prunus.plain_data import canonical_json
from prunus.store.log import Event
from prunus.store.store import Store
from prunus.studies.choose.files import choice_of, content_of
from prunus.studies.choose.looks import looks_of
from prunus.studies.choose.outcome import Outcome
from prunus.studies.choose.records import Choice, Costs, Declared
from prunus.studies.choose.rows import FormRows
from prunus.studies.verify import verify

PROBLEMS = 80


@pytest.fixture
def chosen(tmp_path: Path) -> tuple[Made, Choice]:
    made = Made(tmp_path / "results.db", declared_of(PROBLEMS))
    return made, made.chosen()


def forge(made: Made, data: Choice, declared: Declared, costs: Costs | None = None) -> list[str]:
    """What verify says of a choice.json that follows from the rows by this declaration and these speeds."""
    costs, known = costs or data.costs, {form.run for form in declared.forms}
    costs = replace(costs, forms={run: cost for run, cost in costs.forms.items() if run in known})
    with Store(made.store.path) as store:
        rows = FormRows(store, declared)
        looks = looks_of(store.log(), declared, costs) or data.looks
        assert looks is not None
        outcome = Outcome(declared, costs, rows, looks=looks)
        forged = choice_of(declared, costs, outcome.shown(), rows, outcome.looked, looks)
    forged = replace(forged, date=data.date)
    forged = replace(forged, content=content_of(forged.to_json()))
    file = made.store.path.with_name("choice.json")
    write_text(file, canonical_json(forged.to_json()))
    return list(verify(file, made.store.path).differences)


def change(made: Made, *statements: str) -> None:
    connection = sqlite3.connect(made.store.path)
    with connection:
        for one in statements:
            connection.execute(one)
    connection.close()


DECLARED: dict[str, Callable[[Declared], dict[str, Any]]] = {
    "problems left out": lambda one: {"problems": {"sums": one.problems["sums"][:60]}},
    "a rival left out": lambda one: {"forms": one.forms[1:]},
    "a budget left out": lambda one: {"budgets": one.budgets[1:]},
    "pilot": lambda _: {"pilot": 8},
    "alpha": lambda _: {"alpha": 0.2},
    "order": lambda _: {"seed": 5},
    "groups": lambda one: {"groups": dict.fromkeys(one.problems["sums"][:20], one.problems["sums"][0])},
    "margin": lambda _: {"margin": 0.5},
    "look": lambda _: {"look": 5},
    "memory": lambda _: {"memory": 600_400_000},
    "seconds": lambda _: {"seconds": 3.0},
    "users": lambda _: {"sampled": False},
}


def test_a_file_is_what_its_kind_says(tmp_path):
    """A certificate with a part that is called as one of a choice is a certificate, and a choice of no kind is none."""
    file = tmp_path / "file.json"
    for data, kind in (({"kind": "certificate", "costs": {}}, "certificate"), ({"costs": {}}, "certificate")):
        file.write_text(json.dumps(data))
        with pytest.raises(PrunusError, match=f"is not a {kind}"):
            verify(file, tmp_path / "results.db")
    file.write_text(json.dumps({"kind": "choice"}))
    with pytest.raises(PrunusError, match="is no choice"):
        verify(file, tmp_path / "results.db")


@pytest.mark.slow
@pytest.mark.parametrize("what", DECLARED)
def test_a_declaration_that_was_changed_is_not_in_the_log(chosen, what):
    made, data = chosen
    assert forge(made, data, data.declared) == []  # which is no forgery
    made.provide([form.run for form in data.declared.forms], 0, PROBLEMS)
    differences = forge(made, data, replace(data.declared, **DECLARED[what](data.declared)))
    assert any("has no choice with this declaration" in line for line in differences)


ROWS = {
    "a form's rows are another's": (
        "UPDATE sample SET answer = o.answer, correct = o.correct, text = o.text FROM sample AS o WHERE"
        " sample.run_id = '{gguf-q4_0}' AND o.run_id = '{dense}' AND o.problem_id = sample.problem_id"
        " AND o.budget = sample.budget",
        "another outcome of this choice",
    ),
    "answers": ("UPDATE sample SET answer = '1', correct = 1, text = 'The answer is 1.'", "another outcome"),
    "a checksum": (
        "UPDATE run SET model = json_set(model, '$.checksum', 'e') WHERE run_id = '{gguf-q8_0}'",
        "is of other weights in the log",
    ),
    "a run": ("DELETE FROM log WHERE number = 2", "the log of the store was changed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ROWS)
def test_rows_that_were_changed_after_the_choice_give_another_outcome(chosen, what):
    made, data = chosen
    made.provide([form.run for form in data.declared.forms], 0, PROBLEMS)
    text, says = ROWS[what]
    for form in data.declared.forms:
        text = text.replace(f"{{{form.form}}}", form.run)
    change(made, text)
    assert any(says in line for line in forge(made, data, data.declared))


@pytest.mark.slow
def test_speeds_that_were_changed_are_not_in_the_log_but_those_that_were_made_up_before_are(chosen):
    made, data = chosen
    run = data.declared.forms[1].run
    slow = replace(data.costs.forms[run], peak=10 * data.costs.forms[run].peak)
    costs = replace(data.costs, forms={**data.costs.forms, run: slow})
    assert any("or these speeds" in line or "these speeds" in line for line in forge(made, data, data.declared, costs))
    made.costs = costs
    assert forge(made, made.chosen(), data.declared, costs) == []  # which it says
    assert "speeds that were made up before" in verify(made.store.path.with_name("choice.json"), made.store.path).unseen


@pytest.mark.slow
def test_choices_are_counted_and_one_that_is_left_out_is_seen(chosen, tmp_path):
    made, data = chosen
    assert "choice" not in data.shown.claims[0].partition("at 95 %")[2]
    assert made.chosen().looks == data.looks  # the same one again
    later = data
    for number, seconds in enumerate((9.0, 5.0, 3.0), 2):
        made.declared = replace(made.declared, seconds=seconds)
        later = made.chosen()
        assert later.looks is not None and len(later.looks.before) == number - 1
        said = f"at 95 %; this is choice {number} over these rows, and the errors of all add up to {5 * number} %"
        assert said in later.shown.claims[0]
    file = tmp_path / "choice.json"
    write_text(file, canonical_json(later.to_json()))
    assert verify(file, made.store.path).differences == []
    assert later.looks is not None
    alone = replace(later, looks=replace(later.looks, before=[]))
    write_text(file, canonical_json(alone.to_json()))
    assert any("the choices before it" in line for line in verify(file, made.store.path).differences)


@pytest.mark.slow
def test_another_choice_over_other_problems_or_models_is_none_of_them(chosen):
    made, data = chosen
    apart = replace(data.declared, problems={"sums": [f"q{number}" for number in range(80)]})
    other = replace(data.declared, forms=[replace(form, model="large") for form in data.declared.forms])
    for declared in (apart, other):
        made.store.add_to_log(Event.of({"choice": str(declared.alpha), "declared": declared.to_json(), "speeds": ""}))
    assert looks_of(made.store.log(), replace(data.declared, alpha=0.1), data.costs) is None
    made.declared = replace(data.declared, seconds=9.0)
    assert len(made.chosen().looks.before) == 1  # the first


@pytest.mark.slow
def test_problems_and_settings_are_those_of_the_runs_plan(tmp_path):
    """Also where the log was made up together with choice.json."""
    made = Made(tmp_path / "results.db", declared_of(PROBLEMS))
    names = made.declared.problems["sums"]
    lines = "\n".join(f"sums\t{name}\t{name}" for name in names)
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    change(made, f"UPDATE run SET plan = json_set(plan, '$.problems', '{digest}')")
    made.declared = replace(made.declared, problems={"sums": names[:60]}, budgets=[256])
    made.rows = FormRows(made.store, made.declared)
    data = made.chosen()
    write_text(tmp_path / "choice.json", canonical_json(data.to_json()))
    differences = verify(tmp_path / "choice.json", made.store.path).differences
    assert "the 60 problems that are declared are not those of the runs' plan, by its hash of them" in differences
    assert "budgets of the runs in the store are [64, 256], the choice declares [256]" in differences


@pytest.mark.slow
def test_rows_of_a_form_that_is_none_of_the_choices_are_told(tmp_path):
    made = Made(tmp_path / "results.db", declared_of(PROBLEMS))
    every = made.declared.forms
    made.provide([form.run for form in every], 0, PROBLEMS)
    made.declared = replace(made.declared, forms=every[1:])
    made.costs = replace(made.costs, forms={form.run: made.costs.forms[form.run] for form in every[1:]})
    data = made.chosen()
    write_text(tmp_path / "choice.json", canonical_json(data.to_json()))
    checked = verify(tmp_path / "choice.json", made.store.path)
    assert checked.differences == []
    assert any(f"rows of dense ({every[0].run}) by the same plan" in line for line in checked.notes)
    assert json.loads((tmp_path / "choice.json").read_text())["looks"]["before"] == []
    assert len(FORMS) == 3
