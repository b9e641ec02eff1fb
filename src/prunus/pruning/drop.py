"""Remove whole decoder blocks: a depth method chooses the blocks to keep, which are written one by one."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve, versions
from prunus.checkpoint.runner import pick_device
from prunus.checkpoint.safetensors_file import Stored
from prunus.checkpoint.writer import Partial, check_target, disk_needed
from prunus.disk import check_space, show_bytes
from prunus.errors import PrunusError
from prunus.pruning.calibration.beforehand import check_calibration
from prunus.pruning.calibration.data import Calibration, describe_calibration, keep_calibration, load_early
from prunus.pruning.calibration.hidden_states import check_block_fits
from prunus.pruning.depth import DEPTH_METHODS
from prunus.pruning.depth.choice import Calibrated, Choice
from prunus.pruning.depth.verification import check_removable, left_out, new_config, verify
from prunus.pruning.made_card import made_card
from prunus.recipes import DropRecipe


def drop_blocks(
    model: str | Path,
    out: str | Path,
    recipe: DropRecipe,
    *,
    device: str = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    name: str | None = None,
) -> dict[str, Any]:
    """Write a copy of model (folder, hub id or `tiny`) without some of its blocks to the folder out; returns a summary.

    Removes the blocks that the recipe lists by index, else those that its method chooses. Before anything is written,
    the shortened model is checked to compute the same with the kept blocks (depth/verification.py). Unfinished work is
    in out.partial, and the same call resumes it.

    overwrite: replace an existing result.
    dry_run: write nothing, and return what would be done (see below).
    name: what the manifest calls the model; None: as it is given.

    Returns a dict:

    out: the folder.
    method: the recipe's method, or `by index`.
    blocks: number of blocks of the result.
    removed, blocks_removed: indices of the removed blocks, as text and as a list.
    scores: of the method, in its own order and unit; see its file in depth/.
    seconds: run time.
    warnings: one line each.

    With dry_run it has would_write, would_remove, blocks, disk, calibration (all but blocks as text) and warnings.

    Raises PrunusError for wrong input or if the blocks cannot be removed, and then leaves nothing behind.
    """
    started = time.monotonic()
    check_calibration(recipe, model, out)
    source, target = Checkpoint(resolve(model)), Path(out)
    check_target(source.folder, target, overwrite)
    count = check_blocks(recipe, source)
    check_block_fits(source, source.dtype)
    stray = left_out(source)
    needed = disk_needed(bytes_left(recipe, count, source, stray))
    chosen_device = pick_device(device)
    if dry_run:
        return describe(recipe, count, source, target, needed)
    early = load_early(recipe, source, target) if needs_data(recipe) else None
    origin = source.provenance(name or model)
    work = {"action": "drop", "recipe": recipe.to_json(), "source": origin["checksum"]}
    with Partial(source, target, work, source.blocks - count, needed, overwrite, stray) as partial:
        calibration = keep_calibration(recipe, source, partial, early) if needs_data(recipe) else None
        if "choice" not in partial.notes:
            choice = choose(recipe, count, source, calibration, chosen_device)
            verify(source, choice, chosen_device)
            partial.resize(len(choice.kept))
            partial.note("choice", choice.to_json(), {})
        choice = Choice.from_json(partial.notes["choice"])
        write_kept(source, partial, choice)
        removed = choice.removed(source.blocks)
        warnings = [
            *(calibration.warnings if calibration else []),
            *choice.warnings,
            *source.reading_notes,
            *warn_of(stray),
        ]
        step = {
            "action": "drop",
            "recipe": recipe.to_json(),
            "versions": versions(),
            "source": origin,
            "calibration": calibration.summary() if calibration else None,
            "blocks_removed": removed,
            "scores": choice.scores,
            "warnings": warnings,
        }
        if merged := {str(new): mix.parts for new, mix in enumerate(choice.kept) if not mix.is_copy}:
            step["blocks_merged"] = merged
        partial.finish(new_config(source, choice), step, made_card(source, step))
    return {
        "out": str(target),
        "method": "by index" if recipe.indices else recipe.method,
        "removed": ", ".join(map(str, removed)),
        "blocks": len(choice.kept),
        "seconds": time.monotonic() - started,
        "blocks_removed": removed,
        "scores": choice.scores,
        "warnings": warnings,
    }


def check_blocks(recipe: DropRecipe, source: Checkpoint) -> int:
    """The number of blocks to remove. Raises PrunusError if the model lacks one of them or would have none left."""
    blocks = source.blocks
    count = recipe.count(blocks)
    if recipe.indices and recipe.indices[-1] >= blocks:
        raise PrunusError(f"block {recipe.indices[-1]} does not exist; the model has blocks 0 to {blocks - 1}")
    if count >= blocks:
        raise PrunusError(f"{count} of {blocks} blocks cannot all be removed; at least one must stay")
    return count


def needs_data(recipe: DropRecipe) -> bool:
    """Whether the recipe uses calibration tokens."""
    return recipe.indices is None and DEPTH_METHODS[recipe.method].needs_data


@torch.inference_mode()
def choose(
    recipe: DropRecipe, count: int, source: Checkpoint, calibration: Calibration | None, device: torch.device
) -> Choice:
    """The blocks to keep, by the recipe's indices or by its method."""
    if recipe.indices:
        return Choice.without(recipe.indices, source.blocks, [])
    sequences = calibration.sequences if calibration else []
    return DEPTH_METHODS[recipe.method].choose(Calibrated(source, recipe, sequences, device), count)


def write_kept(source: Checkpoint, partial: Partial, choice: Choice) -> None:
    """Write the kept blocks under their new numbers; all but merged ones keep their bytes."""
    for new, mix in enumerate(choice.kept):
        if partial.has(new):
            continue
        tensors: dict[str, Tensor | Stored] = dict(source.block_tensors(mix.base))
        if not mix.is_copy:
            tensors |= source.as_stored(mix.base, mix.tensors(source))
        partial.write_block(new, {source.renumbered(n, mix.base, new): t for n, t in tensors.items()}, {})


def bytes_left(recipe: DropRecipe, count: int, source: Checkpoint, stray: Sequence[str]) -> int:
    """Bytes of weights in the result; an upper bound if the method has not chosen the blocks yet."""
    sizes = [sum(stored.nbytes for stored in source.block_tensors(i).values()) for i in range(source.blocks)]
    removed = [sizes[index] for index in recipe.indices] if recipe.indices else sorted(sizes)[:count]
    return source.nbytes - sum(removed) - sum(source.tensors[name].nbytes for name in stray)


def warn_of(stray: Sequence[str]) -> list[str]:
    """A warning if tensors are left out, as they belong to no block and to no module."""
    if not stray:
        return []
    shown = stray[0] + (f" and {len(stray) - 1} more" if len(stray) > 1 else "")
    return [f"left out, as they belong to no module (such as layers for multi-token prediction): {shown}"]


def describe(recipe: DropRecipe, count: int, source: Checkpoint, target: Path, needed: int) -> dict[str, object]:
    """What drop_blocks would do, as a dict, as far as it is known without running the model or using the network."""
    check_space(target.absolute(), needed)
    if recipe.indices:
        check_removable(source, recipe.indices)
        removed = f"blocks {', '.join(map(str, recipe.indices))}"
    else:
        removed = f"the {count} of {source.blocks} blocks that {recipe.method} chooses"
    calibration, warnings = describe_calibration(recipe, source, needed=needs_data(recipe))
    return {
        "would_write": str(target),
        "blocks": source.blocks - count,
        "disk": show_bytes(needed),
        "calibration": calibration,
        "warnings": [*warnings, *source.reading_notes, *warn_of(left_out(source))],
        "would_remove": removed,
    }
