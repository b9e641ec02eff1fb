"""What does a model lose on new problems? `python benchmarks/find_fresh.py FOLDER MODEL...`, around what `find` found.

The dense tiny reasoner and the given models think about 5,040 problems (120 of every family and level) of the
distribution that its problem sets are drawn from, without those of the sets. Printed are the losses of accuracy over
the eight budgets and of chains that end by themselves at the largest, each with its paired 95 % interval. FOLDER
keeps problems and answers, so that a second call resumes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import prunus
from prunus.evaluation.tasks.tiny import held_out, problem_id, problem_set, question_hash
from prunus.recipes import EvalPlan
from prunus.results.contrasts import ENDS
from prunus.store.store import Store

SEED, PER_CELL = 5040, 120
BUDGETS = (0, 16, 32, 64, 128, 256, 512, 1024)


def write_problems(path: Path, per_cell: int) -> int:
    """Write the problems as JSONL and return their number."""
    drawn = [p for p in problem_set(SEED, per_cell) if question_hash(p.question) not in held_out()]
    rows = [{"id": problem_id(p), "problem": p.question, "answer": p.answer} for p in drawn]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def points(cell: dict[str, Any]) -> str:
    """Return a difference in points with its interval."""
    return f"{100 * cell['difference']:+.2f} [{100 * cell['low']:.2f}, {100 * cell['high']:.2f}]"


def main() -> None:
    """Print a row of Markdown for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument(
        "--dense", default="tiny", help="Another reasoner, such as that of `training/train.py --seed 1`."
    )
    parser.add_argument("--per-cell", type=int, default=PER_CELL, help="Problems of each family and level.")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    store, task = asked.folder / "fresh.db", asked.folder / "fresh.jsonl"
    problems = write_problems(task, asked.per_cell)
    plan = EvalPlan(tasks=(str(task),), budgets=BUDGETS, batch_size=504, profile="tiny")
    dense = prunus.evaluate(asked.dense, plan, store).run_id
    with Store(store) as rows:
        solved = [row.correct for row in rows.samples(dense) if row.budget == BUDGETS[-1]]
    print(f"{problems} problems; dense solves {100 * sum(solved) / len(solved):.1f} % at {BUDGETS[-1]} tokens\n")
    print("| model | accuracy, points | ends by itself, points |\n|---|---|---|")
    for model in asked.models:
        run = prunus.evaluate(model, plan, store).run_id
        (entry,) = prunus.compare(store, dense, [run]).to_json()["others"]
        ends = entry["stopping"]["endings"][ENDS]
        print(f"| {Path(model).name} | {points(entry['primary'])} | {points(ends)} |", flush=True)


if __name__ == "__main__":
    main()
