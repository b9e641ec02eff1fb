"""Tail: remove the last blocks; the baseline also called reverse order. It needs no data and has no scores."""

from prunus.declarations import DepthMethod
from prunus.pruning.depth.choice import Calibrated, Choice


def choose(model: Calibrated, count: int) -> Choice:
    """The model without its last `count` blocks."""
    blocks = model.source.blocks
    return Choice.without(range(blocks - count, blocks), blocks, [])


DECLARATION = DepthMethod(
    name="tail",
    source="baseline",
    description="remove the last blocks",
    choose=choose,
    needs_data=False,
)
