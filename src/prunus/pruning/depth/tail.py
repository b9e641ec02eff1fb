"""Tail: drop the last blocks, whatever they do; the baseline called reverse order. Needs no data and has no scores."""

from prunus.declarations import DepthMethod
from prunus.pruning.depth.choice import Calibrated, Choice


def choose(model: Calibrated, count: int) -> Choice:
    """Drop the last count blocks."""
    blocks = model.source.blocks
    return Choice.without(range(blocks - count, blocks), blocks, [])


DECLARATION = DepthMethod(
    name="tail",
    source="baseline",
    description="remove the last blocks",
    choose=choose,
    needs_data=False,
)
