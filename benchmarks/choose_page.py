"""Picture and tables of docs/measurements/choose.md, from a choice and its rows alone.

    python benchmarks/choose_page.py out/choice.json results.db [--memory 1GB 2GB] [--seconds 5 10 30] [--rows ROWS.csv]

Writes docs/images/choose.svg: accuracy against seconds and against memory, a line for each form over its budgets, and
the front. Prints what each form costs and solves, and what would be chosen within each pair of limits. ROWS.csv: the
rows, without texts.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from drawn import figure

from prunus.reporting.render.chart import Axis, Line, Point, accuracy_axis, linear_axis
from prunus.store.store import Store
from prunus.studies.choose.command import memory_of
from prunus.studies.choose.files import read_choice
from prunus.studies.choose.outcome import Outcome
from prunus.studies.choose.page import front
from prunus.studies.choose.records import Choice, ChoiceRow
from prunus.studies.choose.rows import Rows

ROOT = Path(__file__).resolve().parents[1]
TITLE = "Accuracy of {models} on {tasks} in {engine}, against seconds of an answer and against memory"


def main() -> None:
    """Draw the picture and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("choice", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--memory", nargs="+", default=["1GB", "2GB"])
    parser.add_argument("--seconds", nargs="+", type=float, default=[5.0, 10.0, 30.0])
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/choose.svg")
    parser.add_argument("--rows", type=Path)
    options = parser.parse_args()
    data = read_choice(options.choice)
    with Store(options.store) as store:
        options.picture.write_text(picture(data))
        print_forms(data)
        print_limits(data, store, options.memory, options.seconds)
        if options.rows is not None:
            write_rows(data, store, options.rows)


def picture(data: Choice) -> str:
    """The SVG file."""
    known = [row for row in data.shown.choices if row.accuracy is not None and row.seconds is not None]
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
    """The lines and axes of one chart. The front is the line without marks."""
    lines = list[Line]()
    for place, form in enumerate(data.declared.forms):
        rows = sorted((row for row in known if row.run == form.run), key=lambda row: row.budget)
        points = [Point(cost(row), 100 * (row.accuracy or 0.0), note=f"{row.name}: {row.accuracy:.0%}") for row in rows]
        if points:
            lines.append(Line(f"c{1 + place % 6}", points, 1 + place % 5, form.name))
    best = front([(cost(row), row.accuracy or 0.0) for row in known])
    steps = [Point(x, 100 * y, note="the front") for x, y in best]
    return [*lines, Line("c0", steps, 0, "")], linear_axis(0, max(map(cost, known)), title), accuracy_axis(lines)


def print_forms(data: Choice) -> None:
    """What each form costs and solves."""
    budgets = data.declared.budgets
    print("| form | GB | prompt, tokens/s | decoding, tokens/s | problems |", *(f"{one} |" for one in budgets))
    print("|---|" + "---:|" * (4 + len(budgets)))
    for form in data.declared.forms:
        cost = data.costs.forms.get(form.run)
        if cost is None:
            continue
        timed, rows = cost.timed(1), [row for row in data.shown.choices if row.run == form.run]
        cells = [f"{100 * row.accuracy:.0f} in {row.seconds:.1f} s" if row.accuracy is not None else "" for row in rows]
        print(
            f"| {form.name} | {rows[-1].bytes / 1e9:.2f} | {timed.prompt_tokens / timed.prompt_seconds:.0f} |"
            f" {1 / timed.first:.1f} | {rows[-1].problems} | {' | '.join(cells)} |"
        )


def print_limits(data: Choice, store: Store, sizes: Sequence[str], limits: Sequence[float]) -> None:
    """What is chosen within other limits, from the rows that are there."""
    print("\n| within |", *(f"{limit:g} s |" for limit in limits))
    print("|---|" + "---|" * len(limits))
    for size in sizes:
        cells = list[str]()
        for limit in limits:
            declared = replace(data.declared, memory=memory_of(size), seconds=limit, sampled=False)
            shown = Outcome(declared, data.costs, Rows(store, declared), None).shown()
            if shown.chosen is None:
                cells.append("nothing fits")
            else:
                cells.append(
                    f"{shown.chosen.name}: {100 * (shown.chosen.accuracy or 0):.0f}, x {100 * shown.excess:.0f}"
                )
        print(f"| {size} | {' | '.join(cells)} |")


def write_rows(data: Choice, store: Store, file: Path) -> None:
    """The rows of all forms, without texts."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(("form", "problem_id", "budget", "correct", "ended", "tokens", "answer"))
        for form in data.declared.forms:
            for row in store.samples(form.run):
                tokens = row.thinking_tokens + row.forced_tokens + row.answer_tokens
                cells = form.name, row.problem_id, row.budget, int(row.correct), row.ended, tokens, row.answer or ""
                writer.writerow(cells)


if __name__ == "__main__":
    main()
