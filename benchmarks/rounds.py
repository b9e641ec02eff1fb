"""One round of pruning and recovery against three: `python benchmarks/rounds.py FOLDER [--sparsities 60,70]`.

The tiny reasoner is pruned with Wanda and recovered: at once; in three rounds on chains that the model of the round
before has drawn; and in three rounds on new chains of the dense model. All train on the same number of tokens in all,
and are evaluated on held-out problems, with the same seeds; differences from one round are paired. FOLDER keeps
chains, models and answers, so that a second call resumes. CPU seconds are of pruning, recovery and drawing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from closing_weight import chains
from end_to_end import cpu_seconds

import prunus
from prunus.recipes import EvalPlan, PruneRecipe, RecoverRecipe, TraceRecipe
from prunus.results.store import Store

BUDGETS = (128, 512)
ROUNDS, CHAINS = 3, 100
WAYS = ("one round", "three rounds, own chains", "three rounds, dense chains")


def make(folder: Path, sparsity: int, way: str, tokens: int) -> Path:
    """Return the folder of a model; made unless it exists."""
    target = folder / f"wanda-{sparsity}-{way.replace(', ', '-').replace(' ', '-')}-{tokens}"
    if target.exists():
        return target
    own, more = chains(folder, "own.jsonl", 400), chains(folder, "more.jsonl", 1700)
    recipe = PruneRecipe(sparsity=sparsity / 100, calibration=own, samples=395)
    rounds = 1 if way == "one round" else ROUNDS
    recovery = RecoverRecipe(more, calibration_tokens=tokens // rounds, rate=0.02, step_tokens=1024)
    begin = cpu_seconds()
    if rounds == 1:
        prunus.prune_and_recover("tiny", target, recipe, recovery)
    else:
        drawn = TraceRecipe(("tiny-train",), limit=CHAINS, max_tokens=512, only="correct", batch_size=200)
        source: Any = "recovered" if "own" in way else "dense"
        prunus.prune_in_rounds("tiny", target, recipe, recovery, rounds=rounds, chains=drawn, drawn_from=source)
    target.with_name(target.name + ".json").write_text(json.dumps({"cpu_s": round(cpu_seconds() - begin, 1)}))
    return target


def share_that_ends(store: Path, run: str, budget: int) -> float:
    """Return the share of chains under a budget whose thinking ended by itself."""
    with Store(store) as rows:
        ends = [sample.ended == "natural" for sample in rows.samples(run) if sample.budget == budget]
    return sum(ends) / len(ends)


def compared(store: Path, base: str, run: str) -> tuple[list[str], str]:
    """Return a run's accuracies in %, and its paired difference from the base at the larger budget."""
    (entry,) = prunus.compare(store, base, [run])["others"]
    cells = [entry["tasks"]["tiny"]["budgets"][budget] for budget in BUDGETS]
    low, high = 100 * cells[-1]["low"], 100 * cells[-1]["high"]
    difference = f"{100 * cells[-1]['difference']:+.1f} [{low:.1f}, {high:.1f}]"
    return [f"{100 * cell['accuracy']:.1f}" for cell in cells], difference


def main() -> None:
    """Print a row of Markdown for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sparsities", default="60,70", help="In %%, with commas between them.")
    parser.add_argument(
        "--tokens", type=int, default=16_000, help="Tokens of recovery in all rounds, repeats not counted."
    )
    parser.add_argument("--ways", default=";".join(WAYS), help="Which, with semicolons between them.")
    parser.add_argument("--problems", type=int, default=420)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    store, plan = asked.folder / "rounds.db", EvalPlan(tasks=("tiny",), budgets=BUDGETS, limit=asked.problems)
    dense = prunus.evaluate("tiny", plan, store)
    print(f"| sparsity | | {' | '.join(f'at {budget}' for budget in BUDGETS)} | gain | ends by itself, % | CPU s |")
    print("|---|---|---:|---:|---|---:|---:|")
    for sparsity in map(int, asked.sparsities.split(",")):
        runs: dict[str, str] = {}
        for way in asked.ways.split(";"):
            model = make(asked.folder, sparsity, way, asked.tokens)
            runs[way] = prunus.evaluate(model, plan, store)
            accuracies, _ = compared(store, dense, runs[way])
            gain = "" if way == WAYS[0] else compared(store, runs[WAYS[0]], runs[way])[1]
            ends = f"{100 * share_that_ends(store, runs[way], BUDGETS[-1]):.1f}"
            spent = json.loads(model.with_name(model.name + ".json").read_text())["cpu_s"]
            row = [f"{sparsity} %", way, *accuracies, gain, ends, f"{spent:.0f}"]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
