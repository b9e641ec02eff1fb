"""Accuracy against latency, dense and packed: `python benchmarks/seconds.py FOLDER`, some minutes on one thread.

The tiny reasoner (Wanda 50 %, on its own problems) and SmolLM2-135M-Instruct (Wanda 30 %, on one-digit sums), each
unpruned, pruned and dense, and the same packed. Tokens are timed in one process, alternating between models, so that
a busy machine slows all of them alike. Then some draws are decoded alone and compared with the time predicted from
their tokens. FOLDER keeps models, answers and speeds, so that a second call only prints and writes the pages.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from docstrings import docstrings

import prunus
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.engines import EngineOptions
from prunus.evaluation.backends.hf import HFBackend
from prunus.evaluation.latency import TOKENS, Round, clock_name, grid, machine_of, speed_of
from prunus.evaluation.provenance import open_for
from prunus.evaluation.resolved_plan import ResolvedPlan, resolve_plan
from prunus.evaluation.run import run_batch
from prunus.recipes import EvalPlan, PruneRecipe
from prunus.results.latency import Speed, affordable, by_budget, deadlines
from prunus.results.metrics import estimate
from prunus.results.store import Store
from prunus.results.table import tables

SMOLLM2 = Path(__file__).resolve().parents[1] / ".cache" / "smollm2"
# Rounds of timing, and draws that are decoded alone; fewer for a larger model.
ROUNDS, ALONE = {"tiny": 12, "smollm2": 4}, {"tiny": 6, "smollm2": 2}
ENGINE, DEVICE = EngineOptions(), "cpu"


class Subject(NamedTuple):
    """A model, how it is pruned, and its problems."""

    name: str
    model: Path | str
    recipe: PruneRecipe
    plan: EvalPlan


def subjects(folder: Path) -> list[Subject]:
    """Return both models, with their files written."""
    sums, text = folder / "sums.jsonl", folder / "docstrings.txt"
    pairs = [(a, b) for a in range(2, 10) for b in range(2, 10)]
    random.Random(0).shuffle(pairs)
    rows = [{"id": f"sum-{a}-{b}", "problem": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in pairs]
    sums.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text.write_text("\n\n".join(docstrings()))
    tiny_plan = EvalPlan(tasks=("tiny",), budgets=(16, 32, 64, 128, 256, 512, 1024), limit=210, batch_size=210)
    sums_plan = EvalPlan(
        tasks=(str(sums),),
        budgets=(0, 4, 16, 64),
        profile="s1",
        temperature=0.0,
        answer_tokens=16,
        batch_size=64,
    )
    wanda = PruneRecipe(method="wanda", sparsity=0.5)
    smollm2 = PruneRecipe(method="wanda", sparsity=0.3, calibration=str(text), samples=8, seqlen=512)
    return [Subject("tiny", "tiny", wanda, tiny_plan), Subject("smollm2", SMOLLM2, smollm2, sums_plan)]


def variants(subject: Subject, folder: Path) -> dict[str, Path]:
    """Return the folders of a subject's models by name."""
    half, packed = folder / f"{subject.name}-pruned", folder / f"{subject.name}-packed"
    if not half.exists():
        prunus.prune(subject.model, half, subject.recipe)
    if not packed.exists():
        prunus.pack(half, packed)
    return {"unpruned": resolve(subject.model), "pruned, dense": half, "pruned, packed": packed}


def timed_in_turns(
    backends: Mapping[str, HFBackend], work: ResolvedPlan, longest: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Return the latency of every model, as prunus.evaluation.latency.measure returns it for one."""
    prompts: dict[str, list[int]] = {}
    for problem, ids in zip(work.problems, work.prompts, strict=True):
        prompts.setdefault(problem.task, []).append(len(ids))
    contexts = list(grid(min(map(len, work.prompts)), longest))
    timed: dict[str, dict[int, list[Round]]] = {name: {tokens: [] for tokens in contexts} for name in backends}
    for turn in range(rounds + 1):
        for tokens in contexts:
            for name, backend in backends.items():
                found = backend.time_tokens(tokens, TOKENS)
                if turn:  # the first round is a warm-up
                    timed[name][tokens].append(found)
    return {
        name: speed_of(
            timed[name],
            prompts,
            len(work.rules.markers.start),
            {**backend.description, "clock": clock_name(), "torch": torch.__version__},
            statistics.median,
        )
        for name, backend in backends.items()
    }


def alone(backend: HFBackend, work: ResolvedPlan, speed: Speed, count: int) -> list[float]:
    """Return the seconds of draws decoded alone, relative to the prediction from their tokens."""
    budget = work.budgets[-1]
    one = replace(work, budgets=(budget,))
    shares = []
    for index in range(0, len(work.problems), max(1, len(work.problems) // count)):
        started = time.thread_time()
        ((draw,),) = run_batch(one, backend, [(index, 0)])
        took = time.thread_time() - started
        tokens = len(draw.thinking) + len(draw.answer) + draw.forced_tokens - speed.start
        shares.append(took / float(speed.seconds(len(work.prompts[index]), tokens)))
    return shares


def measure(subject: Subject, folder: Path, store: Path) -> None:
    """Evaluate and time one subject's models, where the store lacks results."""
    runs, backends, works = {}, {}, {}
    for name, model in variants(subject, folder).items():
        runs[name] = prunus.evaluate(model, subject.plan, store, device=DEVICE)
        checkpoint, kernel = open_for("hf", model, DEVICE, ENGINE)
        works[name] = resolve_plan(checkpoint, load_tokenizer(model), subject.plan, kernel)
    with Store(store) as opened:
        if all(opened.timings(run_id) for run_id in runs.values()):
            return
    for name, model in variants(subject, folder).items():
        backends[name] = HFBackend.load(model, DEVICE, len(works[name].tokenizer))
    work = works["unpruned"]
    longest = max(map(len, work.prompts)) + work.budgets[-1] + work.rules.markers.longest + max(work.caps)
    found = timed_in_turns(backends, work, longest, ROUNDS[subject.name])
    with Store(store) as opened:
        for name, speed in found.items():
            shares = alone(backends[name], works[name], Speed.from_json(speed), ALONE[subject.name])
            speed["how"]["alone"] = {"draws": len(shares), "median": statistics.median(shares)}
            opened.set_timing(runs[name], machine_of(DEVICE), speed)


def show(subject: Subject, folder: Path, store: Path) -> None:
    """Print a table for docs/measurements/latency.md."""
    columns = ("", "ms per token at", "and at", "spread", "alone", *(f"budget {b}" for b in subject.plan.budgets))
    print(f"\n{subject.name}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    ends: dict[str, dict[int, dict[str, float]]] = {}
    with Store(store) as opened:
        for name, model in variants(subject, folder).items():
            run_id = prunus.evaluate(model, subject.plan, store, device=DEVICE)
            (data,) = opened.timings(run_id).values()
            speed, (task, table) = Speed.from_json(data), next(iter(tables(opened.samples(run_id)).items()))
            ends[name] = by_budget(table, speed, task)
            row = [f"{1000 * speed.decode[k]:.2f} ({speed.contexts[k]})" for k in (0, -1)]
            row += [f"{100 * speed.how['spread']:.0f} %", f"{speed.how['alone']['median']:.2f}"]
            accuracies = table.correct.mean(axis=2).mean(axis=0)
            row += [
                f"{100 * a:.1f} % in {ends[name][b]['mean']:.2f} s"
                for b, a in zip(table.budgets, accuracies, strict=True)
            ]
            print(f"| {name} | {' | '.join(row)} |")
            print_kernel(speed)
        print_deadlines(opened, subject, folder, store, ends)


def print_kernel(speed: Speed) -> None:
    """Print which kernels a packed model's Linears run on."""
    if "kernel" in speed.how:
        print(f"<!-- {speed.how['kernel']} -->")


def print_deadlines(
    opened: Store, subject: Subject, folder: Path, store: Path, ends: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> None:
    """Print the accuracy of each model at the largest budget that meets a deadline."""
    late = [cell["p95"] for cells in ends.values() for cell in cells.values()]
    for deadline in deadlines(min(late), max(late)):
        parts: list[str] = []
        for name, model in variants(subject, folder).items():
            budget = affordable(ends[name], deadline)
            if budget is None:
                parts.append(f"{name}: none")
                continue
            run_id = prunus.evaluate(model, subject.plan, store, device=DEVICE)
            table = next(iter(tables(opened.samples(run_id)).values()))
            one = estimate(table.correct[:, table.budgets.index(budget)].mean(axis=1))
            interval = f"[{100 * one.low:.1f}, {100 * one.high:.1f}]"
            parts.append(f"{name}: budget {budget}, {100 * one.value:.1f} % {interval}")
        print(f"by {deadline:g} s: {'; '.join(parts)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, print the tables, write a page for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("tiny", "smollm2"))
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for subject in subjects(options.folder):
        if options.only not in (None, subject.name):
            continue
        store = options.folder / f"{subject.name}.db"
        measure(subject, options.folder, store)
        show(subject, options.folder, store)
        page = options.folder / f"{subject.name}.html"
        prunus.report(store, page, figures=options.folder / f"{subject.name}-figures", overwrite=True)
        print(f"\nwrote {page}")


if __name__ == "__main__":
    main()
