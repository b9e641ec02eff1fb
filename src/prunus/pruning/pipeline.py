"""Prune a checkpoint block by block: memory holds one block and the hidden states of the calibration tokens."""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prunus.checkpoint.block_loader import Block, blocks_on
from prunus.checkpoint.checkpoint import Checkpoint, versions
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.resolve import read_json, resolve
from prunus.checkpoint.runner import Runner, pick_device
from prunus.checkpoint.safetensors_file import Stored, read_header
from prunus.checkpoint.writer import EVIDENCE, HIDDEN, Partial, check_target, disk_needed
from prunus.disk import check_space, disk_errors, show_bytes, write_text
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.allocate import evidence_text, find_evidence, linear_sparsities, share_out
from prunus.pruning.allocation import ALLOCATIONS
from prunus.pruning.allocation.importance_scores import Evidence
from prunus.pruning.allocation.measurement import influence_recipe
from prunus.pruning.calibration.data import Calibration, describe_calibration, keep_calibration
from prunus.pruning.calibration.gradients import Model, save_square_sums
from prunus.pruning.calibration.hidden_states import BATCH_TOKENS, HiddenStates, propagate
from prunus.pruning.calibration.propagation import PROPAGATIONS, Passage, Stats, observed
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.pruning.calibration.shared_measurements import evidence_key, gradients_key, once
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.fits import check_block_fits
from prunus.pruning.masks import Target, count_zeros, zeros_of, zeros_wanted
from prunus.pruning.methods import METHODS, Method, with_row_budgets, with_update
from prunus.pruning.methods.wanda_plus_plus import Repair, repair, with_regional_gradients
from prunus.pruning.recipe_revisions import revisions
from prunus.pruning.scope import linears_in_scope, weights_of
from prunus.recipes import PruneRecipe


class Job(NamedTuple):
    """Everything that the loop over blocks needs to know. linears: of each block those in scope."""

    source: Checkpoint
    recipe: PruneRecipe
    method: Method
    linears: list[list[Linear]]
    device: torch.device
    dtype: torch.dtype
    # Sparsity that the method is asked for, and in how many rows one weight more, by block and Linear: known once the
    # allocation has its evidence.
    sparsities: Mapping[tuple[int, str], tuple[float, int]] = MappingProxyType({})
    stats: SavedStats | None = None
    # Hidden states in a file; a folder of measurements that variants share; and where sums of gradients lie.
    offload: bool = False
    shared: Path | None = None
    gradients: Path = Path()

    def hidden_file(self, partial: Partial) -> Path | None:
        """Where hidden states are kept; None: in memory."""
        return partial.folder / HIDDEN if self.offload else None

    def gradient_file(self, index: int) -> Path:
        """Where sums of squared gradients of one block wait for it."""
        return self.gradients / f"gradients-{index:05d}.safetensors"

    def target(self, index: int, linear: str) -> Target:
        """What one Linear is to lose."""
        sparsity, more = self.sparsities[index, linear]
        return target_of(self.recipe, sparsity)._replace(more=more)


def target_of(recipe: PruneRecipe, sparsity: float) -> Target:
    """What a Linear of a recipe is to lose. Ties go with rounding `reference` where a method's own code has it so."""
    ties = METHODS[recipe.method].group == "tensor" and recipe.allocation == "uniform"
    return Target(sparsity, recipe.rounding, recipe.groups, recipe.group, ties)


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
) -> dict[str, Any]:
    """Write a pruned copy of model (folder, hub id or `tiny`) to the folder out; returns a summary.

    Unfinished work lives in out.partial; the same call goes on there, and ends with the same bytes as an unbroken run.
    offload: keep hidden states on disk instead of in memory. dry_run: only say what would be done. stats: a file that
    stats() wrote for this model; its calibration counts, nothing is run, and fields of the recipe that ask for another
    calibration are an error. shared: a folder in which evidence of allocations and sums of gradients are left, and
    found, by all calls that need the same. Wrong input raises PrunusError and leaves nothing behind.
    """
    started = time.monotonic()
    source, target = Checkpoint(resolve(model)), Path(out)
    check_target(source.folder, target, overwrite)
    linears = linears_in_scope(source, recipe)
    dtype = source.dtype if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    check_block_fits(source, dtype)
    method = find_method(recipe)
    saved = None
    if stats is not None:
        if method.gradients != "none":
            raise PrunusError(f"{stats} holds no gradients, which {name_of(recipe)} needs; leave --stats out")
        saved = SavedStats(stats, source)
        saved.check(recipe, method.needs, ALLOCATIONS[recipe.allocation].needs)
        recipe = saved.recipe(recipe)
    job = Job(source, recipe, method, linears, pick_device(device), dtype, stats=saved, offload=offload)
    job = job._replace(shared=None if shared is None else Path(shared))
    needed = space_for(job)
    if dry_run:
        return describe(job, target, needed)
    if ALLOCATIONS[recipe.allocation].needs != "nothing" or method.gradients != "none":
        source.checksum()  # what looks at all blocks beforehand wants them checked
    work = {"action": "prune", "recipe": recipe.to_json(), "source": source.fingerprint(), **revisions(recipe)}
    if saved is not None:
        work["stats"] = saved.about
    with Partial(source, target, work, source.blocks, needed, overwrite) as partial, full_float32(job.device):
        calibration = keep_calibration(recipe, source, partial) if needs_tokens(job) else None
        if calibration and recipe.weighted:
            calibration.token_weights(recipe)  # so that it fails early
        evidence = keep_evidence(job, partial, calibration)
        shares = share_out(source, recipe, evidence)
        job = job._replace(sparsities=linear_sparsities(source, recipe, shares, job.method.group))
        job = job._replace(gradients=keep_gradients(job, partial, calibration))
        with torch.no_grad():
            prune_blocks(job, partial, calibration)
        sparsity = {name: share for i in range(source.blocks) for name, share in partial.records[i]["sparsity"].items()}
        heard = [*(calibration.warnings if calibration else []), *evidence.warnings, *shares.warnings]
        heard += [warning for index in range(source.blocks) for warning in partial.records[index]["warnings"]]
        warnings = [*source.reading_notes, *dict.fromkeys(heard), *dead_inputs(partial), *ragged_tails(job)]
        step = {
            "action": "prune",
            "recipe": recipe.to_json(),
            "versions": versions(),
            "source": source.provenance(model),
            "calibration": calibration.summary() if calibration else saved and saved.summary,
            "sparsity": sparsity,
            "allocation": evidence.to_json() if recipe.allocation != "uniform" else None,
            "warnings": warnings,
        }
        partial.finish(None, step)
    zeros = sum(record["zeros"] for record in partial.records.values())
    return {
        "out": str(target),
        "method": recipe.method,
        "blocks": source.blocks,
        "linears": len(sparsity),
        "sparsity": zeros / weights_in_scope(job),
        "seconds": time.monotonic() - started,
        "linear_sparsity": sparsity,
        "warnings": warnings,
    }


def find_method(recipe: PruneRecipe) -> Method:
    """The method of a recipe, with the comparison group and the update of kept weights that it asks for."""
    method = METHODS[recipe.method]
    if recipe.group is not None:
        method = method._replace(group=recipe.group)
    if recipe.row_power:
        method = with_row_budgets(method, recipe.row_power)
    if recipe.update == "none":
        return method
    if method.updates:
        raise PrunusError(f"{recipe.method} updates weights itself; leave --update out")
    return with_update(method)


def name_of(recipe: PruneRecipe) -> str:
    """The method, and what is asked of it beyond its name, for messages."""
    return f"{recipe.method} with row_power" if recipe.row_power else recipe.method


def keep_evidence(job: Job, partial: Partial, calibration: Calibration | None) -> Evidence:
    """What the allocation goes by, measured once and kept beside the result, where --scores can read it again."""
    if "evidence" not in partial.notes:
        with disk_errors(partial.folder, partial.needed):
            found = measured_evidence(job, partial, calibration)
        files = {EVIDENCE: evidence_text(found)} if found.scores else {}
        partial.note("evidence", found.to_json(), files)
    return Evidence.from_json(partial.notes["evidence"])


def measured_evidence(job: Job, partial: Partial, calibration: Calibration | None) -> Evidence:
    """Measured, or found among what variants share."""

    def find() -> Evidence:
        return find_evidence(job.source, job.recipe, job.device, calibration, job.stats, job.hidden_file(partial))

    measures = ALLOCATIONS[job.recipe.allocation].needs != "nothing" and job.recipe.scores is None
    if job.shared is None or job.stats is not None or not measures:
        return find()
    with once(job.shared, evidence_key(job.source, job.recipe, job.device)) as place:
        if not place.exists():
            write_text(place, evidence_text(find()))
        return Evidence.from_json(read_json(place))


def keep_gradients(job: Job, partial: Partial, calibration: Calibration | None) -> Path:
    """Squares of the dense model's loss gradients, summed into files where needed; their folder.

    That is beside the unfinished work, or among what variants share.
    """
    if job.method.gradients not in ("weights", "outputs"):
        return partial.folder
    assert calibration is not None
    dtype = torch.float32 if job.recipe.dtype == "auto" else job.dtype
    runner = Runner(job.source.config, job.source.tensors, dtype, job.device)
    names = [[linear.name for linear in linears] for linears in job.linears]
    model = Model(job.source, runner, names, job.hidden_file(partial))
    weights = calibration.token_weights(job.recipe) if job.recipe.weighted else None
    rows = job.method.gradients == "outputs"

    def save(folder: Path) -> None:
        files = job._replace(gradients=folder).gradient_file
        with disk_errors(partial.folder, partial.needed):
            save_square_sums(model, calibration.sequences, weights, files, rows)

    if job.shared is None:
        if "gradients" not in partial.notes:
            save(partial.folder)
            partial.note("gradients", True, {})
        return partial.folder
    about = {"rows": rows, "linears": names, "dtype": str(dtype)}
    with once(job.shared, gradients_key(job.source, job.recipe, calibration, about, job.device)) as place:
        if not place.exists():
            unfinished = place.with_suffix(".partial")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            save(unfinished)
            unfinished.rename(place)
    return place


def with_gradients(job: Job, index: int, hidden: HiddenStates, group: Stats) -> Stats:
    """The statistics with the gradients that were kept."""
    sums = {name: stored for name, stored in read_header(job.gradient_file(index)).items() if name in group}
    if job.method.gradients == "outputs":
        return {name: replace(group[name], fisher_O=sum_O.read().to(job.device)) for name, sum_O in sums.items()}
    count, scale = len(hidden.sequences()), job.recipe.gradient_scale
    return {
        name: replace(group[name], sequences=count, gradient_OI=sum_OI.read().to(job.device).sqrt_().mul_(scale))
        for name, sum_OI in sums.items()
    }


def prune_blocks(job: Job, partial: Partial, calibration: Calibration | None) -> None:
    """Prune block after block. Blocks that partial already has are replayed, not pruned again."""
    source, recipe = job.source, job.recipe
    runner = Runner(source.config, source.tensors, job.dtype, job.device)
    hidden = None
    if calibration is not None and not all(map(partial.has, range(source.blocks))):
        with disk_errors(partial.folder, partial.needed):
            weights = calibration.token_weights(recipe) if recipe.weighted else None
            hidden = HiddenStates(runner, calibration.sequences, job.hidden_file(partial), room_needed(job), weights)
    left = [index for index in range(source.blocks) if not partial.has(index)]
    kept = left if source.has_small_blocks and job.device.type == "cpu" else []
    # Freed at once: then glibc keeps up to twice as much of what is freed, instead of asking anew for every block.
    np.empty(31 << 20, np.uint8)
    with (
        Steps("pruning", total=source.blocks, unit="blocks", done=len(partial.records)) as steps,
        closing(source.checked_ahead(outside_first=hidden is not None, keep=kept)) as checked,
        closing(blocks_on(source, [] if kept else left, job.device)) as blocks,
    ):
        for index, digest, tensors in checked:
            if index is None:
                continue
            if partial.has(index):
                if partial.records[index]["source"] != digest:
                    raise PrunusError(
                        f"{source.folder} changed while work on it lay unfinished; run again to start anew"
                    )
                if hidden is not None and index < source.blocks - 1:
                    stored = source.block_tensors(index) if recipe.propagation == "dense" else partial.read_block(index)
                    propagate(runner, runner.make_block(index, source.read_block(index, stored)), hidden)
                continue
            tensors = next(blocks) if tensors is None else tensors
            partial.write_block(index, *prune_block(job, partial, runner, index, hidden, tensors, digest))
            if job.shared is None:
                job.gradient_file(index).unlink(missing_ok=True)
            steps.advance()


def prune_block(
    job: Job, partial: Partial, runner: Runner, index: int, hidden: HiddenStates | None, tensors: Block, digest: str
) -> tuple[dict[str, Tensor | Stored], dict[str, Any]]:
    """Observe and prune one block; hidden moves on to what the next will read. Its tensors, and what was seen of it.

    tensors: the block's, of which the Linears' are taken out. digest: what is noted of where they are from.
    """
    names = [linear.name for linear in job.linears[index]]
    groups: Iterable[Mapping[str, InputStats | None]] = [dict.fromkeys(names)]
    block = None
    if job.stats is not None:
        groups = job.stats.groups(index, job.method.needs, job.device)
    if hidden is not None:
        block = runner.make_block(index, tensors)
        last = index == job.source.blocks - 1
        passage = Passage(runner, block, index, hidden, job.linears[index], last, job.method.needs)
        groups = PROPAGATIONS[job.recipe.propagation](passage)
        if job.method.gradients == "block":
            groups = repaired(job, passage, tensors)
        elif job.method.gradients != "none":
            groups = (with_gradients(job, index, hidden, group) for group in groups)
    pruned: dict[str, Tensor] = {}
    record: dict[str, Any] = {"source": digest, "sparsity": {}, "zeros": 0, "dead": {}, "warnings": []}
    for group in map(dict, groups):
        for name in [name for name in names if name in group]:
            weight_OI, inputs = tensors.pop(f"{name}.weight").to(job.device), group.pop(name)
            new_OI = job.method.prune(weight_OI, inputs, job.target(index, name))
            if block is not None:
                block.get_submodule(name).weight.data = new_OI.to(job.dtype)
            pruned[f"{name}.weight"] = new_OI.cpu()
            zeros = count_zeros(new_OI)
            record["sparsity"][job.source.block_name(index, name)] = zeros / new_OI.numel()
            record["zeros"] += zeros
            if inputs is not None and (dead := int((inputs.norm_I == 0).sum())):
                record["dead"][job.source.block_name(index, name)] = dead
            if inputs is not None and inputs.hessian is not None and inputs.hessian.warning is not None:
                record["warnings"].append(inputs.hessian.warning)
            weight_OI = inputs = None  # a Hessian is as large as a weight: gone before tokens move on
    return {**job.source.block_tensors(index), **job.source.as_stored(index, pruned)}, record


def repaired(job: Job, passage: Passage, tensors: dict[str, Tensor]) -> Iterator[Stats]:
    """The propagation of methods that go by gradients of the block; repairs the weights in tensors beforehand."""
    recipe, block, hidden = job.recipe, passage.block, passage.hidden
    runner = Runner(job.source.config, job.source.tensors, torch.float32, job.device)
    moved = runner.make_block(passage.number, tensors)
    stats = with_regional_gradients(runner, moved, hidden, observed(passage), recipe.gradient_scale)

    def pruned(name: str, weight_OI: Tensor, inputs: InputStats) -> Tensor:
        return job.method.prune(weight_OI, inputs, job.target(passage.number, name))

    if recipe.repair_rounds:
        how = Repair(recipe.repair_rounds, recipe.repair_rate, f"{recipe.seed} {passage.number}")
        dense = runner.make_block(passage.number, {name: tensor.clone() for name, tensor in tensors.items()})
        repair(runner, moved, dense, hidden, stats, pruned, how)
        for name in stats:
            weight_OI = moved.get_submodule(name).get_parameter("weight").detach()
            tensors[f"{name}.weight"] = weight_OI.to(tensors[f"{name}.weight"])
    if recipe.propagation == "dense" and not passage.last:
        propagate(passage.runner, block, hidden)
    yield stats
    if recipe.propagation == "pruned" and not passage.last:
        propagate(passage.runner, block, hidden)


def dead_inputs(partial: Partial) -> list[str]:
    """A warning, if any, about inputs that were zero on every calibration token."""
    dead = {name: count for record in partial.records.values() for name, count in record["dead"].items()}
    if not dead:
        return []
    worst = max(dead, key=lambda name: dead[name])
    return [f"{len(dead)} Linears have inputs that calibration never used, most of all {worst} ({dead[worst]})"]


def ragged_tails(job: Job) -> list[str]:
    """A warning, if any, about columns that no group of the pattern covers."""
    if job.recipe.groups is None:
        return []
    width = job.recipe.groups[1]
    linears = dict.fromkeys((linear.name, linear.shape_OI[1]) for linears in job.linears for linear in linears)
    tails = [f"{name} ({inputs % width} of {inputs})" for name, inputs in linears if inputs % width]
    if not tails:
        return []
    listed = ", ".join(tails)
    return [f"pattern {job.recipe.pattern} leaves the last columns of these Linears dense in every block: {listed}"]


def needs_tokens(job: Job) -> bool:
    """Whether anything has to be run."""
    return job.method.needs != "nothing" and job.stats is None


def weights_in_scope(job: Job) -> int:
    """How many weights the recipe's sparsity is a share of."""
    return sum(map(weights_of, job.linears))


def room_needed(job: Job) -> int:
    """Numbers per token that propagation keeps besides the hidden states: staged, the widest input of a Linear."""
    if job.recipe.propagation != "staged":
        return 0
    linears = (linear for index in range(job.source.blocks) for linear in job.source.linears(index))
    return max(linear.shape_OI[1] for linear in linears)


def space_for(job: Job) -> int:
    """Bytes of disk for the result and for what is kept there meanwhile.

    Gradients take no more of the disk for what blocks read than is free, but room for one batch.
    """
    recipe, hidden = job.recipe, 0
    gradients = 4 * weights_in_scope(job) if job.method.gradients == "weights" else 0
    needs = ALLOCATIONS[recipe.allocation].needs if recipe.scores is None and job.stats is None else "nothing"
    if job.offload and (needs_tokens(job) or needs == "norms"):
        width = job.source.architecture.width + room_needed(job)
        hidden = recipe.samples * recipe.seqlen * width * job.dtype.itemsize
    if job.offload and (needs == "gradients" or job.method.gradients in ("weights", "outputs")):
        batch = max(BATCH_TOKENS, recipe.seqlen)
        hidden = max(hidden, 4 * batch * (job.source.blocks + 2) * job.source.architecture.width)
    return disk_needed(job.source.nbytes) + hidden + gradients


def describe(job: Job, target: Path, needed: int) -> dict[str, Any]:
    """What prune would do, as far as it can be known without reading weights or asking the network."""
    recipe, source = job.recipe, job.source
    check_space(target.absolute(), needed)
    wanted = target_of(recipe, recipe.sparsity)
    shapes = [linear.shape_OI for linears in job.linears for linear in linears]
    zeros = sum(zeros_of(wanted, shape_OI, job.method.group) for shape_OI in shapes)
    allocation = ALLOCATIONS[recipe.allocation]
    if allocation.needs == "nothing":
        share_out(source, recipe, find_evidence(source, recipe, job.device, None))  # a wrong step is noticed here
    result: dict[str, Any] = {
        "would_write": str(target),
        "method": recipe.method,
        "blocks": source.blocks,
        "linears": len(shapes),
        "weights": weights_in_scope(job),
        "zeros": zeros,
        "disk": show_bytes(needed),
        "calibration": "none needed",
        "warnings": [*source.reading_notes, *ragged_tails(job)],
    }
    if recipe.allocation != "uniform":  # then all Linears together have the count
        result["zeros"] = zeros_wanted(weights_in_scope(job), recipe.sparsity, recipe.rounding)
    if job.stats is not None:
        result["calibration"] = f"statistics of {job.stats.path}: {job.stats.summary['source']}"
    elif needs_tokens(job) or (allocation.needs == "norms" and recipe.scores is None):
        result["calibration"], warnings = describe_calibration(recipe, source)
        result["warnings"] += warnings
    if allocation.needs == "gradients" and recipe.scores is None:
        result["influences"], warnings = describe_calibration(influence_recipe(recipe), source)
        result["warnings"] += [warning for warning in warnings if warning not in result["warnings"]]
    return result
