"""Prune a checkpoint block by block, with one block and the calibration tokens' hidden states in memory."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.device import read_at_once
from prunus.checkpoint.experts import StorageCopies
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.loader import Block, blocks_on, return_freed_memory
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.runner import Runner
from prunus.checkpoint.safetensors_file import Stored
from prunus.checkpoint.writer import Partial
from prunus.disk import disk_errors
from prunus.errors import PrunusError
from prunus.plain_data import Record
from prunus.progress import Steps
from prunus.pruning.allocation import ALLOCATIONS
from prunus.pruning.calibration.data import Calibration, describe_calibration
from prunus.pruning.calibration.hidden_states import HiddenStates, check_block_fits, propagate
from prunus.pruning.calibration.propagation import PROPAGATIONS, BlockRun
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.pruning.calibration.statistics import InputStats, few_tokens
from prunus.pruning.job import PlannedJob, StepJob, open_job
from prunus.pruning.masks import zeros_in, zeros_of, zeros_wanted
from prunus.pruning.methods import find_method
from prunus.pruning.prune.allocate import allocate_groups, find_scores, keep_scores, linear_sparsities
from prunus.pruning.prune.job import PruneJob, target_of
from prunus.pruning.scope import linears_in_scope
from prunus.recipes import PruneRecipe
from prunus.step import Made


class Pruned(Made):
    """A model with zeros, as `prune` wrote it.

    method: that of the recipe.
    blocks, linears: number of blocks, and of Linears in scope.
    sparsity: share of zeros among the weights of all Linears in scope.
    linear_sparsity: the same by Linear, with an entry for the same matrix of all experts of a block
        (`mlp.experts.*.gate_proj`).
    """

    method: str
    blocks: int
    linears: int
    sparsity: float
    linear_sparsity: Mapping[str, float]


class BlockRecord(Record):
    """What the journal keeps of a block that is pruned.

    source: digest of the block before. sparsity: of each Linear. zeros: number of them. dead: of Linears that have any,
    the number of inputs that were zero on every token. pooled: of experts whose statistics are those of all tokens of
    their layer, the number of tokens that they had of their own.
    """

    source: str
    sparsity: Mapping[str, float]
    zeros: int
    dead: Mapping[str, int]
    warnings: Sequence[str]
    pooled: Mapping[str, int] | None = None


class PlannedPrune(PlannedJob):
    """What `prune` would do.

    method: that of the recipe.
    blocks, linears: number of blocks, and of Linears in scope.
    weights, zeros: numbers over all Linears in scope.
    influences: the sequences on which an allocation measures influences, as text, if it does.
    """

    LAST = ("disk", "calibration", "influences", *PlannedJob.LAST[2:])

    method: str
    blocks: int
    linears: int
    weights: int
    zeros: int
    influences: str | None = None


def prune(
    model: str | Path,
    out: str | Path,
    recipe: PruneRecipe,
    *,
    device: str = "auto",
    offload: bool = False,
    overwrite: bool = False,
    stats: str | Path | None = None,
    shared: str | Path | None = None,
    name: str | None = None,
) -> Pruned:
    """Write a pruned copy of model to the folder out.

        pruned = prunus.prune("tiny", "wanda-20", prunus.PruneRecipe(method="wanda", sparsity=0.2))
        print(pruned.sparsity)

    Unfinished work is in out.partial: the same call resumes it and writes the same bytes as an uninterrupted run.

    model: a folder, a hub id or `tiny`.
    out: the folder to write.
    recipe: the method and its settings.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    offload: keep hidden states on disk instead of in memory.
    overwrite: replace an existing result.
    stats: a file that stats() wrote for this model. Its calibration is used and the model is not run; fields of the
        recipe that ask for another calibration are an error.
    shared: a folder in which several calls share importance scores.
    name: what the manifest calls the model; None: as it is given.

    Raises PrunusError for wrong input, and then leaves nothing behind.
    """
    job = make_job(open_job(
        model, out, PruneRecipe.given(recipe), name, stats=stats, shared=shared, device=device, offload=offload,
        overwrite=overwrite,
    ))  # fmt: skip
    source, recipe = job.source, job.recipe
    with job.unfinished_work(job.disk) as (partial, calibration), full_float32(job.device):
        if ALLOCATIONS[recipe.allocation].needs != "nothing":
            source.checksum()  # measurements of all blocks come before pruning, so the blocks are checked before
        scores = keep_scores(job, partial, calibration)
        sparsities, limits = allocate_groups(job.linears, recipe, scores)
        job = replace(job, sparsities=linear_sparsities(job.linears, recipe, sparsities, job.method.group))
        with torch.no_grad():
            prune_blocks(job, partial, calibration)
        records = [BlockRecord.of(partial.records[index]) for index in range(source.blocks)]
        sparsity = {name: share for record in records for name, share in record.sparsity.items()}
        notes = [*(calibration.warnings if calibration else []), *scores.warnings, *limits]
        notes += [warning for record in records for warning in record.warnings]
        notes += few_of(job.linears, [record.pooled for record in records], "were pruned by their")
        warnings = [*source.reading_notes, *dict.fromkeys(notes), *dead_inputs(records), *ragged_tails(job)]
        allocation = scores.to_json() if recipe.allocation != "uniform" else None
        record = {"sparsity": sparsity, "allocation": allocation, "warnings": warnings}
        return Pruned(
            method=recipe.method,
            blocks=source.blocks,
            linears=sum(map(len, job.linears)),
            sparsity=sum(record.zeros for record in records) / job.weights,
            linear_sparsity=sparsity,
            **vars(job.finish(partial, calibration, record)),
        )


def make_job(job: StepJob[PruneRecipe]) -> PruneJob:
    """The job with what pruning needs; raises PrunusError if model, recipe and statistics do not fit each other."""
    linears = linears_in_scope(job.source, job.recipe.scope)
    dtype = job.source.dtype_for(job.recipe.dtype)
    check_block_fits(job.source, dtype, job.device)
    method = find_method(job.recipe)

    def fitting(saved: SavedStats, recipe: PruneRecipe) -> PruneRecipe:
        saved.check(recipe, method.needs)
        return saved.with_calibration(recipe)

    job = job.with_saved(fitting)
    return PruneJob(**vars(job), method=method, linears=linears, dtype=dtype)


def prune_blocks(job: PruneJob, partial: Partial, calibration: Calibration | None) -> None:
    """Prune block after block. Blocks that `partial` already has are run for their hidden states, not pruned again."""
    source, recipe = job.source, job.recipe
    runner = Runner(source, job.dtype, job.device)
    hidden = None
    if calibration is not None and not all(map(partial.has, range(source.blocks))):
        with disk_errors(partial.folder, partial.needed):
            hidden = HiddenStates(runner, calibration.sequences, job.hidden_file(partial), job.room_needed)
    left = [index for index in range(source.blocks) if not partial.has(index)]
    # Allocated and freed at once, so that glibc raises its threshold and reuses freed memory for every block.
    np.empty(31 << 20, np.uint8)
    with (
        Steps("pruning", total=source.blocks, unit="blocks", done=len(partial.records)) as steps,
        closing(source.digests()) as digests,
        closing(blocks_on(source, left, job.device)) as blocks,
    ):
        for index, digest in digests:
            if index is None:
                continue
            if partial.has(index):
                if BlockRecord.of(partial.records[index]).source != digest:
                    raise PrunusError(
                        f"{source.folder} has changed since the unfinished work was done; run again to start over"
                    )
                if hidden is not None and index < source.blocks - 1:
                    stored = source.block_tensors(index) if recipe.propagation == "dense" else partial.read_block(index)
                    propagate(runner, runner.make_block(index, source.read_block(index, stored)), hidden)
                continue
            # No name is given to the tensors, which would keep them in memory while the next block is pruned.
            partial.write_block(index, *prune_block(job, runner, index, hidden, next(blocks), digest))
            steps.advance()


def prune_block(
    job: PruneJob, runner: Runner, index: int, hidden: HiddenStates | None, tensors: Block, digest: str
) -> tuple[dict[str, Tensor | Stored], dict[str, object]]:
    """Prune one block; returns its tensors by their names on disk, and its BlockRecord for the journal.

    hidden: becomes the input of the next block. tensors: the block's; those of the pruned Linears are removed from it.
    digest: of the block in the source, for the record.
    """
    linears = {linear.name: linear for linear in job.linears[index]}
    groups: Iterable[Mapping[str, InputStats | None]] = [dict.fromkeys(linears)]
    pruned: dict[str, Tensor] = {}
    run: BlockRun | None = None
    if job.saved is not None:
        groups = job.saved.groups(index, job.method.needs, job.device)
    if hidden is not None:
        block, last = runner.make_block(index, tensors), index == job.source.blocks - 1
        run = BlockRun(runner, block, index, hidden, job.linears[index], last, job.method.needs)
        groups = PROPAGATIONS[job.recipe.propagation](run)
    zeros, sizes, dead, pooled = Counter[str](), Counter[str](), Counter[str](), dict[str, int]()
    counted: list[tuple[str, Tensor, Tensor]] = []  # of each Linear its zeros and dead inputs, read at once at the end
    warnings: list[str] = []
    has_experts = run is not None and run.has_experts
    keeps_dense = has_experts and job.recipe.propagation == "dense"
    copies = StorageCopies()
    for group in map(dict, groups):
        for name, linear in [(name, linear) for name, linear in linears.items() if name in group]:
            weight_OI, inputs = tensors.pop(f"{name}.weight"), group.pop(name)
            new_OI = job.method.prune(weight_OI.to(job.device), inputs, job.zeros(index, name))
            if run is not None and not keeps_dense:
                set_weight(run.block, linear, new_OI.to(job.dtype))
            # In place for experts, of which there would be a second copy otherwise.
            if linear.experts and weight_OI.device.type == "cpu":
                pruned[name] = (copies.of(weight_OI) if keeps_dense else weight_OI).copy_(new_OI)
            else:
                pruned[name] = new_OI.cpu()
            summary, new_zeros = job.source.block_name(index, linear.summary_name), zeros_in(new_OI)
            sizes[summary] += new_OI.numel()
            counted.append(
                (summary, new_zeros, torch.zeros_like(new_zeros) if inputs is None else (inputs.norm_I == 0).sum())
            )
            if inputs is not None and inputs.hessian is not None and inputs.hessian.warning is not None:
                warnings.append(inputs.hessian.warning)
            if inputs is not None and inputs.pooled is not None:
                expert = job.source.block_name(index, name.rpartition(".")[0])
                pooled[expert] = inputs.pooled
            weight_OI = inputs = None  # a Hessian can be as large as a weight, so free both before the next pass
        if has_experts:
            return_freed_memory()
    for (summary, *_), (count, unused) in zip(counted, read_at_once([entry[1:] for entry in counted]), strict=True):
        zeros[summary] += count
        if unused:
            dead[summary] = max(unused, dead[summary])
    weights = {f"{name}.weight": weight_OI for name, weight_OI in pruned.items()}
    record = BlockRecord(
        source=digest,
        sparsity={name: count / sizes[name] for name, count in zeros.items()},
        zeros=sum(zeros.values()),
        dead=dead,
        warnings=warnings,
        pooled=pooled or None,
    )
    return {**job.source.block_tensors(index), **job.source.as_stored(index, weights)}, record.to_json()


def set_weight(block: nn.Module, linear: Linear, weight_OI: Tensor) -> None:
    """Give a Linear of a block another weight: in place if it is part of a tensor of all experts."""
    parameter = block.get_submodule(linear.name).get_parameter("weight")
    if linear.experts:
        parameter.data.copy_(weight_OI)
    else:
        parameter.data = weight_OI


def dead_inputs(records: Sequence[BlockRecord]) -> list[str]:
    """A warning if some input features were zero on every calibration token."""
    dead = {name: count for record in records for name, count in record.dead.items()}
    if not dead:
        return []
    worst = max(dead, key=lambda name: dead[name])
    zero = "input features that were zero on every calibration token"
    return [f"{len(dead)} Linears have {zero}, most of all {worst} ({dead[worst]})"]


def few_of(linears: Sequence[Iterable[Linear]], pooled: Iterable[Mapping[str, int] | None], then: str) -> list[str]:
    """A warning if statistics on all tokens of a layer took the place of some experts' own.

    linears: by block. pooled: of each block, as its record has it. then: as for few_tokens.
    """
    few = {name: count for counts in pooled for name, count in (counts or {}).items()}
    experts = {(index, linear.expert) for index, block in enumerate(linears) for linear in block if linear.expert}
    return few_tokens(few, len(experts), then)


def plan_prune(model: str | Path | Checkpoint, out: Path, recipe: PruneRecipe, **options: Any) -> PlannedPrune:
    """What `prune` would do, as far as it is known without reading weights or using the network."""
    job = make_job(open_job(model, out, recipe, None, **options))
    recipe, source = job.recipe, job.source
    uniform = target_of(recipe, recipe.sparsity)
    shapes = [linear.shape_OI for linears in job.linears for linear in linears]
    zeros = sum(zeros_of(uniform, shape_OI, job.method.group) for shape_OI in shapes)
    if recipe.allocation != "uniform":  # then the count holds for all Linears together
        zeros = zeros_wanted(job.weights, recipe.sparsity, recipe.rounding)
    if recipe.measured == "nothing":  # so that a wrong --step fails in a dry run, too
        allocate_groups(job.linears, recipe, find_scores(source, recipe, job.device, None))
    warnings, influences = [*source.reading_notes, *ragged_tails(job)], None
    allocation = ALLOCATIONS[recipe.allocation]
    if allocation.calibration is not None and recipe.scores is None:
        influences, more = describe_calibration(allocation.calibration(recipe)[0], source)
        warnings += more
    return PlannedPrune(
        method=recipe.method,
        blocks=source.blocks,
        linears=len(shapes),
        weights=job.weights,
        zeros=zeros,
        influences=influences,
        **vars(job.preview(job.disk, warnings)),
    )


def ragged_tails(job: PruneJob) -> list[str]:
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
