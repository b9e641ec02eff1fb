"""The whole job on the built-in reasoner: prune, drop, recover, evaluate, compare, report."""

import json
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import prunus
from prunus.checkpoint.manifest import MANIFEST
from prunus.evaluation.resolved_plan import load_problems
from prunus.progress import Steps, out_console, say, set_quiet
from prunus.recipes import DropRecipe, EvalPlan, PruneRecipe, RecoverRecipe
from prunus.reporting.terminal import curve_table, verdict_table
from prunus.results.comparison import compare
from prunus.results.store import Store
from prunus.results.summary import summarise


class Recovered(NamedTuple):
    """Another variant, by name, and how it is recovered."""

    variant: str
    recipe: RecoverRecipe


BASE = "tiny"
CALIBRATION = {"calibration": "tiny", "samples": 128}
VARIANTS: dict[str, PruneRecipe | DropRecipe | Recovered] = {
    "wanda-20": PruneRecipe(method="wanda", sparsity=0.2, **CALIBRATION),
    "magnitude-20": PruneRecipe(method="magnitude", sparsity=0.2),
    "wanda-50": PruneRecipe(method="wanda", sparsity=0.5, **CALIBRATION),
    "wanda-50-recovered": Recovered(
        "wanda-50", RecoverRecipe("tiny", calibration_tokens=16_000, rate=0.02, step_tokens=1024)
    ),
    "magnitude-50": PruneRecipe(method="magnitude", sparsity=0.5),
    "drop-1": DropRecipe(blocks="1", **CALIBRATION),
    "drop-2": DropRecipe(blocks="2", **CALIBRATION),
}
PLAN = EvalPlan(tasks=("tiny",), budgets=(0, 16, 32, 64, 128, 256, 512, 1024), limit=420, batch_size=210)
QUICK_PROBLEMS = 126


def demo(out: Path | str = "prunus-demo", quick: bool = False) -> dict[str, Any]:
    """Run the demonstration in the folder out; returns the comparison with the dense model, as `compare` does.

    It writes out/models/NAME, out/results.db and out/report.html; a second call reuses them. quick: use a fifth of the
    problems. Raises PrunusError if out cannot be written.
    """
    folder = Path(out)
    plan = PLAN if not quick else replace(PLAN, limit=QUICK_PROBLEMS)
    models = {BASE: BASE} | {name: str(make_variant(folder / "models", name)) for name in VARIANTS}
    store = folder / ("quick.db" if quick else "results.db")
    runs = evaluate_all(models, plan, store)
    with Store(store) as opened:
        out_console.print(curve_table([summarise(opened, run) for run in runs.values()]))
    comparison = compare(store, runs[BASE], [run for name, run in runs.items() if name != BASE])
    out_console.print(verdict_table(comparison))
    at_half = compare(store, runs["magnitude-50"], [runs["wanda-50"]])
    out_console.print("Wanda against Magnitude, both at 50 %:")
    out_console.print(verdict_table(at_half))
    if at_half["others"][0]["verdict"] != "better":
        out_console.print(
            "Wanda is not ahead here, unlike on large models: benchmarks/comparison_group.py measures why."
        )
    out_console.print("Wanda at 50 %, recovered, against the same before recovery:")
    out_console.print(verdict_table(compare(store, runs["wanda-50"], [runs["wanda-50-recovered"]])))
    page = prunus.report(store, folder / "report.html", base=runs[BASE], overwrite=True)
    say(f"The page with curves, intervals and texts: {page}")
    return comparison


def make_variant(folder: Path, name: str) -> Path:
    """The checkpoint of a variant in a folder; made unless the folder has it from the same source and recipe."""
    from prunus.checkpoint.checkpoint import Checkpoint
    from prunus.checkpoint.resolve import resolve

    recipe, target, model = VARIANTS[name], folder / name, BASE
    if isinstance(recipe, Recovered):
        model, recipe = str(folder / recipe.variant), recipe.recipe
    source = Checkpoint(resolve(model)).checksum()
    if (target / MANIFEST).exists():
        step = json.loads((target / MANIFEST).read_text())["history"][-1]
        if step["recipe"] == recipe.to_json() and step["source"]["checksum"] == source:
            return target
    say(f"making {target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(recipe, PruneRecipe):
        prunus.prune(model, target, recipe, overwrite=True)
    elif isinstance(recipe, DropRecipe):
        prunus.drop_blocks(model, target, recipe, overwrite=True)
    else:
        prunus.recover(model, target, recipe, overwrite=True)
    return target


def evaluate_all(models: Mapping[str, str], plan: EvalPlan, store: Path) -> dict[str, str]:
    """Name to run id. Models are evaluated side by side, a thread each: one so small gains nothing by a second."""
    workers = min(len(models), len(os.sched_getaffinity(0)))
    total = len(models) * len(load_problems(plan)) * len(plan.budgets)
    Store(store, create=True).close()  # before the workers, who would all make it
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool,
        Steps(f"evaluating {len(models)} models", total, "answers") as steps,
    ):
        futures = {name: pool.submit(prunus.evaluate, model, plan, store) for name, model in models.items()}
        unfinished = set(futures.values())
        while unfinished:
            unfinished = wait(unfinished, timeout=1.0).not_done
            with Store(store) as opened:
                done = sum(len(opened.keys(run.run_id)) for run in opened.runs())
            steps.advance(done - steps.done)
        return {name: future.result() for name, future in futures.items()}


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    set_quiet(True)
