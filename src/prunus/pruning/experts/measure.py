"""Observe the experts of a model while calibration tokens run through it, with one block in memory at a time.

What is observed can be kept in a safetensors file, from which any number of experts can be removed without a pass. For
the experts module of every block (`model.layers.0.mlp.experts`) it holds `.tokens` (E), `.sums` (3, E: gate values,
norms, products of the two; criteria.py), `.order` (E), the scores of the criterion `output`, and `.kept` (E + 1, E), of
which row n has a 1 for each expert of the n that `output` keeps. The metadata entry `prunus` is that of `prunus stats`,
with `experts`.

Experts are those of the dense model, as in REAP's own code: no block sees that experts of earlier ones will be removed.
Sums are taken per call of a block in the blocks' dtype and added in float64.
Shapes: N sequences, T tokens, S tokens of one expert (or sampled ones), D width, E experts.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, combinations, product
from math import comb
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.experts import Routed, observe_experts, run_expert
from prunus.checkpoint.loader import blocks_on, return_freed_memory
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.runner import Runner, pick_device
from prunus.checkpoint.safetensors_file import write_file
from prunus.disk import check_space, disk_errors, show_bytes
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.calibration.data import Calibration, load_calibration
from prunus.pruning.calibration.hidden_states import HiddenStates, check_block_fits
from prunus.pruning.calibration.saved_statistics import (
    CalibrationOptions,
    SavedStats,
    about_stats,
    open_for_stats,
    run_dtype,
)
from prunus.pruning.depth.choice import check_finite
from prunus.pruning.experts import Mixture, Unremovable, find_mixtures, masked, routing_only
from prunus.pruning.experts.criteria import Seen, unmet
from prunus.recipes import ExpertsRecipe

# How much the output of an expert layer changes without some experts, and the sets of experts that change it least.
# The layer's own router, with the removed experts' logits at minus infinity, sends tokens to the remaining experts, as
# it does in the model that is written. The error is the sum over some calibration tokens of |output - dense output|^2,
# as a share of that of |dense output|^2. All experts are run on these tokens once, and every set is computed from the
# results. Shapes: S tokens, K experts per token, E experts, D width.

MOST_SETS = 1000  # of one size, that are all tried
TOKENS = 256  # on which outputs are compared


def reconstruct(
    block: nn.Module, mixture: Mixture, input_SD: Tensor, counts: Iterable[int]
) -> tuple[Tensor, dict[int, list[int]]]:
    """((E,) errors after the removal of each expert in the greedy order, the best sets of these numbers of experts).

    Experts that the smallest of these numbers leaves have a higher number than all others.

    input_SD: what the layer reads.
    """
    error = error_of(block, mixture, input_SD)
    counts = sorted(set(counts))
    order, errors = greedy(mixture, error, min(counts))
    rising = torch.tensor(errors, dtype=torch.float64).cummax(0).values
    score_E = torch.full((mixture.count,), max(1.0, 2 * float(rising[-1])), dtype=torch.float64)
    score_E[order] = rising
    kept: dict[int, list[int]] = {}
    for count in counts:
        by_order = sorted(set(range(mixture.count)) - set(order[: mixture.count - count]))
        kept[count] = exact(mixture, error, count, by_order) if sets_of(mixture, count) <= MOST_SETS else by_order
    return score_E, kept


def greedy(mixture: Mixture, error: Callable[[Sequence[int]], float], least: int) -> tuple[list[int], list[float]]:
    """(experts in the order of their removal, until `least` are left; the error after each removal).

    With groups, one is removed from each group before another one is removed from any.
    """
    left, order, errors = list(range(mixture.count)), [], []
    size = mixture.count // mixture.groups
    while len(left) > least:
        sizes = [sum(e // size == group for e in left) for group in range(mixture.groups)]
        able = [expert for expert in left if sizes[expert // size] == max(sizes)]
        trials = {expert: error([e for e in left if e != expert]) for expert in able}
        worst = min(able, key=trials.__getitem__)
        left.remove(worst)
        order.append(worst)
        errors.append(trials[worst])
    return order, errors


def exact(mixture: Mixture, error: Callable[[Sequence[int]], float], count: int, first: Sequence[int]) -> list[int]:
    """The set of `count` experts with the least error; of equal ones the first set, then lower numbers."""
    return list(min((tuple(first), *all_sets(mixture, count)), key=error))


def all_sets(mixture: Mixture, count: int) -> Iterator[tuple[int, ...]]:
    """All sets of `count` experts with the same number in each group."""
    size, each = mixture.count // mixture.groups, count // mixture.groups
    starts = range(0, mixture.count, size)
    parts = [combinations(range(start, start + size), each) for start in starts]
    return (tuple(chain.from_iterable(part)) for part in product(*parts))


def sets_of(mixture: Mixture, count: int) -> int:
    """Number of such sets."""
    return comb(mixture.count // mixture.groups, count // mixture.groups) ** mixture.groups


def error_of(block: nn.Module, mixture: Mixture, input_SD: Tensor) -> Callable[[Sequence[int]], float]:
    """The relative error of the layer's output as a function of the experts that are kept."""
    layer, experts = block.get_submodule(mixture.layer), block.get_submodule(mixture.experts)
    with routing_only(experts) as seen:
        layer(input_SD[None])
    hidden_SD, index_SK, gate_SK = seen.pop()
    table_ESD = torch.stack([run_expert(experts, e, hidden_SD)[1].float() for e in range(mixture.count)])
    token_S1 = torch.arange(len(hidden_SD), device=hidden_SD.device)[:, None]

    def output(index_SK: Tensor, gate_SK: Tensor) -> Tensor:
        return (table_ESD[index_SK, token_S1] * gate_SK.float()[..., None]).sum(1).double()

    dense_SD = output(index_SK, gate_SK)
    energy = float(dense_SD.square().sum(1).sum())

    def error(kept: Sequence[int]) -> float:
        removed = sorted(set(range(mixture.count)) - set(kept))
        with routing_only(experts) as seen, masked(block, mixture, removed) as mode:
            layer(input_SD[None])
        if not mode.seen:
            raise Unremovable(f"block {mixture.index}: its router's logits cannot be observed; use another method")
        difference_SD = output(*seen[0][1:]) - dense_SD
        return float(difference_SD.square().sum(1).sum()) / max(energy, 1e-30)

    return error


Counts = Callable[[Mixture], Sequence[int]]


def observe(
    source: Checkpoint,
    mixtures: Sequence[Mixture],
    recipe: ExpertsRecipe,
    chosen: Calibration,
    device: torch.device,
    counts: Counts | None,
) -> Iterator[Seen]:
    """Yield what calibration shows of each block's experts. counts: numbers of experts to search sets of; None: none.

    Raises PrunusError for hidden states that are not finite.
    """
    dtype = source.dtype_for(recipe.dtype)
    of_block = {mixture.index: mixture for mixture in mixtures}
    last = max(of_block)
    runner = Runner(source, dtype, device)
    with torch.inference_mode(), full_float32(device), Steps("observing", total=last + 1, unit="blocks") as steps:
        hidden = HiddenStates(runner, chosen.sequences, None)
        sampled = 0 if counts is None else min(TOKENS, hidden.tokens)
        wanted = torch.linspace(0, hidden.tokens - 1, sampled).long()
        blocks = blocks_on(source, range(last + 1), device)
        for index in range(last + 1):
            block = runner.make_block(index, next(blocks))
            mixture = of_block.get(index)
            with nullcontext() if mixture is None else watched(runner, block, mixture, wanted) as seen:
                for batch, rows_NTW, input_NTW in hidden.batches_on(device):
                    output_NTW = runner.run_block(block, input_NTW, batch)
                    check_finite(index, output_NTW)
                    rows_NTW.copy_(output_NTW)
            if mixture is not None and seen is not None:
                token_E, sums_3E, read = seen
                found = Seen(index, token_E, *sums_3E, seed=recipe.seed)
                if counts is not None:
                    order_E, sets = reconstruct(block, mixture, torch.cat(read), counts(mixture))
                    found = replace(found, order_E=order_E, sets=sets)
                yield found
            del block, seen  # before the next block is read
            return_freed_memory()
            steps.advance()


@contextmanager
def watched(
    runner: Runner, block: nn.Module, mixture: Mixture, wanted: Tensor
) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """Meanwhile, what Seen has is added up: (E,) tokens, (3, E) sums, and what the layer reads for some tokens.

    wanted: the numbers of these among all tokens, ascending; may be empty.
    """
    token_E = torch.zeros(mixture.count, dtype=torch.int64)
    sums_3E = torch.zeros(3, mixture.count, dtype=torch.float64)
    read: list[Tensor] = []
    done = 0

    def see(routed: Routed) -> None:
        norm_S, gate_S = routed.output_SD.float().norm(dim=-1).double(), routed.weight_S.double()
        token_E[routed.expert] += len(gate_S)
        sums_3E[:, routed.expert] += torch.stack([gate_S, norm_S, gate_S * norm_S]).sum(1).cpu()

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nonlocal done
        values, count = [*args, *kwargs.values()], runner.batch.ids_NT.numel()
        if len(values) != 1 or values[0].shape[-1] * count != values[0].numel():
            raise Unremovable(
                f"block {mixture.index}: its expert layer reads more than hidden states; use another method"
            )
        mine = wanted[(wanted >= done) & (wanted < done + count)] - done
        read.append(values[0].flatten(0, -2)[mine.to(values[0].device)])
        done += count

    layer = block.get_submodule(mixture.layer)
    hook = layer.register_forward_pre_hook(keep, with_kwargs=True) if len(wanted) else nullcontext()
    with hook, observe_experts(block, see):
        yield token_E, sums_3E, read


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
    return list(filter(mixture.works_with, range(1, mixture.count))) or [mixture.top_k]


def stored(source: Checkpoint, mixture: Mixture, seen: Seen) -> dict[str, Tensor]:
    """The tensors of one block, by their names in the file."""
    assert seen.order_E is not None
    kept = torch.zeros(mixture.count + 1, mixture.count, dtype=torch.uint8)
    for count, experts in seen.sets.items():
        kept[count, experts] = 1
    sums = torch.stack([seen.gate_E, seen.norm_E, seen.product_E])
    parts = {"tokens": seen.token_E, "sums": sums, "order": seen.order_E, "kept": kept}
    return {source.block_name(mixture.index, f"{mixture.experts}.{part}"): t for part, t in parts.items()}


def fitting(saved: SavedStats, recipe: ExpertsRecipe) -> ExpertsRecipe:
    """The recipe with the calibration of a file of expert_stats; raises PrunusError where it is not what it needs."""
    if not saved.about.get("experts"):
        raise PrunusError(f"{saved.path} holds no scores of experts; write it with `prunus stats --experts`")
    measured = saved.about["recipe"]["dtype"]
    if recipe.dtype != "auto" and (asked := run_dtype(recipe, saved.source)) != measured:
        raise PrunusError(f"{saved.path} was measured in {measured}, not {asked}; leave --dtype out, or measure again")
    return saved.with_calibration(recipe)


def seen_in(saved: SavedStats, mixture: Mixture) -> Seen:
    """What calibration showed of a block's experts."""
    start = saved.source.block_name(mixture.index, mixture.experts)
    parts = ("tokens", "sums", "order", "kept")
    token_E, sums, order_E, kept_NE = (saved.tensors[f"{start}.{part}"].read() for part in parts)
    kept = {count: row.nonzero()[:, 0].tolist() for count, row in enumerate(kept_NE) if row.any()}
    seed = saved.about["recipe"]["seed"]
    # In files of earlier versions a row of the tokens' weights, all 1, comes first.
    return Seen(mixture.index, token_E, *sums[-3:], seed=seed, order_E=order_E, sets=kept)
