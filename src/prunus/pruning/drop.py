"""Remove whole decoder blocks: a depth method chooses the blocks to keep, which are written in turn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.safetensors_file import Stored
from prunus.checkpoint.writer import Partial
from prunus.errors import PrunusError
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import check_block_fits
from prunus.pruning.depth import DEPTH_METHODS
from prunus.pruning.depth.choice import DepthInputs, KeptBlocks
from prunus.pruning.depth.verification import check_outputs, new_config, planned
from prunus.pruning.job import PlannedJob, StepJob, open_job
from prunus.pruning.planned import left_out, warn_of_left_out
from prunus.recipes import DropRecipe
from prunus.step import Made


class Dropped(Made):
    """A model without some of its blocks, as `drop` wrote it.

    method: that of the recipe, or `by index`.
    removed, blocks_removed: indices of the removed blocks, as text and as a list.
    blocks: number of blocks that are left.
    scores: of the method, in its own order and unit; see its file in pruning/depth.
    """

    method: str
    removed: str
    blocks: int
    blocks_removed: Sequence[int]
    scores: Sequence[float]


class PlannedDrop(PlannedJob):
    """What `drop` would do.

    blocks: number of blocks that would be left.
    would_remove: which blocks, as text.
    """

    blocks: int
    would_remove: str


def drop(
    model: str | Path,
    out: str | Path,
    recipe: DropRecipe,
    *,
    device: str = "auto",
    overwrite: bool = False,
    name: str | None = None,
) -> Dropped:
    """Write a copy of model without some of its blocks to the folder out.

        dropped = prunus.drop("tiny", "drop-1", prunus.DropRecipe(blocks="1,"))
        print(dropped.blocks, dropped.removed)

    Removes the blocks that the recipe lists by index, else those that its method chooses. Before anything is written,
    the shortened model is checked to compute the same with the kept blocks (depth/verification.py). Unfinished work is
    in out.partial, and the same call resumes it.

    model: a folder, a hub id or `tiny`.
    out: the folder to write.
    recipe: which blocks.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    overwrite: replace an existing result.
    name: what the manifest calls the model; None: as it is given.

    Raises PrunusError for wrong input or if the blocks cannot be removed, and then leaves nothing behind.
    """
    job = open_job(model, out, DropRecipe.given(recipe), name, device=device, overwrite=overwrite)
    source = job.source
    count, needed = checked(job)
    with job.unfinished_work(needed) as (partial, calibration):
        if "choice" not in partial.notes:
            choice = choose_blocks(job, count, calibration)
            check_outputs(source, choice, planned(source, choice), job.device)
            partial.resize(len(choice.kept))
            partial.note("choice", choice._asdict(), {})
        choice = KeptBlocks.restored(**partial.notes["choice"])
        write_kept(source, partial, choice)
        removed = choice.removed(source.blocks)
        notes = calibration.warnings if calibration else []
        merged = {str(new): mix.parts for new, mix in enumerate(choice.kept) if not mix.is_copy}
        record = {
            "blocks_removed": removed,
            "scores": choice.scores,
            "warnings": [*notes, *choice.warnings, *source.reading_notes, *warn_of_left_out(source)],
            **({"blocks_merged": merged} if merged else {}),
        }
        return Dropped(
            method="by index" if recipe.indices else recipe.method,
            removed=", ".join(map(str, removed)),
            blocks=len(choice.kept),
            blocks_removed=removed,
            scores=choice.scores,
            **vars(job.finish(partial, calibration, record, new_config(source, choice))),
        )


def plan_drop(model: str | Path | Checkpoint, out: Path, recipe: DropRecipe, **options: Any) -> PlannedDrop:
    """What `drop` would do."""
    job = open_job(model, out, recipe, None, **options)
    source = job.source
    count, needed = checked(job)
    removed = f"the {count} of {source.blocks} blocks that {recipe.method} chooses"
    if recipe.indices:
        planned(source, KeptBlocks.without(recipe.indices, source.blocks, []))
        removed = f"blocks {', '.join(map(str, recipe.indices))}"
    preview = job.preview(needed, [*source.reading_notes, *warn_of_left_out(source)])
    return PlannedDrop(blocks=source.blocks - count, would_remove=removed, **vars(preview))


def checked(job: StepJob[DropRecipe]) -> tuple[int, int]:
    """(number of blocks to remove, bytes of weights in the result).

    Raises PrunusError if the blocks cannot be removed or if a block does not fit into memory.
    """
    count = check_blocks(job.recipe, job.source)
    check_block_fits(job.source, job.source.dtype, job.device)
    return count, bytes_left(job.recipe, count, job.source)


def check_blocks(recipe: DropRecipe, source: Checkpoint) -> int:
    """The number of blocks to remove. Raises PrunusError if the model lacks one of them or would have none left."""
    blocks = source.blocks
    count = recipe.count(blocks)
    if recipe.indices and recipe.indices[-1] >= blocks:
        raise PrunusError(f"block {recipe.indices[-1]} does not exist; the model has blocks 0 to {blocks - 1}")
    if count >= blocks:
        raise PrunusError(f"the model has {blocks} blocks, of which at most {blocks - 1} can be removed, not {count}")
    return count


@torch.inference_mode()
def choose_blocks(job: StepJob[DropRecipe], count: int, calibration: Calibration | None) -> KeptBlocks:
    """The blocks to keep, by the recipe's indices or by its method."""
    if job.recipe.indices:
        return KeptBlocks.without(job.recipe.indices, job.source.blocks, [])
    sequences = calibration.sequences if calibration else []
    return DEPTH_METHODS[job.recipe.method].choose(DepthInputs(job.source, job.recipe, sequences, job.device), count)


def write_kept(source: Checkpoint, partial: Partial, choice: KeptBlocks) -> None:
    """Write the kept blocks under their new numbers; all but merged ones keep their bytes."""
    for new, mix in enumerate(choice.kept):
        if partial.has(new):
            continue
        tensors: dict[str, Tensor | Stored] = dict(source.block_tensors(mix.base))
        if not mix.is_copy:
            tensors |= source.as_stored(mix.base, mix.tensors(source))
        partial.write_block(new, {source.renumbered(n, mix.base, new): t for n, t in tensors.items()}, {})


def bytes_left(recipe: DropRecipe, count: int, source: Checkpoint) -> int:
    """Bytes of weights in the result; an upper bound if the method has not chosen the blocks yet."""
    sizes = [sum(stored.nbytes for stored in source.block_tensors(i).values()) for i in range(source.blocks)]
    removed = [sizes[index] for index in recipe.indices] if recipe.indices else sorted(sizes)[:count]
    return source.nbytes - sum(removed) - sum(source.tensors[name].nbytes for name in left_out(source))
