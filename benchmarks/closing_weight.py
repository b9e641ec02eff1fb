"""Does the closing weight help a pruned reasoner to stop? `python benchmarks/closing_weight.py FOLDER`.

The tiny reasoner is pruned on 395 of its own chains, and recovered on tokens of 1,660 of them, with several closing
weights (in the statistics of pruning and in the loss of recovery alike), and thinks about held-out problems under one
budget. Printed are the share of chains that end by themselves and accuracy, with the paired differences from the model
made without a closing weight. FOLDER keeps chains, models and answers, so that a second call resumes.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import prunus
from prunus.recipes import EvalPlan, PruneRecipe, RecoverRecipe, TraceRecipe
from prunus.results.paired import infer
from prunus.results.store import Store

BUDGET = 512


def chains(folder: Path, name: str, first: int) -> str:
    """Return the `--calibration` of the dense model's chains with correct answers; drawn unless they exist."""
    path = folder / name
    if not path.exists():
        recipe = TraceRecipe(("tiny-train",), limit=first, max_tokens=BUDGET, only="correct", batch_size=200)
        prunus.traces("tiny", path, recipe)
    return f"traces:{path}"


def make(folder: Path, cell: str, weight: float | None, tokens: int) -> dict[str, Path]:
    """Return the folders of the pruned and of the recovered model; made unless they exist."""
    method, _, amount = cell.partition("-")
    pruned = folder / f"{cell}-{weight}"
    recovered = folder / f"{cell}-{weight}-recovered-{tokens}"
    if not pruned.exists():
        own = chains(folder, "own.jsonl", 400)
        how: dict[str, Any] = {"method": method, "sparsity": int(amount) / 100}
        recipe = PruneRecipe(**how, calibration=own, samples=395, closing_weight=weight)
        prunus.prune("tiny", pruned, recipe)
    if not recovered.exists():
        more = chains(folder, "more.jsonl", 1700)
        prunus.recover(
            pruned,
            recovered,
            RecoverRecipe(more, calibration_tokens=tokens, closing_weight=weight, rate=0.02, step_tokens=1024),
        )
    return {"pruned": pruned, "recovered": recovered}


def outcomes(store: Path, model: Path, problems: int) -> np.ndarray:
    """Return (P, 2): for each problem whether thinking ended by itself, and whether the answer is right."""
    run = prunus.evaluate(model, EvalPlan(tasks=("tiny",), budgets=(BUDGET,), limit=problems), store)
    with Store(store) as rows:
        samples = sorted(rows.samples(run), key=lambda sample: sample.problem_id)
    return np.array([(sample.ended == "natural", sample.correct) for sample in samples], float)


def main() -> None:
    """Print a row of Markdown for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", default="wanda-50,wanda-60,sparsegpt-60", help="Which, with commas between them.")
    parser.add_argument("--weights", default="4,16", help="Closing weights; a token of the chain has 1.")
    parser.add_argument("--problems", type=int, default=420)
    parser.add_argument("--tokens", type=int, default=16_000, help="Calibration tokens of recovery.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    store = asked.folder / "closing.db"
    print("| model | closing weight | ends by itself, % | difference | accuracy, % | difference |")
    print("|---|---:|---:|---|---:|---|")
    for cell in asked.cells.split(","):
        made = {w: make(asked.folder, cell, w, asked.tokens) for w in (None, *map(float, asked.weights.split(",")))}
        for stage in ("pruned", "recovered"):
            base = outcomes(store, made[None][stage], asked.problems)
            for weight, folders in made.items():
                found = outcomes(store, folders[stage], asked.problems)
                gained = infer([found - base]).columns
                row = [f"{cell}, {stage}", "1" if weight is None else f"{weight:g}"]
                for column in range(2):
                    low, high = 100 * gained["low"][column], 100 * gained["high"][column]
                    difference = f"{100 * gained['difference'][column]:+.1f} [{low:.1f}, {high:.1f}]"
                    row += [f"{100 * found[:, column].mean():.1f}", "" if weight is None else difference]
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
