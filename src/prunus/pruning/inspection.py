"""What a checkpoint is made of and what can be done with it; from its weights sparsity, N:M patterns, packed sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from prunus.checkpoint.architecture import Unstreamable
from prunus.checkpoint.checkpoint import Checkpoint, ModelFolder
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.packed.bits import mask_nbytes, packed_nbytes
from prunus.checkpoint.packed.checkpoint import PackedCheckpoint, open_checkpoint
from prunus.checkpoint.packed.tensor import bit_patterns
from prunus.checkpoint.resolve import resolve
from prunus.progress import Steps
from prunus.pruning.capabilities import describe_blocks, describe_model, describe_uses, refused
from prunus.pruning.depth.verification import Droppable, try_drops
from prunus.pruning.masks import count_zeros
from prunus.pruning.scope import why_unprunable
from prunus.recipes import DropRecipe, PruneRecipe, RecoverRecipe

# (N, M): at most N weights that are not zero in every M consecutive inputs of an output.
PATTERNS = ((1, 2), (1, 4), (2, 4), (1, 8), (2, 8), (4, 8), (8, 16))


def inspect(checkpoint: str | Path, *, weights: bool | None = None) -> dict[str, Any]:
    """Facts about a checkpoint (folder, hub id or `tiny`; packed or not) as plain data.

    Of every model, from its configuration and the headers of its files: what it is (see overview.describe_model and
    describe_blocks), uses (prune, drop, pack, sparse kernel: possible, and why not), parameters and weight_bytes as
    stored, history: the recipes applied so far; of most knobs only what differs from the default. refused: why its
    blocks cannot be run one by one; then nothing is known of them.

    weights: read the weights, too; None: if prunus has made the checkpoint. sparsity: share of zeros in all prunable
    Linears; blocks, kinds, linears: the same for each of them. patterns: the N:M patterns that every Linear keeps to,
    in linears each Linear's own. prunable_bytes: what Linears take dense; packed_bytes, packed_prunable_bytes: all and
    Linears as `prunus pack` writes or wrote them, without the header. mask_bytes: what masks alone would take.
    """
    folder = resolve(checkpoint)
    try:
        source = open_checkpoint(folder)
    except Unstreamable as error:
        return stored_facts(ModelFolder(folder)) | {"refused": str(error), "uses": refused(str(error))}
    facts = stored_facts(source)
    packed = isinstance(source, PackedCheckpoint)  # its tensors must be unpacked first, so none is tried
    if weights is None:
        weights = bool(facts["history"]) or packed
    drops = Droppable(True, None) if packed else try_drops(source, read_weights=False)
    facts |= {
        "refused": None,
        **describe_blocks(source.architecture),
        "uses": describe_uses(source.architecture, drops, why_unprunable(source)),
    }
    return facts | count_weights(source) if weights else facts


def stored_facts(model: ModelFolder) -> dict[str, Any]:
    """What configuration, headers and manifest say."""
    return {
        "folder": str(model.folder),
        **describe_model(model.config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "stored": storage(model),
        "parameters": model.parameters,
        "weight_bytes": sum(stored.nbytes for stored in model.stored.values()),
        "history": [history_row(step) for step in model.manifest.get("history", [])],
    }


def count_weights(source: Checkpoint) -> dict[str, Any]:
    """What only the weights say."""
    linears = []
    with Steps("reading", total=source.blocks, unit="blocks") as steps:
        for index in range(source.blocks):
            linears += [linear_facts(source, index, linear) for linear in source.linears(index)]
            steps.advance()
    totals = share(linears)
    return {
        "sparsity": totals["sparsity"],
        "patterns": [f"{n}:{m}" for n, m in PATTERNS if all(f"{n}:{m}" in row["patterns"] for row in linears)],
        "nonzero": totals["weights"] - totals["zeros"],
        "packed_bytes": packed_size(source, linears),
        "prunable_bytes": totals["weights"] * source.dtype.itemsize,
        "packed_prunable_bytes": sum(row["packed_bytes"] for row in linears),
        "mask_bytes": sum(mask_nbytes(tuple(row["shape"])) for row in linears),
        "kinds": [
            {"kind": local, "part": part, **share([row for row in linears if row["kind"] == local])}
            for local, part in dict.fromkeys((row["kind"], row["part"]) for row in linears)
        ],
        "blocks": [
            {"block": index, **share([row for row in linears if row["block"] == index])}
            for index in range(source.blocks)
        ],
        "linears": linears,
    }


def linear_facts(source: Checkpoint, index: int, linear: Linear) -> dict[str, Any]:
    """Counts and patterns of one Linear."""
    weight_OI = source.read_weight(index, f"{linear.name}.weight")
    zeros = count_zeros(weight_OI)
    sparsity = zeros / weight_OI.numel()
    return {
        "linear": source.block_name(index, linear.name),
        "block": index,
        "kind": linear.name,
        "part": linear.kind,
        "shape": list(linear.shape_OI),
        "sparsity": sparsity,
        "zeros": zeros,
        "weights": weight_OI.numel(),
        "patterns": find_patterns(weight_OI) if sparsity >= 0.5 else [],
        "packed_bytes": packed_linear_size(source, index, linear, weight_OI),
    }


def storage(source: ModelFolder) -> str:
    """In which form the weights are there."""
    if source.quantised is not None:
        return f"{source.quantised}, read in bfloat16" if isinstance(source, Checkpoint) else source.quantised
    if not isinstance(source, PackedCheckpoint):
        return "dense"
    if source.dense is not None:
        return f"masks of {source.dense.folder}"
    return "packed, values rounded to 8 bits" if source.lossy else "packed"


def packed_linear_size(source: Checkpoint, index: int, linear: Linear, weight_OI: Tensor) -> int:
    """Bytes of a Linear's weight in the packed file, or in the one that pack would write."""
    if isinstance(source, PackedCheckpoint):
        return sum(source.packed_tensors[name].packed_nbytes for name in source.weight_sources(index, linear.name))
    kept = int(np.count_nonzero(bit_patterns(weight_OI)))
    return min(weight_OI.nbytes, packed_nbytes(tuple(weight_OI.shape), kept, weight_OI.itemsize))


def packed_size(source: Checkpoint, linears: list[dict[str, Any]]) -> int:
    """Bytes of all tensors in the packed file, or in the one that pack would write."""
    if isinstance(source, PackedCheckpoint):
        return sum(tensor.packed_nbytes for tensor in source.packed_tensors.values())
    dense = sum(row["weights"] for row in linears) * source.dtype.itemsize
    return source.nbytes - dense + sum(row["packed_bytes"] for row in linears)


def find_patterns(weight_OI: Tensor) -> list[str]:
    """Those of PATTERNS that a weight keeps to; where M does not divide the number of inputs, it does not."""
    kept = (weight_OI != 0).numpy().view(np.uint8)
    most: dict[int, int] = {}
    group = 1
    while kept.shape[1] % 2 == 0 and group < max(m for _, m in PATTERNS):
        kept = kept[:, 0::2] + kept[:, 1::2]  # what two neighbouring groups keep together
        group *= 2
        most[group] = int(kept.max())
    return [f"{n}:{m}" for n, m in PATTERNS if most.get(m, m) <= n]


def share(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of several Linears together."""
    zeros, weights = sum(row["zeros"] for row in rows), sum(row["weights"] for row in rows)
    return {"sparsity": zeros / weights if weights else 0.0, "zeros": zeros, "weights": weights}


def history_row(step: Mapping[str, Any]) -> dict[str, Any]:
    """One step of the manifest, in short."""
    usual = {"prune": PruneRecipe, "recover": RecoverRecipe}.get(step["action"], DropRecipe)
    defaults = usual().to_json()
    shown = {"method", "sparsity", "blocks"}  # even where they are today's defaults
    recipe = {key: value for key, value in step["recipe"].items() if key in shown or value != defaults.get(key)}
    cost = {"trained_tokens": step["cost"]["tokens"]} if step["action"] == "recover" else {}
    return {
        "action": step["action"],
        "recipe": recipe,
        "blocks_removed": step.get("blocks_removed", []),
        "source": step["source"]["name"],
        "warnings": step["warnings"],
        **cost,
    }
