"""Check a model with fewer experts: what was written computes what the source does without those experts.

The new configuration must give a model whose tensors have exactly the names and shapes that were written. Each block
that lost experts must give the same as the source's block whose router cannot choose them (logits at minus infinity),
for one short sequence, in float32. Both read the same hidden states, so rounding cannot add up over blocks.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import plain_experts
from prunus.checkpoint.loader import return_freed_memory
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.runner import Batch, Runner
from prunus.pruning.experts.mixture import Mixture, Unremovable, masked

TOKENS = 32
# Relative. Both do the same operations; products and sums of another number of experts may be added in another order.
TOLERANCE = 1e-5


@torch.inference_mode()
def verify(
    source: Checkpoint,
    new: Checkpoint,
    mixtures: Sequence[Mixture],
    kept: Mapping[int, Sequence[int]],
    device: torch.device,
) -> float:
    """The largest relative difference between blocks of new and of source without the experts that are not kept.

    Raises Unremovable where a block computes something else.
    """
    ids_1T = torch.randint(source.vocabulary, (1, min(TOKENS, source.context)), generator=_generator())
    of_block, worst = {mixture.index: mixture for mixture in mixtures}, 0.0
    old_run, new_run = (Runner(model.config, model.tensors, torch.float32, device) for model in (source, new))
    batch = Batch(ids_1T)
    with full_float32(device), plain_experts(old_run.architecture), plain_experts(new_run.architecture):
        rows_1TW, also_1TW = old_run.embed(batch), new_run.embed(Batch(ids_1T))
        if not torch.equal(rows_1TW, also_1TW):
            raise Unremovable("the input of the first block depends on the number of experts")
        for index in range(max(of_block) + 1):
            mixture = of_block.get(index)
            if mixture is None:
                rows_1TW = old_run.run_block(_block(old_run, source, index), rows_1TW, batch)
                continue
            twin = batch.copy()
            removed = sorted(set(range(mixture.count)) - set(kept[index]))
            before_1TW, seen = _without(removed, old_run, source, mixture, rows_1TW, batch)
            after_1TW = new_run.run_block(_block(new_run, new, index), rows_1TW, twin)
            if not seen:
                raise Unremovable(f"block {index}: its router computes logits in a way that cannot be checked")
            worst = max(worst, _difference(before_1TW, after_1TW))
            if not worst <= TOLERANCE:
                raise Unremovable(
                    f"block {index} would compute something else without experts {', '.join(map(str, removed))}, even"
                    f" if its router could not choose them (by {worst:.2g})"
                )
            rows_1TW = before_1TW
    return worst


def _block(run: Runner, model: Checkpoint, index: int) -> nn.Module:
    """A block in float32. Of a mixture it is large, so no caller keeps it: one is in memory at a time."""
    return_freed_memory()
    return run.make_block(index, model.read_block(index))


def _without(
    removed: Sequence[int], run: Runner, source: Checkpoint, mixture: Mixture, rows_1TW: Tensor, batch: Batch
) -> tuple[Tensor, bool]:
    """What the source's block gives if its router cannot choose these experts, and whether its logits were seen."""
    block = _block(run, source, mixture.index)
    with masked(block, mixture, removed) as mode:
        return run.run_block(block, rows_1TW, batch), bool(mode.seen)


def _difference(before: Tensor, after: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite for NaN in one of them alone."""
    if not torch.equal(before.isnan(), after.isnan()):
        return float("inf")
    before, after = before.double().nan_to_num(), after.double().nan_to_num()
    return float((before - after).abs().max() / before.abs().max().clamp(min=1e-30))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
