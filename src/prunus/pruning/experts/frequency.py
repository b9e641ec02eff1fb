"""Frequency: how often the router chooses an expert."""

from torch import Tensor

from prunus.pruning.experts.seen import Seen


def score(seen: Seen) -> Tensor:
    """(E,) number of tokens of the expert, weighted as the recipe says."""
    return seen.weight_E
