"""Prune and recover in rounds of rising sparsity, each calibrated on chains drawn from the previous round's model.

After pruning in one step, recovery must repair the whole loss at once. In rounds, each recovery repairs a smaller loss,
and the next round is calibrated on the chains of the recovered model, as RESP (arXiv:2512.02185) draws its calibration
anew from the model that it prunes.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.manifest import MANIFEST
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.runner import pick_device
from prunus.checkpoint.writer import check_target, replace_folder
from prunus.disk import locked, write_text
from prunus.engines import EngineOptions
from prunus.errors import PrunusError
from prunus.evaluation.resolved_plan import load_problems
from prunus.evaluation.traces import check_problems, traces
from prunus.hashing import canonical_json
from prunus.progress import say
from prunus.pruning.made_card import renew_card
from prunus.pruning.methods import find_method
from prunus.pruning.pipeline import prune
from prunus.pruning.recover import check_trainable, prune_and_recover, recover
from prunus.recipes import PruneRecipe, RecoverRecipe, TraceRecipe

Calibrated = TypeVar("Calibrated", PruneRecipe, RecoverRecipe)
Drawn = Literal["recovered", "dense"]
WORK = "rounds.json"  # file that identifies the work of a folder of unfinished rounds


def prune_in_rounds(
    model: str | Path,
    out: str | Path,
    recipe: PruneRecipe,
    recovery: RecoverRecipe | None = None,
    *,
    rounds: int,
    chains: TraceRecipe,
    drawn_from: Drawn = "recovered",
    engine: EngineOptions | None = None,
    device: str = "auto",
    offload: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Prune and recover a model in `rounds` rounds, write it to the folder out, and return the last recovery's summary.

    The sparsity rises to the recipe's: every round removes the same share of the remaining weights, and removed weights
    stay zero. The first round uses the calibration of recipe and recovery, each later one the chains drawn for it: from
    the model that the previous round recovered, or from the dense model. Recovery always learns from the dense model;
    its tokens and epochs are those of one round. `rounds` in the summary and the manifest describe every round.

    engine: options to start or reach the backend of chains (docs/engines.md).

    Unfinished work stays in out.rounds; the same call resumes it and ends with the same bytes. Wrong input raises
    PrunusError and leaves nothing behind.
    """
    target, recovery = Path(out), recovery or RecoverRecipe.like(recipe)
    source = Checkpoint(resolve(model))
    check_target(source.folder, target, overwrite)
    check_rounds(recipe, rounds, drawn_from)
    (engine or EngineOptions()).check(chains.backend)
    if chains.backend == "openai" and drawn_from == "recovered":
        raise PrunusError("a server draws chains of the model that it serves; draw from dense, or with another backend")
    check_problems(load_problems(chains.plan()))
    check_trainable(source, pick_device(device))
    sparsities = rising(recipe.sparsity, rounds)
    where: dict[str, Any] = {"device": device, "offload": offload}
    engines: dict[str, Any] = {"device": device, "engine": engine}
    planned = prune_and_recover(model, out, recipe, recovery, overwrite=overwrite, dry_run=True, **where)
    if dry_run:
        return planned | {"rounds": ", ".join(f"{100 * sparsity:.3g} %" for sparsity in sparsities)}
    folder = target.absolute().with_name(f"{target.name}.rounds")
    asked = {"recipe": recipe, "recovery": recovery, "chains": chains}
    work = {name: settings.to_json() for name, settings in asked.items()}
    work |= {"rounds": rounds, "drawn_from": drawn_from, "source": source.checksum()}
    open_work(folder, canonical_json(work), overwrite)
    with locked(folder / "lock", f"is working on {folder}; wait for it"):
        finished = [number for number in range(1, rounds + 1) if (folder / str(number) / MANIFEST).exists()]
        summary: dict[str, Any] = {}
        for number in range(max(finished, default=0) + 1, rounds + 1):
            say(f"round {number} of {rounds}: a sparsity of {100 * sparsities[number - 1]:.3g} %")
            before = folder / str(number - 1) if number > 1 else model
            now, then = replace(recipe, sparsity=sparsities[number - 1]), recovery
            if number > 1:
                file = folder / f"{number}.jsonl"
                if not file.exists():
                    drawn = replace(chains, seed=chains.seed + number - 1)
                    traces(before if drawn_from == "recovered" else model, file, drawn, **engines)
                now, then = on_chains(now, file), on_chains(then, file)
            pruned = folder / f"{number}.pruned"
            if not (pruned / MANIFEST).exists():
                prune(before, pruned, now, **where)
            if number > 1:
                check_masks(Checkpoint(folder / str(number - 1)), Checkpoint(pruned))
            summary = recover(pruned, folder / str(number), then, dense=model, **where)
            for done in (pruned, folder / str(number - 1)):
                shutil.rmtree(done, ignore_errors=True)
        history = record_rounds(folder, rounds, chains, drawn_from)
        replace_folder(folder / str(rounds), target, overwrite)
    shutil.rmtree(folder)
    return summary | {"out": str(target), "rounds": history}


def rising(sparsity: float, rounds: int) -> list[float]:
    """The sparsity after each round; every round removes the same share of the remaining weights."""
    steps = [round(1 - (1 - sparsity) ** (number / rounds), 4) for number in range(1, rounds)]
    return [*steps, sparsity]


def check_rounds(recipe: PruneRecipe, rounds: int, drawn_from: str) -> None:
    """Raise PrunusError for settings that cannot be used in rounds."""
    if rounds < 2:
        raise PrunusError(f"rounds must be at least 2, not {rounds}; one round is what --recover does without it")
    if drawn_from not in get_args(Drawn):
        raise PrunusError(f"chains are drawn from {' or '.join(get_args(Drawn))}, not from '{drawn_from}'")
    if recipe.sparsity == 0:
        raise PrunusError("a sparsity of 0 leaves nothing to recover")
    if recipe.pattern is not None:
        raise PrunusError(f"pattern {recipe.pattern} cannot rise round by round; give a sparsity, or leave rounds out")
    if recipe.scores is not None:
        raise PrunusError("importance scores are of the dense model, not of later rounds; leave scores out")
    if find_method(recipe).updates:
        raise PrunusError(
            f"{recipe.method if recipe.update == 'none' else f'update {recipe.update}'} changes the weights that it"
            " keeps, so that a zero of an earlier round could come back; use another method, or leave rounds out"
        )


def open_work(folder: Path, work: str, overwrite: bool) -> None:
    """Create the folder of unfinished rounds, or continue it. Raises PrunusError if it belongs to other work."""
    file = folder / WORK
    if folder.exists() and not (file.exists() and file.read_text() == work):
        if not overwrite:
            raise PrunusError(f"{folder} holds unfinished rounds of another run; delete it or add --overwrite")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, work)


def on_chains(recipe: Calibrated, file: Path) -> Calibrated:
    """The recipe calibrated on the chains of a file, with the recipe's number of tokens or all that the file has."""
    available = sum(len(row["token_ids"]) for row in read_rows(file))
    wanted = recipe.calibration_tokens
    return replace(recipe, calibration=f"traces:{file}", calibration_tokens=wanted and min(wanted, available))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The chains in a file of traces."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def check_masks(before: Checkpoint, after: Checkpoint) -> None:
    """Raise AssertionError that names a Linear in which a zero of before is not zero in after."""
    for index in range(before.blocks):
        for linear in before.linears(index):
            old, new = (model.read_weight(index, f"{linear.name}.weight") for model in (before, after))
            assert not bool(torch.logical_and(old == 0, new != 0).any()), f"{linear.name} of block {index}"


def record_rounds(folder: Path, rounds: int, chains: TraceRecipe, drawn_from: Drawn) -> list[dict[str, Any]]:
    """Add a description of every round to the manifest of the last one, and return the descriptions."""
    file = folder / str(rounds) / MANIFEST
    manifest = json.loads(file.read_text())
    steps = manifest["history"][-2 * rounds :]
    described = []
    for number, (pruning, recovering) in enumerate(zip(steps[::2], steps[1::2], strict=True), 1):
        one: dict[str, Any] = {"number": number, "of": rounds}
        if number > 1:
            rows = read_rows(folder / f"{number}.jsonl")
            recipe = replace(chains, seed=chains.seed + number - 1).to_json()
            correct = sum(row["correct"] for row in rows)
            one["chains"] = {"from": drawn_from, "recipe": recipe, "count": len(rows), "correct": correct}
        for step in (pruning, recovering):
            step["round"] = one
        described.append(
            one | {"sparsity": pruning["recipe"]["sparsity"], "trained_tokens": recovering["cost"]["tokens"]}
        )
    write_text(file, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    renew_card(file.parent)
    return described
