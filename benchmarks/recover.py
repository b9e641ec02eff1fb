"""Effect of recovery on the tiny reasoner: `python benchmarks/recover.py FOLDER [--cells wanda-50,shortgpt-1]`.

Every cell is pruned on 395 of the model's own chains, recovered on tokens of 1,660 of them, and evaluated before and
after at all budgets on held-out problems, with the same seeds; differences are paired. Besides accuracy, the share of
chains that end by themselves is printed. FOLDER keeps chains, models and answers, so that a second call resumes. CPU
seconds are of recovery only.
"""

import argparse
import json
import resource
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus.recipes import DropRecipe, EvalPlan, PruneRecipe, RecoverRecipe, TraceRecipe
from prunus.results.store import Store

METHODS = ("magnitude", "wanda", "sparsegpt", "alps")
CELLS = [
    *(f"{method}-{amount}" for method in METHODS for amount in ("50", "60", "70", "80", "2:4")),
    "shortgpt-1",
    "shortgpt-2",
]
BUDGETS = (32, 64, 128, 256, 512)
SHOWN = (128, 512)


def chains(folder: Path, name: str, first: int) -> str:
    """Return the `--calibration` of the dense model's chains with correct answers; drawn unless they exist."""
    path = folder / name
    if not path.exists():
        recipe = TraceRecipe(tasks=("tiny-train",), limit=first, max_tokens=512, only="correct", batch_size=200)
        prunus.traces("tiny", path, recipe)
    return f"traces:{path}"


def make(folder: Path, cell: str, seed: int, tokens: int, rate: float) -> tuple[Path, Path]:
    """Return the folders of the pruned and the recovered model; made unless they exist."""
    pruned, recovered = folder / f"{cell}-{seed}", folder / f"{cell}-{seed}-recovered-{tokens}"
    method, _, amount = cell.rpartition("-")
    own, more = chains(folder, "own.jsonl", 400), chains(folder, "more.jsonl", 1700)
    if not pruned.exists():
        if method == "shortgpt":
            prunus.drop_blocks("tiny", pruned, DropRecipe(blocks=amount, calibration=own, samples=395, seed=seed))
        else:
            how: dict[str, Any] = {"method": method}
            how |= {"pattern": amount} if ":" in amount else {"sparsity": int(amount) / 100}
            prunus.prune("tiny", pruned, PruneRecipe(calibration=own, samples=395, seed=seed, **how))
    if not recovered.exists():
        recipe = RecoverRecipe(calibration=more, calibration_tokens=tokens, rate=rate, step_tokens=1024, seed=seed)
        begin = cpu_seconds()
        prunus.recover(pruned, recovered, recipe)
        (folder / f"{recovered.name}.json").write_text(json.dumps({"cpu_s": round(cpu_seconds() - begin, 1)}))
    return pruned, recovered


def cpu_seconds() -> float:
    """Return the CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def share_that_ends(store: Path, run: str, budget: int) -> float:
    """Return the share of chains under a budget whose thinking ended by itself."""
    with Store(store) as rows:
        ends = [sample.ended == "natural" for sample in rows.samples(run) if sample.budget == budget]
    return sum(ends) / len(ends)


def row_of(store: Path, before: str, after: str) -> list[str]:
    """Return accuracies in % before and after at two budgets, the paired gain at the larger, how chains end there."""
    (entry,) = prunus.compare(store, before, [after])["others"]
    cells = [entry["tasks"]["tiny"]["budgets"][budget] for budget in SHOWN]
    found = [f"{100 * cell[key]:.1f}" for cell in cells for key in ("base_accuracy", "accuracy")]
    last = cells[-1]
    found.append(f"{100 * last['difference']:+.1f} [{100 * last['low']:.1f}, {100 * last['high']:.1f}]")
    found.append(" -> ".join(f"{100 * share_that_ends(store, run, BUDGETS[-1]):.1f}" for run in (before, after)))
    return [*found, f"{last['base_tokens']:.0f} -> {last['tokens']:.0f}"]


def main() -> None:
    """Work through the cells and print a row of Markdown for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", default=",".join(CELLS), help="Which, with commas between them.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16_000, help="Calibration tokens of recovery.")
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--problems", type=int, default=210)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    store, plan = asked.folder / "results.db", EvalPlan(tasks=("tiny",), budgets=BUDGETS, limit=asked.problems)
    dense = prunus.evaluate("tiny", plan, store)
    print(f"dense ends by itself in {100 * share_that_ends(store, dense, BUDGETS[-1]):.1f} % at {BUDGETS[-1]}")
    shown = [f"{when} at {budget}" for budget in SHOWN for when in ("before", "after")]
    print(f"| cell | seed | {' | '.join(shown)} | gain | ends by itself, % | tokens | CPU s |")
    print("|" + "---|" * (len(shown) + 6))
    for cell in asked.cells.split(","):
        for seed in range(asked.seeds):
            pruned, recovered = make(asked.folder, cell, seed, asked.tokens, asked.rate)
            before, after = (prunus.evaluate(model, plan, store) for model in (pruned, recovered))
            spent = json.loads(recovered.with_name(recovered.name + ".json").read_text())["cpu_s"]
            print(
                "| " + " | ".join([cell, str(seed), *row_of(store, before, after), f"{spent:.0f}"]) + " |", flush=True
            )


if __name__ == "__main__":
    main()
