"""Observe the experts of a model while calibration tokens run through it, with one block in memory at a time.

What is observed can be kept in a safetensors file, from which any number of experts can be removed without a pass. For
the experts module of every block (`model.layers.0.mlp.experts`) it holds `.tokens` (E) and `.sums` (2, E: norm_E and
product_E of criteria.py). The metadata entry `prunus` is that of `prunus stats`, with `experts`.

Statistics are those of the dense model, as in REAP's own code: when a block runs, earlier blocks have all experts.
Sums are taken per call of a block in the blocks' dtype and added in float64.
Shapes: N sequences, T tokens, S tokens of an expert, D width, E experts.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.device import within_memory
from prunus.checkpoint.experts import Routed, observe_experts
from prunus.checkpoint.loader import blocks_on, return_freed_memory
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.runner import Runner, pick_device
from prunus.checkpoint.safetensors_file import write_file
from prunus.disk import check_space, disk_errors, show_bytes
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.calibration.data import Calibration, load_calibration
from prunus.pruning.calibration.hidden_states import HiddenStates, check_block_fits, propagate
from prunus.pruning.calibration.saved_statistics import (
    CalibrationOptions,
    SavedStats,
    StatisticsFile,
    about_stats,
    open_for_stats,
    run_dtype,
)
from prunus.pruning.experts.criteria import RoutingSums, warn_of_unused
from prunus.pruning.experts.mixtures import Mixture, find_mixtures
from prunus.recipes import ExpertsRecipe


def observe(
    source: Checkpoint,
    mixtures: Sequence[Mixture],
    recipe: ExpertsRecipe,
    chosen: Calibration,
    device: torch.device,
) -> Iterator[RoutingSums]:
    """Yield the statistics of each block's experts; PrunusError for hidden states that are not finite."""
    dtype = source.dtype_for(recipe.dtype)
    of_block = {mixture.index: mixture for mixture in mixtures}
    last = max(of_block)
    runner = Runner(source, dtype, device)
    with torch.inference_mode(), full_float32(device), Steps("observing", total=last + 1, unit="blocks") as steps:
        hidden = HiddenStates(runner, chosen.sequences, None)
        blocks = blocks_on(source, range(last + 1), device)
        for index in range(last + 1):
            block = runner.make_block(index, next(blocks))
            mixture = of_block.get(index)
            with nullcontext() if mixture is None else watched(block, mixture) as seen:
                propagate(runner, block, hidden, index)
            if mixture is not None and seen is not None:
                token_E, sums_2E = seen
                yield RoutingSums(index, token_E, *sums_2E.cpu(), seed=recipe.seed)
            del block, seen  # before the next block is read
            return_freed_memory()
            steps.advance()


@contextmanager
def watched(block: nn.Module, mixture: Mixture) -> Iterator[tuple[Tensor, Tensor]]:
    """Within the context, the statistics of RoutingSums are added up as the block runs: (E,) tokens and (2, E) sums."""
    token_E = torch.zeros(mixture.count, dtype=torch.int64)
    sums_2E = torch.zeros(2, mixture.count, dtype=torch.float64, device=next(block.parameters()).device)

    def see(routed: Routed) -> None:
        norm_S, gate_S = routed.output_SD.float().norm(dim=-1).double(), routed.weight_S.double()
        token_E[routed.expert] += len(gate_S)
        sums_2E[:, routed.expert] += torch.stack([norm_S, gate_S * norm_S]).sum(1)

    with observe_experts(block, see):
        yield token_E, sums_2E


class ExpertsMeasured(StatisticsFile):
    """A file with what criteria need to know of experts, as `expert_stats` wrote it.

    experts: total number of experts.
    """

    experts: int


def expert_stats(
    model: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    **options: Unpack[CalibrationOptions],
) -> ExpertsMeasured:
    """Write what every criterion needs to know of model's experts to the file out, for experts(stats=out).

        measured = prunus.expert_stats("tiny-moe", "experts.safetensors")
        prunus.experts("tiny-moe", "reap-50", prunus.ExpertsRecipe(keep=0.5), stats=measured.out)

    It takes one pass of the dense model.

    model: a folder, a hub id or `tiny-moe`.
    out: the file to write.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    overwrite: replace an existing file.
    options: fields of ExpertsRecipe: calibration, sequences, seqlen, calibration_tokens, seed, dtype.

    Raises PrunusError for wrong input.
    """
    recipe = ExpertsRecipe(**options)
    source, target = open_for_stats(model, out, recipe, overwrite)
    mixtures = find_mixtures(source)
    runs_on = pick_device(device)
    check_block_fits(source, source.dtype, runs_on)
    chosen = load_calibration(recipe, source)
    about = about_stats(source, model, recipe, chosen)
    with within_memory(runs_on):
        seen = list(observe(source, mixtures, recipe, chosen, runs_on))
    tensors = {
        source.block_name(mixture.index, f"{mixture.experts}.{part}"): tensor
        for mixture, sums in zip(mixtures, seen, strict=True)
        for part, tensor in {"tokens": sums.token_E, "sums": torch.stack([sums.norm_E, sums.product_E])}.items()
    }
    check_space(target.absolute(), needed := sum(tensor.nbytes for tensor in tensors.values()))
    with disk_errors(target.parent, needed):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, tensors, {"prunus": json.dumps(about.to_json(), sort_keys=True)})
    return ExpertsMeasured(
        out=str(target),
        experts=sum(mixture.count for mixture in mixtures),
        size=show_bytes(target.stat().st_size),
        sequences=len(chosen.sequences),
        tokens=chosen.tokens,
        warnings=[*chosen.warnings, *warn_of_unused(seen)],
    )


def fitting(saved: SavedStats, recipe: ExpertsRecipe) -> ExpertsRecipe:
    """The recipe with the calibration of a file of expert_stats; raises PrunusError where it is not what it needs."""
    if not saved.about.experts:
        raise PrunusError(f"{saved.path} holds no scores of experts; write it with `prunus stats --experts`")
    measured = saved.about.dtype
    if recipe.dtype != "auto" and (dtype := run_dtype(recipe, saved.source)) != measured:
        raise PrunusError(f"{saved.path} was measured in {measured}, not {dtype}; leave --dtype out, or measure again")
    return saved.with_calibration(recipe)


def seen_in(saved: SavedStats, mixture: Mixture) -> RoutingSums:
    """The statistics of a block's experts in a file of expert_stats."""
    start = saved.source.block_name(mixture.index, mixture.experts)
    token_E, sums = (saved.tensors[f"{start}.{part}"].read() for part in ("tokens", "sums"))
    return RoutingSums(mixture.index, token_E, *sums, seed=saved.about.recipe["seed"])
