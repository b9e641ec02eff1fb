"""How often `prunus choose` claims too much, what its choices lose, and what they cost: docs/choose.md.

python benchmarks/choose_errors.py [--runs 400]             simulated truths, about ten minutes of one core
python benchmarks/choose_errors.py --store results.db       random halves of the rows of a store
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from simulations.choose import KINDS, halves, rates

from prunus.store.rows import tables
from prunus.store.store import Store


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--store", type=Path, help="random halves of its rows")
    options = parser.parse_args()
    if options.store is not None:
        from_store(options.store, options.runs)
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


def from_store(path: Path, runs: int) -> None:
    """Print what choices by random halves lose on the other halves, over runs and budgets with all problems."""
    with Store(path) as store:
        every = [tables(store.samples(run.run_id)) for run in store.begun()]
    tasks = {task for one in every for task in one}
    for task in sorted(tasks):
        have = [one[task] for one in every if task in one]
        whole = max(len(one.problems) for one in have)
        kept = [one for one in have if len(one.complete()) == whole]
        columns = [one.correct[:, place].mean(axis=1) for one, place in product(kept, range(len(kept[0].budgets)))]
        found = halves(np.stack(columns, axis=1).astype(float), runs)
        print(f"{task}: {len(columns)} choices, {whole} problems: {found}")


if __name__ == "__main__":
    main()
