"""Tail: remove the last blocks; the baseline also called reverse order. It needs no data and has no scores."""

from prunus.pruning.depth.choice import DepthInputs, KeptBlocks


def choose(model: DepthInputs, count: int) -> KeptBlocks:
    """The model without its last `count` blocks."""
    blocks = model.source.blocks
    return KeptBlocks.without(range(blocks - count, blocks), blocks, [])
