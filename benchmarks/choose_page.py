"""Picture and tables of docs/measurements/choose.md, from the rows and speeds of a choice alone.

    python benchmarks/choose_page.py [--publish out/choice.json results.db]

--publish first writes what the page rests on: benchmarks/choose.json, which is choice.json without the paths of a
machine, and benchmarks/choose.csv, the rows without texts. Then docs/images/choose.svg is drawn from both: accuracy
against seconds and against memory, a line for each form over its budgets, and the front. Printed are what each form
costs and solves, and what is chosen within each pair of limits.
"""

import argparse
import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from os.path import commonprefix
from pathlib import Path
from typing import Any, cast

from drawn import figure

from prunus.reporting.render.chart import Axis, Line, Point, accuracy_axis, linear_axis
from prunus.store.rows import Sample
from prunus.store.store import Store
from prunus.studies.choose.files import read_choice
from prunus.studies.choose.limits import memory_of
from prunus.studies.choose.outcome import Outcome
from prunus.studies.choose.page import front
from prunus.studies.choose.records import Choice, ChoiceResult, ChoiceRow
from prunus.studies.choose.rows import FormRows, HasRows

ROOT = Path(__file__).resolve().parents[1]
CHOICE, ROWS, PICTURE = ROOT / "benchmarks/choose.json", ROOT / "benchmarks/choose.csv", ROOT / "docs/images/choose.svg"
MEMORY, SECONDS = ("500MB", "1GB", "2GB"), (5.0, 10.0, 30.0, 60.0)
COLUMNS = (
    "task", "problem_id", "budget", "draw", "thinking_tokens", "answer_tokens", "forced_tokens", "ended",
    "answer_truncated", "reopened_think", "answer", "status", "correct",
)  # fmt: skip
TEXTS = ("task", "problem_id", "ended", "answer", "status")
TITLE = "Accuracy of {models} on {tasks} in {engine}, against seconds of an answer and against memory"


class Published:
    """The rows of choose.csv, which are read as those of a store are."""

    def __init__(self, file: Path = ROWS) -> None:
        self.path, self.runs_of = file, dict[str, list[Sample]]()
        with file.open(newline="") as opened:
            for row in csv.DictReader(opened):
                self.runs_of.setdefault(row["run"], []).append(sample_of(row))

    def samples(self, run_id: str) -> list[Sample]:
        """The rows of a run."""
        return self.runs_of.get(run_id, [])


def sample_of(row: dict[str, str]) -> Sample:
    """A row of the file as the store's."""
    values: dict[str, Any] = {name: row[name] if name in TEXTS else int(row[name]) for name in COLUMNS}
    values["answer"] = row["answer"] or None
    return Sample(**values)


def main() -> None:
    """Draw the picture and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", nargs=2, type=Path, metavar=("CHOICE", "STORE"))
    given = parser.parse_args()
    if given.publish:
        publish(*given.publish)
    data, rows = read_choice(CHOICE), Published()
    PICTURE.write_text(picture(data, rows))
    print(*forms_table(data, rows), "", *limits_table(data, rows), sep="\n")


def publish(choice: Path, store: Path) -> None:
    """Write choose.json and choose.csv."""
    data = read_choice(choice)
    plain = without_paths(data.to_json())
    for form in plain["declared"]["forms"]:
        form["source"] = form["model"]
    CHOICE.write_text(json.dumps(plain, indent=1) + "\n")
    with Store(store) as rows, ROWS.open("w", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(("run", *COLUMNS))
        for run in data.rows:
            for row in rows.samples(run):
                cells = (getattr(row, name) for name in COLUMNS)
                writer.writerow((run, *(int(cell) if isinstance(cell, bool) else cell for cell in cells)))


def without_paths(value: Any) -> Any:
    """Plain data in which a path of this machine is its last part."""
    if isinstance(value, dict):
        return {name: without_paths(one) for name, one in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [without_paths(one) for one in cast("list[Any]", value)]
    return re.sub(r"(?<![\w.])/[\w./-]*/", "", value) if isinstance(value, str) else value


def measured(data: Choice, rows: HasRows) -> list[ChoiceRow]:
    """All choices that have rows, also those that are too slow, with their accuracy over all problems looked at.

    The accuracy in choice.json leaves the first problems out, by which it was decided what fits.
    """
    read, found = FormRows(rows, data.declared), list[ChoiceRow]()
    for row in data.shown.choices:
        if row.seconds is not None:
            values = read.values(row.run, row.budget, row.votes, range(data.declared.pilot + data.shown.rounds))
            found.append(replace(row, accuracy=float(values.mean())))
    return found


def picture(data: Choice, rows: HasRows) -> str:
    """The SVG file."""
    known = measured(data, rows)
    charts = [
        chart_of(data, known, lambda row: row.seconds or 0.0, "Seconds of an answer"),
        chart_of(data, known, lambda row: row.bytes / 1e9, "GB of weights, cache and engine"),
    ]
    models, tasks = (
        ", ".join(dict.fromkeys(names)) for names in ([one.model for one in known], data.declared.problems)
    )
    return figure(charts, TITLE.format(models=models, tasks=tasks, engine=data.declared.engine))


def chart_of(
    data: Choice, known: Sequence[ChoiceRow], cost: Callable[[ChoiceRow], float], title: str
) -> tuple[list[Line], Axis, Axis]:
    """The lines and axes of one chart. The front is the grey line of steps, without marks."""
    lines, names = list[Line](), [form.name.replace("gguf-", "") for form in data.declared.forms]
    # Up to the last hyphen that all names share, so that labels fit beside the chart and no word is cut.
    shared = commonprefix(names).rfind("-") + 1  # noqa: RUF071
    for place, (form, name) in enumerate(zip(data.declared.forms, names, strict=True)):
        rows = sorted((row for row in known if row.run == form.run), key=lambda row: row.budget)
        points = [Point(cost(row), 100 * (row.accuracy or 0.0), note=f"{row.name}: {row.accuracy:.0%}") for row in rows]
        if points:
            lines.append(Line(f"c{1 + place % 6}", points, 1 + place % 5, name[shared:]))
    best = front([(cost(row), row.accuracy or 0.0) for row in known])
    most = max(map(cost, known))
    steps = [Point(x, 100 * y) for at, one in enumerate(best) for x, y in corners(one, best[at + 1 : at + 2], most)]
    return [*lines, Line("c0", steps, 0, "")], linear_axis(0, most, title), accuracy_axis(lines)


def corners(
    spot: tuple[float, float], following: Sequence[tuple[float, float]], most: float
) -> Iterator[tuple[float, float]]:
    """A step of the front, from a point to below the following one."""
    yield spot
    yield (following[0][0] if following else most), spot[1]


def forms_table(data: Choice, stored: HasRows) -> Iterator[str]:
    """What each form costs and solves."""
    budgets, known = data.declared.budgets, measured(data, stored)
    yield "| form | GB | prompt, tokens/s | decoding, tokens/s | problems | " + " | ".join(map(str, budgets)) + " |"
    yield "|---|" + "---:|" * (4 + len(budgets))
    for form in data.declared.forms:
        cost = data.costs.forms.get(form.run)
        if cost is None:
            continue
        timed, rows = cost.timed(1), [row for row in known if row.run == form.run]
        cells = [f"{100 * (row.accuracy or 0):.0f} in {row.seconds:.1f} s" for row in rows]
        yield (
            f"| {form.name} | {rows[-1].bytes / 1e9:.2f} | {timed.prompt_tokens / timed.prompt_seconds:.0f} |"
            f" {1 / timed.first:.1f} | {rows[-1].problems} | {' | '.join(cells)} |"
        )


def within(data: Choice, rows: HasRows, memory: str, seconds: float) -> ChoiceResult:
    """What is chosen within other limits, from the rows that are there."""
    declared = replace(data.declared, memory=memory_of(memory), seconds=seconds, sampled=False)
    return Outcome(declared, data.costs, FormRows(rows, declared), None).shown()


def limits_table(data: Choice, rows: HasRows) -> Iterator[str]:
    """What is chosen within each pair of limits."""
    yield "| within | " + " | ".join(f"{limit:g} s" for limit in SECONDS) + " |"
    yield "|---|" + "---|" * len(SECONDS)
    for size in MEMORY:
        cells = list[str]()
        for limit in SECONDS:
            shown = within(data, rows, size, limit)
            row, x = shown.chosen, f"x {100 * shown.excess:.0f}"
            cells.append(f"{row.name}: {100 * (row.accuracy or 0):.0f}, {x}" if row else "nothing")
        yield f"| {size} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
