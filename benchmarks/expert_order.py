"""Does it matter which experts `--expert-spread` spares? `python benchmarks/expert_order.py FOLDER`.

The experts of `tiny-moe` (or of --model) are pruned by Wanda to 60 %: all alike, with a spread of 0.1 by their REAP
scores, and with the same sparsities given to other experts of the same block: shuffled, with one seed for each of
--orders, and in reverse. All 630 held-out problems, one greedy draw, six budgets. Printed are areas and their paired
differences to the pruning with equal sparsities. FOLDER keeps models and answers, so that a second call resumes.
"""

import argparse
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import prunus
from prunus.pruning import pipeline
from prunus.recipes import EvalPlan, PruneRecipe

BUDGETS = (32, 64, 128, 256, 512, 1024)
Scores = Mapping[str, list[float]]
Order = Callable[[list[float]], list[float]]


def shuffled(seed: int) -> Order:
    """Return an order that gives the scores of a block to its experts at random."""
    rng = random.Random(seed)
    return lambda row: rng.sample(row, len(row))


def reversed_order(row: list[float]) -> list[float]:
    """Return the scores such that the best expert has the lowest, and so on."""
    places = sorted(range(len(row)), key=row.__getitem__)
    return [row[places[-1 - places.index(expert)]] for expert in range(len(row))]


def pruned(model: str, out: Path, recipe: PruneRecipe, order: Order) -> Path:
    """Return the folder of the model as recipe prunes it, with the scores of experts in another order."""
    measure = pipeline.measure_scores

    def in_order(*about: Any) -> Scores:
        return {name: order(row) for name, row in measure(*about).items()}

    if not out.exists():
        with patch.object(pipeline, "measure_scores", in_order):
            prunus.prune(model, out, recipe)
    return out


def main() -> None:
    """Print a row of Markdown for each pruned model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tiny-moe")
    parser.add_argument("--orders", type=int, default=3, help="Number of random orders.")
    parser.add_argument("--sparsity", type=float, default=0.6)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    orders = {"reap": list, **{f"random-{seed}": shuffled(seed) for seed in range(asked.orders)}}
    orders |= {"reversed": reversed_order}
    common: dict[str, Any] = {"method": "wanda", "scope": "experts", "sparsity": asked.sparsity, "calibration": "tiny"}
    alike = pruned(asked.model, asked.folder / "alike", PruneRecipe(**common), list)
    spread = PruneRecipe(**common, expert_spread=0.1)
    models = {name: pruned(asked.model, asked.folder / name, spread, order) for name, order in orders.items()}
    plan = EvalPlan(tasks=("tiny",), limit=630, budgets=BUDGETS, batch_size=210, profile="tiny")
    store = asked.folder / "orders.db"
    base = prunus.evaluate(alike, plan, store)
    print("| sparsities of experts | area | difference to equal ones, points | at 1024 |\n|---|---:|---|---:|")
    for name, model in models.items():
        run = prunus.evaluate(model, plan, store)
        (entry,) = prunus.compare(store, base, [run])["others"]
        area, last = entry["primary"], entry["tasks"]["tiny"]["budgets"][1024]
        low, high = 100 * area["low"], 100 * area["high"]
        print(
            f"| {name} | {100 * area['accuracy']:.1f} | {100 * area['difference']:+.2f} [{low:+.2f}, {high:+.2f}] |"
            f" {100 * last['difference']:+.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
