"""How often `prunus choose` claims too much, what its choices lose, and what they cost: docs/measurements/choose.md.

python benchmarks/choose_errors.py [--runs 400]                        simulated truths, about ten minutes of one core
python benchmarks/choose_errors.py --sizes --runs 75                   x of equal choices, written to choose_sizes.csv
python benchmarks/choose_errors.py --costliest --runs 150              the best costs most: to choose_costliest.csv
python benchmarks/choose_errors.py --store results.db                  real rows, of a store
python benchmarks/choose_errors.py --rows benchmarks/serving.csv       real rows, of a table, such as an exported one
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
from simulations.choose import KINDS, choose, halves, rates, resampled, truth_of, values_of

from prunus.statistics.paired import Floats
from prunus.store.rows import tables
from prunus.store.store import Store

MARGIN = 0.03  # of the published rows
SIZES, CHOICES = (40, 100, 300, 1000), (6, 18)  # of problems and choices, of which x is told
MANY, FEW = 100, 20  # problems beyond which there are fewer runs, and least number of these
COSTLIEST = 6, 200  # choices and problems, where the better a choice is the more it costs
ROWS = {name: Path(__file__).with_name(f"choose_{name}.csv") for name in ("sizes", "costliest")}
COLUMNS = ("truth", "choices", "problems", "rows", "run", "x", "false", "regret")
SAMPLED, STORED = "sampled", "stored"  # rows that are drawn as they are needed, and those that were there before
FEWEST = 40  # problems of a set of rows, of which half are to be chosen by


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--problems", type=int, default=500)
    made = parser.add_mutually_exclusive_group()
    made.add_argument("--costliest", action="store_true", help="the better a choice, the more it costs")
    made.add_argument(
        "--sizes", action="store_true", help="only x of equal choices, by numbers of problems and choices"
    )
    real = parser.add_mutually_exclusive_group()
    real.add_argument("--store", type=Path, help="of real rows")
    real.add_argument("--rows", type=Path, metavar="FILE", help="CSV of real rows")
    options = parser.parse_args()
    if options.store is not None or options.rows is not None:
        for what, values in of_store(options.store) if options.store else of_rows(options.rows):
            print(f"{what}: {values.shape[1]} choices, {len(values)} problems")
            print(f"  halves, against the other half: {in_percent(halves(values, options.runs))}")
            print(f"  drawn anew from all, against all: {in_percent(resampled(values, options.runs))}")
        return
    if options.sizes or options.costliest:
        name = "sizes" if options.sizes else "costliest"
        cells = product(["all equal"], CHOICES, SIZES) if options.sizes else ((kind, *COSTLIEST) for kind in KINDS)
        write(ROWS[name], cells, options.runs, options.costliest)
        print(*(sizes_table() if options.sizes else costliest_table()), sep="\n")
        return
    print("| truth | x false | of any | bounds miss | x | regret | grid used | stopped | best mean of all: regret, its"
          " interval misses | of as many rows: regret | of 10, 25, 50 %: regret |")  # fmt: skip
    print("|---|" + "---:|" * 10)
    for kind in KINDS:
        one = rates(kind, None, options.problems, options.runs)
        shares = [f"{100 * value:.1f}" for value in (one.false, one.false_for_any, one.missed)]
        points = [f"{100 * value:.2f}" for value in (one.x, one.regret)]
        fixed = ", ".join(f"{100 * value:.2f}" for value in one.fixed.values())
        print(
            f"| {kind} | {' | '.join(shares)} | {' | '.join(points)} | {100 * one.used:.0f} | {100 * one.stopped:.0f} |"
            f" {100 * one.naive_regret:.2f}, {100 * one.naive_missed:.1f} | {100 * one.same_cost:.2f} | {fixed} |",
            flush=True,
        )


def write(file: Path, cells: Iterable[tuple[str, int, int]], runs: int, costliest: bool) -> None:
    """Write a row for each run of truths with so many choices and problems, of sampled and of stored rows.

    Of sizes beyond MANY problems there are fewer runs, but at least FEW, as x varies less.
    """
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(COLUMNS)
        each = [
            (cell, run)
            for cell in cells
            for run in range(runs if costliest else min(runs, max(FEW, runs * MANY // cell[2])))
        ]
        for (kind, choices, problems), run in each:
            rng = np.random.default_rng([choices, problems, run, KINDS.index(kind)])
            truth = truth_of(kind, choices, rng, MARGIN, costliest)
            values = values_of(truth, problems, rng)
            for rows in (SAMPLED, STORED):
                made = choose(values, truth, MARGIN, 64, rows == STORED, of_any=False)
                regret = truth.max() - truth[made.chosen]
                line = kind, choices, problems, rows, run, f"{made.x:.4f}", int(made.false), f"{regret:.4f}"
                writer.writerow(line)
            opened.flush()


def read(name: str) -> dict[tuple[str, ...], Floats]:
    """{(truth, choices, problems, rows): (runs, 3) x, false and regret in %} of a file that `write` wrote."""
    found = defaultdict[tuple[str, ...], list[list[float]]](list)
    with ROWS[name].open(newline="") as file:
        for truth, choices, problems, rows, _, *values in list(csv.reader(file))[1:]:
            found[truth, choices, problems, rows].append([100 * float(value) for value in values])
    return {key: np.array(values) for key, values in found.items()}


def sizes_table() -> Iterator[str]:
    """x by numbers of choices and problems, with the largest standard error of each row."""
    found = read("sizes")
    yield "| choices | rows | " + " | ".join(f"{size:,}" for size in SIZES) + " | ± |"
    yield "|---:|---|" + "---:|" * (len(SIZES) + 1)
    for choices, rows in product(CHOICES, (SAMPLED, STORED)):
        x = [found["all equal", str(choices), str(size), rows][:, 0] for size in SIZES]
        error = max(values.std(ddof=1) / len(values) ** 0.5 for values in x)
        yield f"| {choices} | {rows} | {' | '.join(f'{values.mean():.1f}' for values in x)} | {error:.1f} |"


def costliest_table() -> Iterator[str]:
    """How often x is false where the best is costliest, x and regret, of sampled and of stored rows."""
    found = read("costliest")
    yield "| truth | x false, % | x | regret | stored: x false | x | regret |"
    yield "|---|" + "---:|" * 6
    for kind in KINDS:
        means = [found[kind, *map(str, COSTLIEST), rows].mean(axis=0) for rows in (SAMPLED, STORED)]
        yield f"| {kind} | {' | '.join(f'{false:.1f} | {x:.1f} | {regret:.1f}' for x, false, regret in means)} |"


def in_percent(shares: dict[str, float]) -> str:
    """Shares as words."""
    return ", ".join(f"{name} {100 * value:.2f} %" for name, value in shares.items())


def of_store(path: Path) -> Iterator[tuple[str, Floats]]:
    """(task, (T, K) what choices solve of all problems), of runs with all problems, at each budget."""
    with Store(path) as store:
        every = [tables(store.samples(run.run_id)) for run in store.runs_with_rows()]
    tasks = {task for one in every for task in one}
    for task in sorted(tasks):
        have = [one[task] for one in every if task in one]
        whole = max(len(one.problems) for one in have)
        kept = [one for one in have if len(one.complete()) == whole]
        columns = [one.correct[:, place].mean(axis=1) for one, place in product(kept, range(len(kept[0].budgets)))]
        yield task, np.stack(columns, axis=1).astype(float)


def of_rows(path: Path) -> Iterator[tuple[str, Floats]]:
    """(engine and model, values) of a CSV with problem_id, budget and correct, as of_store; of all rows without these.

    A choice is a budget of a run, or of a serving or form where there is no column `run`.
    """
    solved = defaultdict[str, dict[tuple[str, str], dict[str, list[bool]]]](
        lambda: defaultdict(lambda: defaultdict(list))
    )
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        name = next(name for name in ("run", "serving", "form") if name in (reader.fieldnames or []))
        for row in reader:
            group = f"{row['engine']}, {row['model']}" if "engine" in row else path.name
            solved[group][row[name], row["budget"]][row["problem_id"]].append(row["correct"] in ("1", "True"))
    for group, choices in solved.items():
        every = sorted({problem for of in choices.values() for problem in of})
        whole = [of for of in choices.values() if len(of) == len(every)]
        if len(every) >= FEWEST:
            yield group, np.array([[np.mean(of[problem]) for of in whole] for problem in every], np.float64)


if __name__ == "__main__":
    main()
