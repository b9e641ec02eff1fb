"""Cost of twelve variants from one calibration, compared with full runs: CPU seconds and wall time.

`python benchmarks/calibrate_once.py` fetches SmolLM2-135M-Instruct into .cache. On one thread, in one process, it
measures Wanda with 64 x 512 tokens of standard library docstrings: `prunus prune` with its defaults, the same with one
pass of the dense model, and `prunus stats` followed by twelve runs of `prunus prune --stats` at 10 to 70 %. Imports are
not counted; the model's checksum is, in every run.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # must be set before torch is imported

import platform
import shutil
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from pruning import MODEL, SAMPLES, SEQLEN, WORK, cpu_seconds, prepare

import prunus
from prunus.checkpoint import safetensors_file

SPARSITIES = tuple(percent / 100 for percent in (10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70))
OUT, STATS = WORK / "calibrate-once", WORK / "calibrate-once.safetensors"


class Cost(NamedTuple):
    """CPU seconds and wall time of one or several runs."""

    cpu: float
    wall: float

    def plus(self, other: "Cost") -> "Cost":
        """Return the sum of two costs."""
        return Cost(self.cpu + other.cpu, self.wall + other.wall)


def cost_of(run: Callable[[], object]) -> Cost:
    """Return the cost of a call, without a cached checksum."""
    safetensors_file.forget()
    cpu, wall = cpu_seconds(), time.monotonic()
    run()
    cost = Cost(cpu_seconds() - cpu, time.monotonic() - wall)
    print(f"{cost.cpu:.1f} CPU s, {cost.wall:.1f} s", file=sys.stderr, flush=True)
    shutil.rmtree(OUT, ignore_errors=True)
    return cost


def main() -> None:
    prepare(peer=False)
    torch.set_num_threads(1)
    for module in ("prunus.pruning.prune.prune", "transformers.models.llama.modeling_llama"):
        import_module(module)
    tokens = {"calibration": str(WORK / "calibration.jsonl"), "sequences": SAMPLES, "seqlen": SEQLEN}

    def prune(sparsity: float, propagation: str, stats: Path | None = None) -> Cost:
        recipe = prunus.PruneRecipe.from_json({"sparsity": sparsity, "propagation": propagation, **tokens})
        return cost_of(lambda: prunus.prune(MODEL, OUT, recipe, stats=stats, overwrite=True))

    full, dense = prune(0.5, "pruned"), prune(0.5, "dense")
    once = cost_of(lambda: prunus.stats(MODEL, STATS, overwrite=True, **tokens))
    variants = [prune(sparsity, "dense", STATS) for sparsity in SPARSITIES]
    STATS.unlink()
    dozen = Cost(sum(cost.cpu for cost in variants), sum(cost.wall for cost in variants))
    rows = {
        "one full run (`pruned`, the default)": full,
        "one run with one pass (`dense`)": dense,
        "`prunus stats`": once,
        f"{len(variants)} runs of `prune --stats`": dozen,
        f"statistics and {len(variants)} variants": once.plus(dozen),
    }
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print("\n| Wanda | CPU s | wall s | CPU, of one full run | CPU, of one dense run |\n|---|---|---|---|---|")
    for name, cost in rows.items():
        print(f"| {name} | {cost.cpu:.1f} | {cost.wall:.1f} | {cost.cpu / full.cpu:.2f} | {cost.cpu / dense.cpu:.2f} |")


if __name__ == "__main__":
    main()
