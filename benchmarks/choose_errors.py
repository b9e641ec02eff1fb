"""How often `prunus choose` claims too much, what its choices lose, and what they cost: docs/choose.md.

python benchmarks/choose_errors.py [--runs 400]                        simulated truths, about ten minutes of one core
python benchmarks/choose_errors.py --store results.db                  real rows, of a store
python benchmarks/choose_errors.py --rows benchmarks/serving.csv       real rows, of a table, such as an exported one
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from simulations.choose import KINDS, halves, rates, resampled

from prunus.statistics.paired import Floats
from prunus.store.rows import tables
from prunus.store.store import Store

SIZES, CHOICES = (40, 100, 300, 1000), (6, 18)  # of problems and choices, of which x is told
FEWEST = 40  # problems of a set of rows, of which half are to be chosen by


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--costliest", action="store_true", help="the better a choice, the more it costs")
    parser.add_argument(
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
    if options.sizes:
        for choices in CHOICES:
            x = [rates("all equal", choices, problems, options.runs).x for problems in SIZES]
            print(f"| {choices} choices | {' | '.join(f'{100 * one:.1f}' for one in x)} |", flush=True)
        return
    print("| truth | x false | of any | bounds miss | x | regret | grid used | stopped | best mean of all: regret, its"
          " interval misses | of as many rows: regret | of 10, 25, 50 %: regret |")  # fmt: skip
    print("|---|" + "---:|" * 10)
    for kind in KINDS:
        one = rates(kind, None, options.problems, options.runs, costliest=options.costliest)
        shares = [f"{100 * value:.1f}" for value in (one.false, one.false_for_any, one.missed)]
        points = [f"{100 * value:.2f}" for value in (one.x, one.regret)]
        fixed = ", ".join(f"{100 * value:.2f}" for value in one.fixed.values())
        print(
            f"| {kind} | {' | '.join(shares)} | {' | '.join(points)} | {100 * one.used:.0f} | {100 * one.stopped:.0f} |"
            f" {100 * one.naive_regret:.2f}, {100 * one.naive_missed:.1f} | {100 * one.same_cost:.2f} | {fixed} |",
            flush=True,
        )


def in_percent(shares: dict[str, float]) -> str:
    """Shares as words."""
    return ", ".join(f"{name} {100 * value:.2f} %" for name, value in shares.items())


def of_store(path: Path) -> Iterator[tuple[str, Floats]]:
    """(task, (T, K) what choices solve of all problems), of runs with all problems, at each budget."""
    with Store(path) as store:
        every = [tables(store.samples(run.run_id)) for run in store.begun()]
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
