"""Prune a checkpoint block by block, with one block and the calibration tokens' hidden states in memory."""

import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.experts import StorageCopies
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.loader import Block, blocks_on, return_freed_memory
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.resolve import resolve, versions
from prunus.checkpoint.runner import Runner, pick_device
from prunus.checkpoint.safetensors_file import Stored
from prunus.checkpoint.writer import Partial, check_target
from prunus.disk import check_space, disk_errors, show_bytes
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.allocate import allocate_groups, find_scores, keep_scores, linear_sparsities, revisions
from prunus.pruning.allocation import ALLOCATIONS
from prunus.pruning.calibration.beforehand import check_calibration
from prunus.pruning.calibration.data import Calibration, describe_calibration, keep_calibration, load_early
from prunus.pruning.calibration.hidden_states import HiddenStates, check_block_fits, propagate
from prunus.pruning.calibration.propagation import PROPAGATIONS, BlockRun
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.pruning.calibration.statistics import InputStats, few_tokens
from prunus.pruning.job import Job, name_of, target_of
from prunus.pruning.made_card import made_card
from prunus.pruning.masks import count_zeros, zeros_of, zeros_wanted
from prunus.pruning.methods import find_method
from prunus.pruning.scope import linears_in_scope
from prunus.recipes import PruneRecipe


def prune(
    model: str | Path,
    out: str | Path,
    recipe: PruneRecipe,
    *,
    device: str = "auto",
    offload: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    stats: str | Path | None = None,
    shared: str | Path | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Write a pruned copy of model (folder, hub id or `tiny`) to the folder out; returns a summary.

    Unfinished work is in out.partial: the same call resumes it and writes the same bytes as an uninterrupted run.

    offload: keep hidden states on disk instead of in memory.
    overwrite: replace an existing result.
    dry_run: write nothing, and return what would be done (see below).
    stats: a file that stats() wrote for this model. Its calibration is used and the model is not run; fields of the
        recipe that ask for another calibration are an error.
    shared: a folder in which several calls share importance scores and sums of gradients.
    name: what the manifest calls the model; None: as it is given.

    Returns a dict:

    out, method: the folder, and the recipe's method.
    blocks, linears: number of blocks and of Linears in scope.
    sparsity: share of zeros among the weights of all Linears in scope; linear_sparsity has the same by Linear, with one
        entry for the same matrix of all experts of a block (`mlp.experts.*.gate_proj`).
    seconds: run time.
    warnings: one line each.

    With dry_run it has would_write (the folder), method, blocks, linears and warnings, and instead of the others:

    weights, zeros: numbers over all Linears in scope.
    disk, calibration: the space needed, and the calibration sequences, as text.
    influences: the sequences that an allocation measures influences on, as text, if it does.

    Raises PrunusError for wrong input, and then leaves nothing behind.
    """
    started = time.monotonic()
    check_calibration(recipe, model, out, stats=stats)
    source, target = Checkpoint(resolve(model)), Path(out)
    check_target(source.folder, target, overwrite)
    job = make_job(source, recipe, device, offload, stats, None if shared is None else Path(shared))
    recipe = job.recipe
    if dry_run:
        return describe(job, target)
    early = load_early(recipe, source, target) if job.needs_tokens else None
    if ALLOCATIONS[recipe.allocation].needs != "nothing" or any(one.whole_model for one in job.passes):
        source.checksum()  # measurements of all blocks come before pruning, so the blocks are checked before
    work = {"action": "prune", "recipe": recipe.to_json(), "source": source.fingerprint(), **revisions(recipe)}
    if any(linear.experts for linears in job.linears for linear in linears):
        work["experts_revision"] = 2  # they were left dense
    if job.stats is not None:
        work["stats"] = job.stats.about
    with Partial(source, target, work, source.blocks, job.disk, overwrite) as partial, full_float32(job.device):
        calibration = keep_calibration(recipe, source, partial, early) if job.needs_tokens else None
        if calibration and recipe.weighted:
            calibration.token_weights(recipe)  # to fail early if the sequences cannot be weighted
        scores = keep_scores(job, partial, calibration)
        sparsities = allocate_groups(source, recipe, scores)
        job = job._replace(sparsities=linear_sparsities(source, recipe, sparsities, job.method.group))
        for one in job.passes:
            one.prepare(job, partial, calibration)
        with torch.no_grad():
            prune_blocks(job, partial, calibration)
        sparsity = {name: share for i in range(source.blocks) for name, share in partial.records[i]["sparsity"].items()}
        notes = [*(calibration.warnings if calibration else []), *scores.warnings, *sparsities.warnings]
        notes += [warning for index in range(source.blocks) for warning in partial.records[index]["warnings"]]
        notes += few_of(job, partial)
        warnings = [*source.reading_notes, *dict.fromkeys(notes), *dead_inputs(partial), *ragged_tails(job)]
        step = {
            "action": "prune",
            "recipe": recipe.to_json(),
            "versions": versions(),
            "source": source.provenance(name or model),
            "calibration": calibration.summary() if calibration else job.stats and job.stats.summary,
            "sparsity": sparsity,
            "allocation": scores.to_json() if recipe.allocation != "uniform" else None,
            "warnings": warnings,
        }
        partial.finish(None, step, made_card(source, step))
    zeros = sum(record["zeros"] for record in partial.records.values())
    return {
        "out": str(target),
        "method": recipe.method,
        "blocks": source.blocks,
        "linears": sum(map(len, job.linears)),
        "sparsity": zeros / job.weights,
        "seconds": time.monotonic() - started,
        "linear_sparsity": sparsity,
        "warnings": warnings,
    }


def make_job(
    source: Checkpoint, recipe: PruneRecipe, device: str, offload: bool, stats: str | Path | None, shared: Path | None
) -> Job:
    """The job of a recipe; raises PrunusError if model, recipe and statistics do not fit each other."""
    linears = linears_in_scope(source, recipe)
    dtype = source.dtype if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    check_block_fits(source, dtype)
    method = find_method(recipe)
    passes = tuple(make() for make in method.passes or ())
    saved = None
    if stats is not None:
        if passes:
            raise PrunusError(f"{stats} holds no {passes[0].needs}, which {name_of(recipe)} needs; leave --stats out")
        saved = SavedStats(stats, source)
        saved.check(recipe, method.needs, ALLOCATIONS[recipe.allocation].needs)
        recipe = saved.recipe(recipe)
    return Job(source, recipe, method, passes, linears, pick_device(device), dtype, saved, offload, shared)


def prune_blocks(job: Job, partial: Partial, calibration: Calibration | None) -> None:
    """Prune block after block. Blocks that `partial` already has are run for their hidden states, not pruned again."""
    source, recipe = job.source, job.recipe
    runner = Runner(source.config, source.tensors, job.dtype, job.device)
    hidden = None
    if calibration is not None and not all(map(partial.has, range(source.blocks))):
        with disk_errors(partial.folder, partial.needed):
            weights = calibration.token_weights(recipe) if recipe.weighted else None
            hidden = HiddenStates(runner, calibration.sequences, job.hidden_file(partial), job.room_needed, weights)
    left = [index for index in range(source.blocks) if not partial.has(index)]
    kept = left if source.has_small_blocks and job.device.type == "cpu" else []
    # Allocated and freed at once, so that glibc raises its threshold and reuses freed memory for every block.
    np.empty(31 << 20, np.uint8)
    with (
        Steps("pruning", total=source.blocks, unit="blocks", done=len(partial.records)) as steps,
        closing(source.checked_blocks(outside_first=hidden is not None, keep=kept)) as checked,
        closing(blocks_on(source, [] if kept else left, job.device)) as blocks,
    ):
        for index, digest, tensors in checked:
            if index is None:
                continue
            if partial.has(index):
                if partial.records[index]["source"] != digest:
                    raise PrunusError(
                        f"{source.folder} has changed since the unfinished work was done; run again to start over"
                    )
                if hidden is not None and index < source.blocks - 1:
                    stored = source.block_tensors(index) if recipe.propagation == "dense" else partial.read_block(index)
                    propagate(runner, runner.make_block(index, source.read_block(index, stored)), hidden)
                continue
            tensors = next(blocks) if tensors is None else tensors
            partial.write_block(index, *prune_block(job, partial, runner, index, hidden, tensors, digest))
            for one in job.passes:
                one.written(job, index)
            steps.advance()


def prune_block(
    job: Job, partial: Partial, runner: Runner, index: int, hidden: HiddenStates | None, tensors: Block, digest: str
) -> tuple[dict[str, Tensor | Stored], dict[str, object]]:
    """Prune one block; returns its tensors by their names on disk, and the record for the journal.

    hidden: becomes the input of the next block. tensors: the block's; those of the pruned Linears are removed from it.
    digest: of the block in the source, for the record.
    """
    names = [linear.name for linear in job.linears[index]]
    groups: Iterable[Mapping[str, InputStats | None]] = [dict.fromkeys(names)]
    pruned: dict[str, Tensor] = {}
    run: BlockRun | None = None

    def finish_block() -> None:
        for one in job.passes:
            one.after_block(job, run, index, pruned)

    if job.stats is not None:
        groups = job.stats.groups(index, job.method.needs, job.device)
    if hidden is not None:
        block, last = runner.make_block(index, tensors), index == job.source.blocks - 1
        least = job.recipe.min_expert_tokens
        run = BlockRun(runner, block, index, hidden, job.linears[index], last, job.method.needs, finish_block, least)
        passed = PROPAGATIONS[job.recipe.propagation](run)
        for one in job.passes:
            passed = one.statistics(job, run, tensors, passed)
        groups = passed
    zeros: dict[str, int] = {}
    sizes: dict[str, int] = {}
    dead: dict[str, int] = {}
    pooled: dict[str, int] = {}
    warnings: list[str] = []
    has_experts = run is not None and run.has_experts
    keeps_dense = has_experts and job.recipe.propagation == "dense"
    by_name = {linear.name: linear for linear in job.linears[index]}
    copies = StorageCopies()
    for group in map(dict, groups):
        for name in [name for name in names if name in group]:
            weight_OI, inputs = tensors.pop(f"{name}.weight"), group.pop(name)
            new_OI = job.method.prune(weight_OI.to(job.device), inputs, job.target(index, name))
            if run is not None and not keeps_dense:
                set_weight(run.block, by_name[name], new_OI.to(job.dtype))
            # In place for experts, of which there would be a second copy otherwise.
            if by_name[name].experts and weight_OI.device.type == "cpu":
                pruned[name] = (copies.of(weight_OI) if keeps_dense else weight_OI).copy_(new_OI)
            else:
                pruned[name] = new_OI.cpu()
            summary = job.source.block_name(index, by_name[name].summary_name)
            zeros[summary] = zeros.get(summary, 0) + count_zeros(new_OI)
            sizes[summary] = sizes.get(summary, 0) + new_OI.numel()
            if inputs is not None and (unused := int((inputs.norm_I == 0).sum())):
                dead[summary] = max(unused, dead.get(summary, 0))
            if inputs is not None and inputs.hessian is not None and inputs.hessian.warning is not None:
                warnings.append(inputs.hessian.warning)
            if inputs is not None and inputs.pooled is not None:
                expert = job.source.block_name(index, name.rpartition(".")[0])
                pooled[expert] = inputs.pooled
            weight_OI = inputs = None  # a Hessian can be as large as a weight, so free both before the next pass
        if has_experts:
            return_freed_memory()
    if run is None:
        finish_block()
    run = None  # breaks the reference cycle of run and finish_block, which would keep the block in memory
    if has_experts:
        return_freed_memory()
    weights = {f"{name}.weight": weight_OI for name, weight_OI in pruned.items()}
    record = {
        "source": digest,
        "sparsity": {name: count / sizes[name] for name, count in zeros.items()},
        "zeros": sum(zeros.values()),
        "dead": dead,
        "warnings": warnings,
        **({"pooled": pooled} if pooled else {}),
    }
    return {**job.source.block_tensors(index), **job.source.as_stored(index, weights)}, record


def set_weight(block: nn.Module, linear: Linear, weight_OI: Tensor) -> None:
    """Give a Linear of a block another weight: in place if it is part of a tensor of all experts."""
    parameter = block.get_submodule(linear.name).get_parameter("weight")
    if linear.experts:
        parameter.data.copy_(weight_OI)
    else:
        parameter.data = weight_OI


def dead_inputs(partial: Partial) -> list[str]:
    """A warning if some input features were zero on every calibration token."""
    dead = {name: count for record in partial.records.values() for name, count in record["dead"].items()}
    if not dead:
        return []
    worst = max(dead, key=lambda name: dead[name])
    zero = "input features that were zero on every calibration token"
    return [f"{len(dead)} Linears have {zero}, most of all {worst} ({dead[worst]})"]


def few_of(job: Job, partial: Partial) -> list[str]:
    """A warning if experts were pruned by the statistics of all tokens of their layer."""
    few = {name: count for record in partial.records.values() for name, count in record.get("pooled", {}).items()}
    experts = {
        (index, linear.expert) for index, linears in enumerate(job.linears) for linear in linears if linear.expert
    }
    return few_tokens(few, len(experts), job.recipe.min_expert_tokens, "were pruned by their")


def describe(job: Job, target: Path) -> dict[str, object]:
    """What `prune` would do, as a dict, as far as it is known without reading weights or using the network.

    would_write: folder of the result. weights, zeros: numbers over all Linears in scope. disk: space needed, as text.
    calibration, influences: descriptions of the calibration sequences, and of the allocation's own if it has any.
    Raises PrunusError as prune does.
    """
    recipe, source, needed = job.recipe, job.source, job.disk
    check_space(target.absolute(), needed)
    uniform = target_of(recipe, recipe.sparsity)
    shapes = [linear.shape_OI for linears in job.linears for linear in linears]
    zeros = sum(zeros_of(uniform, shape_OI, job.method.group) for shape_OI in shapes)
    if recipe.allocation != "uniform":  # then the count holds for all Linears together
        zeros = zeros_wanted(job.weights, recipe.sparsity, recipe.rounding)
    allocation = ALLOCATIONS[recipe.allocation]
    if allocation.needs == "nothing":
        allocate_groups(source, recipe, find_scores(source, recipe, job.device, None))  # so that a wrong step fails
    calibration, influences, warnings = "none needed", None, [*source.reading_notes, *ragged_tails(job)]
    if job.stats is not None:
        calibration = f"statistics of {job.stats.path}: {job.stats.summary['source']}"
    elif job.needs_tokens or (allocation.needs == "norms" and recipe.scores is None):
        calibration, more = describe_calibration(recipe, source)
        warnings += more
    if allocation.calibration is not None and recipe.scores is None:
        influences, more = describe_calibration(allocation.calibration(recipe)[0], source)
        warnings += [warning for warning in more if warning not in warnings]
    return {
        "would_write": str(target),
        "method": recipe.method,
        "blocks": source.blocks,
        "linears": len(shapes),
        "weights": job.weights,
        "zeros": zeros,
        "disk": show_bytes(needed),
        "calibration": calibration,
        "warnings": warnings,
        **({} if influences is None else {"influences": influences}),
    }


def ragged_tails(job: Job) -> list[str]:
    """A warning if the pattern's width does not divide the inputs of some Linears: their last columns stay dense."""
    if job.recipe.groups is None:
        return []
    width = job.recipe.groups[1]
    linears = dict.fromkeys((linear.name, linear.shape_OI[1]) for linears in job.linears for linear in linears)
    tails = [f"{name} ({inputs % width} of {inputs})" for name, inputs in linears if inputs % width]
    if not tails:
        return []
    listed = ", ".join(tails)
    return [f"pattern {job.recipe.pattern} leaves the last columns of these Linears dense in every block: {listed}"]
