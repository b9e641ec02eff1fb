"""Remove whole decoder blocks: score them in one pass over the calibration tokens, then copy what stays."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prunus.checkpoint.families import Runner, block_name, pick_device
from prunus.checkpoint.files import Checkpoint, read_block, versions
from prunus.checkpoint.partial import Partial, check_space, check_target, disk_needed, show_bytes
from prunus.checkpoint.source import read_json, resolve
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.calibration import describe_calibration, keep_calibration
from prunus.pruning.depth import DEPTH_METHODS
from prunus.pruning.hidden import HiddenStates
from prunus.recipes import DropRecipe


def drop_blocks(
    model: str | Path,
    out: str | Path,
    recipe: DropRecipe,
    *,
    device: str = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write model (folder, hub id or `tiny`) without some of its blocks to the folder out; returns a summary.

    The blocks named by the recipe go, else those that its method scores lowest, all at once. Wrong input raises
    PrunusError and leaves nothing behind; dry_run only says what would be done.
    """
    started = time.monotonic()
    source, target = Checkpoint(resolve(model)), Path(out)
    check_target(source.folder, target, overwrite)
    check_blocks(recipe, source)
    kept_blocks = source.blocks - recipe.count
    block_bytes = sum(stored.nbytes for stored in source.block_tensors(0).values())
    needed = disk_needed(source.nbytes - recipe.count * block_bytes)
    chosen_device = pick_device(device)
    if dry_run:
        return describe(recipe, source, target, needed)
    origin = {"name": str(model), "checksum": source.checksum()}
    work = {"action": "drop", "recipe": recipe.to_json(), "source": origin["checksum"]}
    with Partial(source, target, work, kept_blocks, needed, overwrite) as partial:
        calibration, scores = None, []
        if recipe.indices is None:
            calibration = keep_calibration(recipe, source, partial)
            if "scores" not in partial.notes:
                scored = score_blocks(source, recipe, calibration.sequences, chosen_device)
                partial.note("scores", scored, {})
            scores = partial.notes["scores"]
        removed = recipe.indices or lowest(scores, recipe.count)
        copy_kept(source, partial, removed)
        warnings = calibration.warnings if calibration else []
        step = {
            "action": "drop",
            "recipe": recipe.to_json(),
            "versions": versions(),
            "source": origin,
            "calibration": calibration.summary() if calibration else None,
            "blocks_removed": list(removed),
            "scores": scores,
            "warnings": warnings,
        }
        partial.finish(shorter_config(source, removed), step)
    return {
        "out": str(target),
        "method": "by index" if recipe.indices else recipe.method,
        "removed": ", ".join(map(str, removed)),
        "blocks": kept_blocks,
        "seconds": time.monotonic() - started,
        "blocks_removed": list(removed),
        "scores": scores,
        "warnings": warnings,
    }


def check_blocks(recipe: DropRecipe, source: Checkpoint) -> None:
    """Raise PrunusError unless the model has the blocks to remove, and at least one more."""
    blocks = source.blocks
    if recipe.indices and recipe.indices[-1] >= blocks:
        raise PrunusError(f"block {recipe.indices[-1]} is not there; the model has blocks 0 to {blocks - 1}")
    if recipe.count >= blocks:
        raise PrunusError(f"{recipe.count} of {blocks} blocks cannot all be removed; at least one must stay")


def score_blocks(
    source: Checkpoint, recipe: DropRecipe, sequences: Sequence[list[int]], device: torch.device
) -> list[float]:
    """The mean score over all tokens of every block, the last one included; one dense pass."""
    runner = Runner(source.config, source.dtype, device)
    score = DEPTH_METHODS[recipe.method].score
    scores = []
    with torch.inference_mode(), Steps("scoring", total=source.blocks, unit="blocks") as steps:
        hidden = HiddenStates(source, runner, sequences, None)
        for index in range(source.blocks):
            block = runner.make_block(index, read_block(index, source.block_tensors(index)))
            total = 0.0
            for batch_NTD in hidden.batches():
                before_NTD = batch_NTD.to(device)
                after_NTD = runner.run_block(block, before_NTD)
                total += score(before_NTD, after_NTD).double().sum().item()
                batch_NTD.copy_(after_NTD)
            if not torch.tensor(total).isfinite():
                raise PrunusError(
                    f"block {index}: its output holds NaN or infinity on the calibration text; try another"
                )
            scores.append(total / hidden.tokens)
            steps.advance()
    return scores


def lowest(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """Indices of the count lowest scores, in order; of equal ones the lower index goes first."""
    return tuple(sorted(sorted(range(len(scores)), key=lambda index: scores[index])[:count]))


def copy_kept(source: Checkpoint, partial: Partial, removed: Sequence[int]) -> None:
    """Write the blocks that stay, renumbered, bit for bit."""
    kept = [index for index in range(source.blocks) if index not in removed]
    for new, old in enumerate(kept):
        if not partial.has(new):
            old_prefix, new_prefix = block_name(old, ""), block_name(new, "")
            stored = source.block_tensors(old)
            partial.write_block(new, {new_prefix + n.removeprefix(old_prefix): t for n, t in stored.items()}, {})


def shorter_config(source: Checkpoint, removed: Sequence[int]) -> dict[str, Any]:
    """config.json for the blocks that stay: their number, the attention type of each, where sliding windows begin."""
    config = dict(read_json(source.folder / "config.json"))
    config["num_hidden_layers"] = source.blocks - len(removed)
    if config.get("layer_types"):
        config["layer_types"] = [kind for index, kind in enumerate(config["layer_types"]) if index not in removed]
    if config.get("max_window_layers") is not None:
        config["max_window_layers"] -= sum(index < config["max_window_layers"] for index in removed)
    return config


def describe(recipe: DropRecipe, source: Checkpoint, target: Path, needed: int) -> dict[str, Any]:
    """What drop_blocks would do, as far as it can be known without running the model or asking the network."""
    check_space(target.absolute(), needed)
    result: dict[str, Any] = {
        "would_write": str(target),
        "blocks": source.blocks - recipe.count,
        "disk": show_bytes(needed),
        "calibration": "none needed",
        "warnings": [],
    }
    if recipe.indices:
        return result | {"would_remove": "blocks " + ", ".join(map(str, recipe.indices))}
    result["would_remove"] = f"the {recipe.count} of {source.blocks} blocks that {recipe.method} scores lowest"
    result["calibration"], result["warnings"] = describe_calibration(recipe, source)
    return result
