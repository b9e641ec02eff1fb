"""Demonstration on a built-in reasoner: prune, drop, narrow, quantise, recover, evaluate, compare, report."""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import prunus
from prunus.disk import as_path
from prunus.errors import PrunusError
from prunus.evaluation.pipeline import EVALUATING
from prunus.evaluation.resolved_plan import load_problems
from prunus.progress import Steps, hear, out_console, say, set_quiet
from prunus.recipes import DropRecipe, EvalPlan, ExpertsRecipe, PruneRecipe, QuantizeRecipe, RecoverRecipe, WidthRecipe
from prunus.recipes.base import Recipe
from prunus.reporting.terminal import curve_table, verdict_table
from prunus.results.cells import Comparison
from prunus.results.comparison import compare
from prunus.results.summary import summarise
from prunus.step import StepOptions
from prunus.store.store import Store

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized


class Tour(NamedTuple):
    """Content of a demonstration: a model and the steps of its variants.

    If a variant has several steps, another variant has the first ones alone. quick: the variants that `--quick` makes.
    """

    model: str
    variants: Mapping[str, Sequence[Recipe]]
    quick: tuple[str, ...]


CALIBRATION = {"calibration": "tiny", "sequences": 128}
WANDA_50 = PruneRecipe(method="wanda", sparsity=0.5, **CALIBRATION)
# Keeping 160 of 256 channels leaves as many parameters as removing two of eight blocks: 934,528 and 933,888.
DENSE = Tour(
    "tiny",
    {
        "wanda-20": [PruneRecipe(method="wanda", sparsity=0.2, **CALIBRATION)],
        "wanda-50": [WANDA_50],
        "wanda-50-recovered": [
            WANDA_50,
            RecoverRecipe(calibration="tiny", calibration_tokens=16_000, rate=0.02, step_tokens=1024),
        ],
        "w4": [QuantizeRecipe(bits=4, **CALIBRATION)],
        "drop-1": [DropRecipe(blocks="1", **CALIBRATION)],
        "drop-2": [DropRecipe(blocks="2", **CALIBRATION)],
        "width-62.5": [WidthRecipe(keep=0.625, **CALIBRATION)],
    },
    ("wanda-20", "drop-1"),
)
# 31.25 % zeros in the experts take as many bytes as six of eight experts: packed, a weight of 16 bits that is not zero
# takes 17 bits, and one that is zero takes 1.
EXPERTS = Tour(
    "tiny-moe",
    {
        "reap-7-of-8": [ExpertsRecipe(method="reap", drop=1, **CALIBRATION)],
        "reap-6-of-8": [ExpertsRecipe(method="reap", drop=2, **CALIBRATION)],
        "frequency-6-of-8": [ExpertsRecipe(method="frequency", drop=2, **CALIBRATION)],
        "random-6-of-8": [ExpertsRecipe(method="random", drop=2, **CALIBRATION)],
        "wanda-31-experts": [PruneRecipe(method="wanda", sparsity=0.3125, scope="experts", **CALIBRATION)],
    },
    ("reap-7-of-8", "random-6-of-8"),
)
# The first 210 problems are five of each family and level. There, all chains of the dense model end within 512 tokens;
# one that does not end by itself only costs time.
PLAN = EvalPlan(tasks=("tiny",), budgets=(0, 16, 32, 64, 128, 256, 512), limit=210, batch_size=210)
QUICK_PLAN = replace(PLAN, limit=84)  # what fits into a minute


def demo(out: Path | str = "prunus-demo", quick: bool = False, experts: bool = False) -> Comparison:
    """Run the demonstration in a folder; returns the comparison with the dense model, as `compare` does.

        print(prunus.demo("prunus-demo", quick=True))

    It writes out/models/NAME, out/results.db and out/report.html; a second call reuses them.

    out: the folder.
    quick: only two variants, on fewer problems.
    experts: remove experts of the built-in mixture instead.

    Raises PrunusError if out cannot be written.
    """
    folder, tour, plan = as_path(out), EXPERTS if experts else DENSE, PLAN
    if quick:
        tour = tour._replace(variants={name: tour.variants[name] for name in tour.quick})
        plan = QUICK_PLAN
    prefix = "experts-" if experts else ""
    store = folder / f"{prefix}{'quick' if quick else 'results'}.db"
    folder.mkdir(parents=True, exist_ok=True)
    runs = run_tour(tour, plan, folder / "models", store)
    with Store(store) as opened:
        out_console.print(curve_table([summarise(opened, run) for run in runs.values()]))
    comparison = compare(store, runs[tour.model], [runs[name] for name in tour.variants])
    out_console.print(verdict_table(comparison))
    page = folder / f"{prefix}report.html"
    prunus.report(store, page, base=runs[tour.model], overwrite=True, runs=set(runs.values()))
    say(f"The page with curves and verdicts: {page}")
    return comparison


def run_tour(tour: Tour, plan: EvalPlan, models: Path, store: Path) -> dict[str, str]:
    """Make and evaluate all variants, and evaluate the dense model; returns the run ids by name, the model first.

    models: the folder of the variants. They are made and evaluated side by side, a thread each, which takes fewer CPU
    seconds than two threads for one: in models so small the threads mostly wait for each other.
    """
    jobs = [*jobs_of(tour.variants), [tour.model]]
    workers = min(len(jobs), len(os.sched_getaffinity(0)))
    total = (1 + len(tour.variants)) * len(load_problems(plan)) * len(plan.budgets)
    with Store(store, create=True) as opened:  # before the workers, who would all make it
        started = answers_of(opened)
    context = multiprocessing.get_context("spawn")
    drawn = context.Value("d", 0.0)  # answers of all workers, with parts of those that they draw
    with (
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(drawn,)) as pool,
        Steps(f"making and evaluating {len(tour.variants)} variants", total, "answers") as steps,
    ):
        futures = [pool.submit(run_job, names, tour, plan, models, store) for names in jobs]
        unfinished = set(futures)
        while unfinished:
            unfinished = wait(unfinished, timeout=1.0).not_done
            with Store(store) as opened:
                steps.done = answers_of(opened)
            steps.within(max(0.0, started + drawn.value - steps.done))
        try:
            run_ids = {name: run for future in futures for name, run in future.result().items()}
        except BrokenProcessPool:
            text = "a process that made variants was ended: is there enough memory? The same command goes on"
            raise PrunusError(text) from None
    return {name: run_ids[name] for name in (tour.model, *tour.variants)}


def answers_of(store: Store) -> int:
    """How many answers a store has."""
    return sum(len(store.keys(run.run_id)) for run in store.runs())


def jobs_of(variants: Mapping[str, Sequence[Recipe]]) -> list[list[str]]:
    """Groups of names of variants that begin with the same step, for a process to make them; largest groups first."""
    jobs: dict[Recipe, list[str]] = {}
    for name in sorted(variants, key=lambda name: len(variants[name])):
        jobs.setdefault(variants[name][0], []).append(name)
    return sorted(jobs.values(), key=len, reverse=True)


def run_job(names: Sequence[str], tour: Tour, plan: EvalPlan, models: Path, store: Path) -> dict[str, str]:
    """Make and evaluate some variants, or evaluate the model; returns {name: run id}. names: of these."""
    made = {name: tour.model if name == tour.model else make_variant(models, name, tour) for name in names}
    return {name: prunus.evaluate(path, plan, store).run_id for name, path in made.items()}


def make_variant(folder: Path, name: str, tour: Tour) -> Path:
    """The checkpoint of a variant in a folder; made unless the folder has it from the same source and recipes."""
    from prunus.checkpoint.checkpoint import Checkpoint
    from prunus.checkpoint.resolve import resolve
    from prunus.steps.chain import is_made, run_steps

    steps, target = tour.variants[name], folder / name

    def between(count: int) -> Path:
        return folder / next(other for other, made in tour.variants.items() if made == steps[:count])

    if not is_made(target, Checkpoint(resolve(tour.model)).checksum(), steps):
        folder.mkdir(parents=True, exist_ok=True)
        run_steps(tour.model, target, steps, StepOptions(overwrite=True), between)
    return target


def _start_worker(drawn: "Synchronized[float]") -> None:
    import torch

    from prunus.evaluation.side_by_side import end_with_parent

    end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it was killed while this process started
        os._exit(1)

    def heard(label: str, more: float) -> None:
        if label == EVALUATING:
            with drawn.get_lock():
                drawn.value += more

    torch.set_num_threads(1)
    set_quiet(True)
    hear(heard)
