"""Tables and picture of docs/measurements/gsm8k.md, from benchmarks/gsm8k.csv.

    python benchmarks/gsm8k_page.py [--publish results.db]

--publish first writes the rows of a study's store, without texts, of every variant that has all problems of the dense
model. Then the tables between the markers of the page and docs/images/gsm8k.svg are written. Rows always give the same
tables, since resamples and the order of problems follow from a seed.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from drawn import figure
from numpy.typing import NDArray
from pages import write

from prunus.reporting.render.chart import Axis, Line, Point, budget_axis, linear_axis
from prunus.results.ladder import ACCURACY, ENDS, Rule, decide, paths
from prunus.statistics.anytime import seeded_order, with_estimate
from prunus.statistics.metrics import auc_weights
from prunus.statistics.paired import infer
from prunus.store.characters import NBSP
from prunus.store.labels import label_of
from prunus.store.rows import Run
from prunus.store.store import Store

ROOT = Path(__file__).resolve().parents[1]
ROWS, PAGE, PICTURE = (
    ROOT / name for name in ("benchmarks/gsm8k.csv", "docs/measurements/gsm8k.md", "docs/images/gsm8k.svg")
)
COLUMNS = ("variant", "problem_id", "budget", "correct", "ended", "loops", "thinking_tokens", "answer")
DENSE, PRUNED, RECOVERED = "dense", "Wanda 50 %", "Wanda 50 %, recovered"
# By what was done, as labels of runs begin, in the order of the table.
NAMES = {
    "dense": "dense",
    "W8A8": "W8A8",
    "OBS width 76.3 %": "24 % fewer channels",
    "Wanda 20 %": "Wanda 20 %",
    "Wanda 50 %": "Wanda 50 %",
    "Wanda 50 % + recovered": "Wanda 50 %, recovered",
    "ShortGPT −5 blocks": "without 5 of 24 blocks",
}
MARGIN = 0.05
SEARCH = """\
A [search](../find.md) takes problem by problem, and its bounds hold at all times together: differences over the
problems that a decision took, in points, with margins of 5 points of area and of chains that end. Each variant is a
search of its own, at an error of 5 %."""
Floats = NDArray[np.float64]


class Variant(NamedTuple):
    """The rows of a variant, by problem. correct_PB: 1 where it is solved. ended_P, loops_P: at the last budget."""

    problems: list[str]
    budgets: list[int]
    correct_PB: Floats
    ended_P: Floats
    loops_P: Floats


def main() -> None:
    """Write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", type=Path, metavar="STORE")
    if (store := parser.parse_args().publish) is not None:
        publish(store)
    variants = read_rows()
    write(PAGE, "gsm8k_page", tables(variants))
    PICTURE.write_text(picture(variants), "utf-8")


def publish(path: Path) -> None:
    """Write the rows of a store."""
    with Store(path) as store, ROWS.open("w", newline="") as file:
        runs = {done_to(run): store.samples(run.run_id) for run in store.runs()}
        complete = {(row.problem_id, row.budget) for row in runs[DENSE]}
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for label, rows in runs.items():
            if label not in NAMES or {(row.problem_id, row.budget) for row in rows} != complete:
                print(f"left out, since it has no name in the table or lacks rows: {label}")
                continue
            for row in sorted(rows, key=lambda row: (row.problem_id, row.budget)):
                facts = row.problem_id, row.budget, int(row.correct), row.ended, int(row.loops or 0)
                writer.writerow([NAMES[label], *facts, row.thinking_tokens, row.answer or ""])


def done_to(run: Run) -> str:
    """What was done to a run's model: its label without what all have, how they were served."""
    return label_of(run).partition(" · ")[0].replace(NBSP, " ")


def read_rows() -> dict[str, Variant]:
    """The variants by name, in the order of the table."""
    found = defaultdict[str, dict[tuple[str, int], dict[str, str]]](dict)
    with ROWS.open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["variant"]][row["problem_id"], int(row["budget"])] = row
    return {name: variant_of(found[name]) for name in NAMES.values() if name in found}


def variant_of(rows: Mapping[tuple[str, int], Mapping[str, str]]) -> Variant:
    """The rows of a variant as arrays."""
    problems, budgets = (sorted(set(column)) for column in zip(*rows, strict=True))
    last = [rows[problem, budgets[-1]] for problem in problems]
    return Variant(
        problems,
        budgets,
        np.array([[float(rows[problem, budget]["correct"]) for budget in budgets] for problem in problems]),
        np.array([float(row["ended"] != "forced") for row in last]),
        np.array([float(row["loops"]) for row in last]),
    )


def tables(variants: Mapping[str, Variant]) -> str:
    """Both tables as Markdown, with what stands between them."""
    parts = [*accuracies(variants), "", "## What `find` decides", "", SEARCH, "", *decisions(variants)]
    if {PRUNED, RECOVERED} <= variants.keys():
        last, area = differences(variants[RECOVERED], variants[PRUNED])
        parts += ["", "## What recovery wins back", "", f"Of {PRUNED}: {last} points at 512 tokens, {area} of area."]
    return "\n".join(parts)


def accuracies(variants: Mapping[str, Variant]) -> list[str]:
    """The table of accuracies."""
    dense = variants[DENSE]
    heads = *map(str, dense.budgets), f"at {dense.budgets[-1]}, to dense", "area, to dense", "ends", "loops"
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name, one in variants.items():
        cells = [f"{share:.1f}" for share in 100 * one.correct_PB.mean(0)]
        cells += ["", ""] if one is dense else differences(one, dense)
        cells += [f"{100 * flags.mean():.0f}" for flags in (one.ended_P, one.loops_P)]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def differences(one: Variant, other: Variant) -> list[str]:
    """The differences to another variant at the last budget and of the area, in points, with 95 % intervals."""
    each_PB = 100 * (one.correct_PB - other.correct_PB)
    result = infer([np.column_stack([each_PB[:, -1], each_PB @ auc_weights(one.budgets)])])
    ends = zip(result.difference, result.low, result.high, strict=True)
    return [f"{centre:+.1f} [{low:.1f}, {high:.1f}]" for centre, low, high in ends]


def decisions(variants: Mapping[str, Variant]) -> list[str]:
    """The table of what a search with only this rung would decide, problem by problem in the order of seed 0."""
    lines = ["| | decision | problems | accuracy: difference and bounds | ends by itself |", "|---|---|---:|---:|---:|"]
    dense, rule = variants[DENSE], Rule(MARGIN, MARGIN)
    order = [dense.problems.index(problem) for problem in seeded_order(dense.problems, 0)]
    for name, one in variants.items():
        if one is dense:
            continue
        area_P = (one.correct_PB - dense.correct_PB) @ auc_weights(one.budgets)
        each = {ACCURACY: area_P[order], ENDS: (one.ended_P - dense.ended_P)[order]}
        decision = decide(each, rule, over=True)
        bounds = paths({key: values[: decision.rounds] for key, values in each.items()}, rule)
        cells = [
            "{:+.1f} [{:.1f}, {:.1f}]".format(
                *(100 * float(end[-1]) for end in with_estimate(path.estimate, path.lower, path.upper))
            )
            for path in (bounds[ACCURACY], bounds[ENDS])
        ]
        lines.append(f"| {' | '.join([name, decision.word, str(decision.rounds), *cells])} |")
    return lines


def picture(variants: Mapping[str, Variant]) -> str:
    """The SVG file of accuracies by budget."""
    budgets = variants[DENSE].budgets
    lines, paired = list[Line](), list[Line]()
    for place, (name, one) in enumerate(variants.items()):
        points = [Point(b, 100 * y) for b, y in zip(budgets, one.correct_PB.mean(0), strict=True)]
        lines.append(Line(f"c{place}", points, place, name))
        if one is variants[DENSE]:
            paired.append(Line("c0", [Point(0, 0), Point(len(variants), 0)]))
        else:
            result = infer([100 * (one.correct_PB - variants[DENSE].correct_PB)[:, -1:]])
            difference, low, high = (float(values[0]) for values in (result.difference, result.low, result.high))
            paired.append(Line(f"c{place}", [Point(place, difference, low, high)], place))
    last = ", ".join(f"{name} {100 * variants[name].correct_PB[:, -1].mean():.0f} %" for name in variants)
    label = f"Accuracy on GSM8K by thinking budget; at {budgets[-1]} tokens: {last}"
    heading = f"At {budgets[-1]}, to dense: points, with 95 % intervals"
    beside = paired, Axis("in the order of the table", (), 0, len(variants)), linear_axis(-35, 5, heading, sign=True)
    return figure([(lines, budget_axis(budgets), linear_axis(0, 30, "Accuracy, %")), beside], label)


if __name__ == "__main__":
    main()
