"""The whole job on a built-in reasoner: prune, drop, narrow, quantise, recover, evaluate, compare, search, report."""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import prunus
from prunus.cards.certified import CERTIFICATE
from prunus.evaluation.resolved_plan import load_problems
from prunus.progress import Steps, out_console, say, set_quiet
from prunus.recipes import DropRecipe, EvalPlan, ExpertsRecipe, PruneRecipe, QuantizeRecipe, RecoverRecipe, WidthRecipe
from prunus.recipes.base import Recipe
from prunus.reporting.terminal import curve_table, verdict_table
from prunus.results.certificate import read_certificate
from prunus.results.comparison import compared
from prunus.results.summary import summarise
from prunus.settings.engines import EngineOptions
from prunus.settings.margins import Margin
from prunus.step import Where
from prunus.store.store import Store
from prunus.studies.file import FindRules, FindTable
from prunus.studies.find.page import NAME as PAGE


class Tour(NamedTuple):
    """What a demonstration shows: a model and the steps of its variants.

    Where a variant has several steps, the first of them make another one. quick: the variants that `--quick` makes,
    without a search. ladder: to search, by `find` with these rules; empty for no search.
    """

    model: str
    variants: Mapping[str, Sequence[Recipe]]
    quick: tuple[str, ...]
    ladder: tuple[PruneRecipe, ...] = ()
    rules: FindRules = FindRules()


CALIBRATION = {"calibration": "tiny", "samples": 128}
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
    tuple(PruneRecipe(method="wanda", sparsity=share, **CALIBRATION) for share in (0.1, 0.3, 0.5)),
    FindRules(margin=0.06, stop_margin=0.1),
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
PLAN = EvalPlan(tasks=("tiny",), budgets=(0, 16, 32, 64, 128, 256, 512, 1024), limit=630, batch_size=210)
# What fits into a minute, and the loss that so few problems can rule out.
QUICK_PLAN, QUICK_MARGIN = replace(PLAN, budgets=(0, 16, 32, 64, 128, 256, 512), limit=84), 0.05


def demo(out: Path | str = "prunus-demo", quick: bool = False, experts: bool = False) -> dict[str, Any]:
    """Run the demonstration in the folder out; returns the comparison with the dense model, as `compare` does.

    It writes out/models/NAME, out/results.db, out/report.html, and in out/found what a search for the most compressed
    certified version finds; a second call reuses them. quick: only two variants, on fewer problems, without a search.
    experts: remove experts of the built-in mixture instead, without a search. Raises PrunusError if out cannot be
    written.
    """
    folder, tour, plan, margin = Path(out), EXPERTS if experts else DENSE, PLAN, 0.02
    if quick:
        tour = Tour(tour.model, {name: tour.variants[name] for name in tour.quick}, tour.quick)
        plan, margin = QUICK_PLAN, QUICK_MARGIN
    made = {name: str(make_variant(folder / "models", name, tour)) for name in tour.variants}
    prefix = "experts-" if experts else ""
    store = folder / f"{prefix}{'quick' if quick else 'results'}.db"
    runs = evaluate_all({tour.model: tour.model} | made, plan, store)
    with Store(store) as opened:
        stored = opened.runs()
        out_console.print(curve_table([summarise(opened, run) for run in runs.values()]))
    comparison = compared(store, runs[tour.model], [runs[name] for name in made], margin)
    out_console.print(verdict_table(comparison, stored))
    links = []
    if tour.ladder:
        found = folder / "found"
        outcome = search(tour, plan, store, found)
        out_console.print(outcome)
        links.append((outcome, f"{found.name}/{PAGE}"))
    page = folder / f"{prefix}report.html"
    prunus.report(
        store, page, base=runs[tour.model], margin=margin, overwrite=True, runs=set(runs.values()), links=links
    )
    say(f"The page with curves and verdicts: {page}")
    return comparison.to_json()


def search(tour: Tour, plan: EvalPlan, store: Path, target: Path) -> str:
    """Search a ladder, unless target has its result; returns the decisions in a sentence. Dense rows are shared."""
    from prunus.studies.find.find import carry_out, is_finished
    from prunus.studies.find.search import ladders_of, open_search

    asked = FindTable(tour.ladder, rules=tour.rules)
    opened = open_search(tour.model, plan, asked, ladders_of(asked), engine=EngineOptions())
    if not is_finished(opened, target):
        carry_out(opened, target, store, "auto", overwrite=True, always=True)
    (ladder,) = read_certificate(target / CERTIFICATE).shown.ladders
    words = ", ".join(f"{rung.name} is {rung.word}" for rung in ladder.rungs).replace("is cannot", "cannot")
    margin, stop_margin = (Margin.of(one).words() for one in (tour.rules.margin, tour.rules.stop_margin))
    margins = f"{margin} of accuracy, {stop_margin.removesuffix(' points')} of ending by itself"
    return f"Searched for the most that can be removed (losses ruled out: {margins}): {words}."


def make_variant(folder: Path, name: str, tour: Tour) -> Path:
    """The checkpoint of a variant in a folder; made unless the folder has it from the same source and recipes."""
    from prunus.checkpoint.checkpoint import Checkpoint
    from prunus.checkpoint.resolve import resolve
    from prunus.steps.chain import carry_out, is_made

    steps, target = tour.variants[name], folder / name

    def between(count: int) -> Path:
        return folder / next(other for other, made in tour.variants.items() if made == steps[:count])

    if not is_made(target, Checkpoint(resolve(tour.model)).checksum(), steps):
        say(f"making {name}")
        folder.mkdir(parents=True, exist_ok=True)
        carry_out(tour.model, target, steps, Where(overwrite=True), between)
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
