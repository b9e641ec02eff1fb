"""What calibration showed of a model's experts in a file, from which any number of them can be removed without a pass.

The file is safetensors. For the experts module of every block (`model.layers.0.mlp.experts`) it holds `.tokens` (E),
`.sums` (4, E: weights of tokens, gate values, norms, products of the two; criteria.py), `.order` (E), the scores of the
criterion `output`, and `.kept` (E + 1, E), of which row n has a 1 for each expert of the n that `output` keeps. The
metadata entry `prunus` is that of `prunus stats`, with `experts`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.runner import pick_device
from prunus.checkpoint.safetensors_file import write_file
from prunus.declarations import Criterion, declared
from prunus.disk import check_space, disk_errors, show_bytes
from prunus.errors import PrunusError
from prunus.pruning.calibration.data import load_calibration
from prunus.pruning.calibration.hidden_states import check_block_fits
from prunus.pruning.calibration.saved_statistics import (
    CalibrationOptions,
    SavedStats,
    about_stats,
    open_for_stats,
    run_dtype,
)
from prunus.pruning.experts.criteria import Reconstruction, Seen, unmet
from prunus.pruning.experts.measure import observe
from prunus.pruning.experts.mixture import Mixture, Unremovable, find_mixtures
from prunus.recipes import ExpertsRecipe


def expert_stats(
    model: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    **options: Unpack[CalibrationOptions],
) -> Mapping[str, Any]:
    """Write what every criterion needs to know of model's experts to the file out, for drop_experts(stats=out).

    One pass of the dense model. options: as for `stats`. Returns a dict:

    out: as given.
    experts: total number of experts.
    size: of the file, as text.
    sequences, tokens: numbers of calibration sequences and tokens.
    warnings: one line each.

    Raises PrunusError for wrong input.
    """
    recipe = ExpertsRecipe(**options)
    source, target = open_for_stats(model, out, recipe, overwrite)
    mixtures = find_mixtures(source)
    check_block_fits(source, source.dtype)
    chosen = load_calibration(recipe, source)
    about = about_stats(source, model, recipe, chosen) | {"experts": True}
    seen = list(observe(source, mixtures, recipe, chosen, pick_device(device), possible_counts))
    tensors = {name: t for m, one in zip(mixtures, seen, strict=True) for name, t in stored(source, m, one).items()}
    check_space(target.absolute(), needed := sum(tensor.nbytes for tensor in tensors.values()))
    with disk_errors(target.parent, needed):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, tensors, {"prunus": json.dumps(about, sort_keys=True)})
    return {
        "out": str(target),
        "experts": sum(mixture.count for mixture in mixtures),
        "size": show_bytes(target.stat().st_size),
        "sequences": len(chosen.sequences),
        "tokens": chosen.tokens,
        "warnings": [*chosen.warnings, *unmet(seen)],
    }


def possible_counts(mixture: Mixture) -> list[int]:
    """The numbers of experts that a block can keep."""
    found = []
    for count in range(1, mixture.count):
        try:
            mixture.check(count)
        except Unremovable:
            continue
        found.append(count)
    return found or [mixture.top_k]


def stored(source: Checkpoint, mixture: Mixture, seen: Seen) -> dict[str, Tensor]:
    """The tensors of one block, by their names in the file."""
    assert seen.reconstruction is not None
    kept = torch.zeros(mixture.count + 1, mixture.count, dtype=torch.uint8)
    for count, experts in seen.reconstruction.kept.items():
        kept[count, experts] = 1
    sums = torch.stack([seen.weight_E, seen.gate_E, seen.norm_E, seen.product_E])
    parts = {"tokens": seen.token_E, "sums": sums, "order": seen.reconstruction.score_E, "kept": kept}
    return {source.block_name(mixture.index, f"{mixture.experts}.{part}"): t for part, t in parts.items()}


def fitting(saved: SavedStats, recipe: ExpertsRecipe) -> ExpertsRecipe:
    """The recipe with the calibration of a file of expert_stats; raises PrunusError where it is not what it needs."""
    if not saved.about.get("experts"):
        raise PrunusError(f"{saved.path} holds no scores of experts; write it with `prunus stats --experts`")
    measured = saved.about["recipe"]["dtype"]
    if recipe.dtype != "auto" and (asked := run_dtype(recipe, saved.source)) != measured:
        raise PrunusError(f"{saved.path} was measured in {measured}, not {asked}; leave --dtype out, or measure again")
    if declared(Criterion)[recipe.method].needs == "nothing":
        raise PrunusError(f"method {recipe.method} needs no statistics; leave --stats out")
    return saved.with_calibration(recipe)


def seen_in(saved: SavedStats, mixture: Mixture) -> Seen:
    """What calibration showed of a block's experts."""
    start = saved.source.block_name(mixture.index, mixture.experts)
    parts = ("tokens", "sums", "order", "kept")
    token_E, sums_4E, order_E, kept_NE = (saved.tensors[f"{start}.{part}"].read() for part in parts)
    kept = {count: row.nonzero()[:, 0].tolist() for count, row in enumerate(kept_NE) if row.any()}
    reconstruction = Reconstruction(order_E, kept)
    seed = saved.about["recipe"]["seed"]
    return Seen(mixture.index, token_E, *sums_4E, seed=seed, reconstruction=reconstruction)
