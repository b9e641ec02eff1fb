"""The check of a choice: what it shows is computed again from the store, whose rows are compared with their texts."""

from pathlib import Path
from typing import Any, NamedTuple

from prunus.errors import PrunusError
from prunus.plain_data import canonical_json
from prunus.store.store import Store
from prunus.studies.choose.files import checked_choice, content_of
from prunus.studies.choose.outcome import Outcome
from prunus.studies.choose.records import DENSE_FORM, Choice
from prunus.studies.choose.rows import Rows
from prunus.studies.find.row_check import CheckedRun, RowCheck, check_runs
from prunus.studies.find.verify import tokenizer_of

SEEN_NOWHERE = (
    "not seen by any check of a store: rows drawn by another model or engine, speeds that were made up, and a store of"
    " which rows, texts and choice were all made up together"
)
UNMEASURED = "speeds and memory were taken as stated, since measuring them again needs the machine"


class Recomputed(NamedTuple):
    """The claims of a choice that hold, what differs, and what was and could not be checked."""

    claims: list[str]
    differences: list[str]
    notes: list[str]


def recompute(data: dict[str, Any], folder: Path, store: str | Path) -> Recomputed:
    """What a store says of the content of a choice.json. folder: in which it lies. Raises PrunusError if it is none."""
    stated = checked_choice(data, "the file")
    differences, notes = list[str](), list[str]()
    if content_of(data) != stated.content:
        differences.append("the file was changed after it was written: its content hash differs")
    names = {form.run: form.name for form in stated.declared.forms}
    with Store(store) as opened:
        rows, known = Rows(opened, stated.declared), {run.run_id for run in opened.runs()}
        for run, digest in stated.rows.items():
            if run not in known:
                differences.append(f"the store has no run {run}, of {names.get(run)}")
            elif rows.digest(run, rounds_of(stated, run)) != digest:
                differences.append(f"the rows of {names.get(run)} (run {run}) are not those that were looked at")
        if not any(run not in known for run in stated.rows):
            differences += compared(stated, rows)
            differing, notes = against_texts(stated, opened, folder)
            differences += differing
    return Recomputed([] if differences else [*stated.shown.claims], differences, notes)


def against_texts(stated: Choice, store: Store, folder: Path) -> tuple[list[str], list[str]]:
    """(what the texts of the rows that were looked at contradict, what was and could not be checked)."""
    runs, shown = {run.run_id: run for run in store.runs()}, stated.shown
    checks, source = list[RowCheck](), {form.model: form.source for form in stated.declared.forms}
    for model in source:  # each has a tokenizer of its own
        of_model = [
            CheckedRun(
                form.name,
                runs[form.run],
                [name for one in stated.declared.order[: rounds_of(stated, form.run)] for _, name in one],
                believed=form.form == DENSE_FORM or (shown.chosen is not None and form.run == shown.chosen.run),
                dense=form.form == DENSE_FORM,
            )
            for form in stated.declared.forms
            if form.model == model and form.run in stated.rows
        ]
        beside = shown.chosen is not None and shown.chosen.model == model
        checks.append(check_runs(store, of_model, tokenizer_of(folder if beside else None, source[model])))
    graded, rows = sum(one.graded for one in checks), sum(one.rows for one in checks)
    checked = f"{graded:,} of {rows:,} rows were graded again by their texts; {UNMEASURED}"
    differences = dict.fromkeys(line for one in checks for line in one.differences)
    return [*differences], [checked, *dict.fromkeys(line for one in checks for line in one.notes)]


def rounds_of(stated: Choice, run: str) -> int:
    """Up to which round the rows of a run were looked at."""
    problems = max((one.problems for one in stated.shown.choices if one.run == run), default=0)
    total = 0
    for number, one in enumerate(stated.declared.order):
        if total >= problems:
            return number
        total += len(one)
    return len(stated.declared.order)


def compared(stated: Choice, rows: Rows) -> list[str]:
    """What is shown otherwise than it is computed now."""
    most = None if stated.declared.sampled else stated.shown.rounds
    try:
        now = Outcome(stated.declared, stated.costs, rows, most=most).shown().to_json()
    except PrunusError as error:
        return [str(error)]
    before = stated.shown.to_json()
    return [
        f"{name} is {short(before.get(name))} and would be {short(now.get(name))}"
        for name in now
        if canonical_json(now.get(name)) != canonical_json(before.get(name))
    ]


def short(value: object) -> str:
    """A value in a line."""
    text = canonical_json(value)
    return text if len(text) < 200 else f"{text[:200]}..."
