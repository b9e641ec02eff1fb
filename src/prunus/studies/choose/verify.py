"""The check of a choice: what it shows is computed again from the store, and compared with what it says."""

from pathlib import Path
from typing import Any

from prunus.errors import PrunusError
from prunus.plain_data import canonical_json
from prunus.store.store import Store
from prunus.studies.choose.files import checked_choice, content_of
from prunus.studies.choose.outcome import Outcome
from prunus.studies.choose.records import Choice
from prunus.studies.choose.rows import Rows

SEEN_NOWHERE = (
    "not seen by any check of a store: rows drawn by another model or engine, speeds that were made up, and a store of"
    " which rows and choice were made up together"
)


def recompute(data: dict[str, Any], store: str | Path) -> tuple[list[str], list[str]]:
    """(claims that hold, differences) of the content of a choice.json. Raises PrunusError if it is none."""
    stated = checked_choice(data, "the file")
    differences = list[str]()
    if content_of(data) != stated.content:
        differences.append("the file was changed after it was written: its content hash differs")
    with Store(store) as opened:
        rows, known = Rows(opened, stated.declared), {run.run_id for run in opened.runs()}
        for run, digest in stated.rows.items():
            if run not in known:
                differences.append(f"the store has no run {run}")
            elif rows.digest(run, rounds_of(stated, run, rows)) != digest:
                differences.append(f"the rows of run {run} are not those that were looked at")
        if not any(run not in known for run in stated.rows):
            differences += compared(stated, rows)
    return ([] if differences else [*stated.shown.claims]), differences


def rounds_of(stated: Choice, run: str, rows: Rows) -> int:
    """Up to which round the rows of a run were looked at."""
    problems = max(one.problems for one in stated.shown.choices if one.run == run)
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


def short(value: Any) -> str:
    """A value in a line."""
    text = canonical_json(value)
    return text if len(text) < 200 else f"{text[:200]}..."
