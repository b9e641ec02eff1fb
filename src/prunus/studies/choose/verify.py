"""The check of a choice: what it shows is computed again from the store, whose rows are compared with their texts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prunus.errors import PrunusError
from prunus.plain_data import canonical_json
from prunus.results.certificate import content_of
from prunus.store.starts import mixed_line
from prunus.store.store import Store
from prunus.studies.choose.files import checked_choice
from prunus.studies.choose.looks import looks_of
from prunus.studies.choose.outcome import Outcome
from prunus.studies.choose.records import DENSE_FORM, Choice, Declared
from prunus.studies.choose.rows import FormRows
from prunus.studies.looks.declared import about_groups, about_plan, about_problems, tokenizer_of
from prunus.studies.looks.row_check import CheckedRun, RowCheck, check_runs

SEEN_NOWHERE = (
    "not seen by any check of a store: rows drawn by another model or engine, bytes and speeds that were made up before"
    " the choice, and a store of which rows, texts, log and choice were all made up together"
)
UNMEASURED = "speeds and memory were taken as stated, since measuring them again needs the machine"


class Recomputed(NamedTuple):
    """The claims of a choice that hold, what differs, and what was and could not be checked."""

    claims: list[str]
    differences: list[str]
    notes: list[str]


def recompute(data: dict[str, Any], folder: Path, store: str | Path) -> Recomputed:
    """Compare the content of a choice.json with its store. folder: of the file. Raises PrunusError for other data."""
    stated = checked_choice(data, "the file")
    differences, notes = list[str](), list[str]()
    if content_of(data) != stated.content:
        differences.append("the file was changed after it was written: its content hash differs")
    names = {form.run: form.name for form in stated.declared.forms}
    with Store(store) as opened:
        rows, known = FormRows(opened, stated.declared), {run.run_id for run in opened.runs()}
        for run, digest in stated.rows.items():
            if run not in known:
                differences.append(f"the store has no run {run}, of {names.get(run)}")
            elif rows.digest(run, rounds_of(stated, run)) != digest:
                differences.append(f"the rows of {names.get(run)} (run {run}) are not those that were looked at")
        differences += against_log(stated, opened)
        differences += against_plan(stated, opened)
        aside = others_of(stated, opened)
        if not any(run not in known for run in stated.rows):
            differences += compared(stated, rows)
            differing, notes = against_texts(stated, opened, folder)
            differences += differing
    return Recomputed([] if differences else [*stated.shown.claims], differences, [*aside, *notes])


def against_log(stated: Choice, store: Store) -> list[str]:
    """Sentences on how the log of the store contradicts a choice, or the runs of the store."""
    log, differences = store.log(), list[str]()
    if (looks := looks_of(log, stated.declared, stated.costs)) is None:
        differences.append(
            "the log of the store has no choice with this declaration and these speeds: one of them was changed"
        )
    else:
        if stated.looks != looks:
            differences.append("the choices before it, or its entry, are not as the log of the store has them")
        if stated.content not in log.outcomes(looks.id):
            differences.append("the log of the store has another outcome of this choice")
    return [*differences, *log.contradictions(store.runs(), store.searches(), store.removed())]


def against_plan(stated: Choice, store: Store) -> list[str]:
    """Sentences on how the runs, questions and groups of the store contradict the declaration of a choice."""
    declared, differences = stated.declared, list[str]()
    runs = [run for run in store.runs() if run.run_id in stated.rows]
    if (line := mixed_line(runs)) is not None:
        differences.append(line)
    stated_plan = {name: getattr(declared, name) for name in ("budgets", "samples", "seed")}
    for run in runs:
        differences += about_plan(run.plan, stated_plan, "choice")
        differences += about_problems(store, declared.problems, run.plan)
    if declared.fixed and any(run.adaptive is not None for run in runs):
        differences.append("it declares that no run was stopped because of its rows, but the store says so of some")
    differences += about_questions(declared, store.questions())
    differences += about_groups(declared.problems, declared.groups, store.groups())
    return [*dict.fromkeys(differences)]


def about_questions(declared: Declared, stored: Mapping[str, str]) -> list[str]:
    """A sentence if problems are not ordered by the questions of the store. stored: question_key by problem."""
    known = {name: stored[name] for names in declared.problems.values() for name in names if name in stored}
    if known and declared.questions is None:
        return ["its problems are in an order that follows from the seed, not from their questions"]
    wrong = [name for name, key in known.items() if (declared.questions or {}).get(name) != key]
    return [f"the question of {wrong[0]} ({len(wrong)} in all) is another one in the store"] if wrong else []


def others_of(stated: Choice, store: Store) -> list[str]:
    """A line for every run of the store that has the plan of a choice and is none of its forms."""
    known = {form.run for form in stated.declared.forms}
    runs = store.runs_with_rows()
    plans = [run.plan for run in runs if run.run_id in stated.rows]
    return [
        f"the store has rows of {run.model.name} ({run.run_id}) by the same plan, which is none of the choices"
        for run in runs
        if run.run_id not in known and run.plan in plans
    ]


def against_texts(stated: Choice, store: Store, folder: Path) -> tuple[list[str], list[str]]:
    """(contradictions between stored texts and the rows that were looked at, notes on what could be checked).

    Answers are graded again and tokens counted again. folder: has the tokenizer of the chosen model.
    """
    runs, shown = {run.run_id: run for run in store.runs()}, stated.shown
    checks, source = list[RowCheck](), {form.model: form.source for form in stated.declared.forms}
    for model in source:  # each has a tokenizer of its own
        of_model = [
            CheckedRun(
                form.name,
                runs[form.run],
                [name for round in stated.declared.order[: rounds_of(stated, form.run)] for _, name in round],
                believed=form.form == DENSE_FORM or (shown.chosen is not None and form.run == shown.chosen.run),
                dense=form.form == DENSE_FORM,
            )
            for form in stated.declared.forms
            if form.model == model and form.run in stated.rows
        ]
        beside = shown.chosen is not None and shown.chosen.model == model
        checks.append(check_runs(store, of_model, tokenizer_of(folder if beside else None, source[model])))
    graded, rows = sum(check.graded for check in checks), sum(check.rows for check in checks)
    checked = f"{graded:,} of {rows:,} rows were graded again by their texts; {UNMEASURED}"
    differences = dict.fromkeys(line for check in checks for line in check.differences)
    return [*differences], [checked, *dict.fromkeys(line for check in checks for line in check.notes)]


def rounds_of(stated: Choice, run: str) -> int:
    """Number of first rounds whose rows of a run were looked at."""
    problems = max((choice.problems for choice in stated.shown.choices if choice.run == run), default=0)
    total = 0
    for number, round in enumerate(stated.declared.order):
        if total >= problems:
            return number
        total += len(round)
    return len(stated.declared.order)


def compared(stated: Choice, rows: FormRows) -> list[str]:
    """A line for each field of the result in choice.json that has another value by these rows."""
    most = None if stated.declared.sampled else stated.shown.rounds
    try:
        now = Outcome(stated.declared, stated.costs, rows, most=most, looks=stated.looks).shown().to_json()
    except PrunusError as error:
        return [str(error)]
    before = stated.shown.to_json()
    return [
        f"{name} is {short(before.get(name))} and would be {short(now.get(name))}"
        for name in now
        if canonical_json(now.get(name)) != canonical_json(before.get(name))
    ]


def short(value: object) -> str:
    """A value as JSON for a line, cut after 200 characters."""
    text = canonical_json(value)
    return text if len(text) < 200 else f"{text[:200]}..."
