"""Router: the sum of an expert's gate values, called weighted frequency in the code of arXiv:2510.13999."""

from torch import Tensor

from prunus.pruning.experts.seen import Seen


def score(seen: Seen) -> Tensor:
    """(E,) sum of the gate values with which the expert's output is multiplied."""
    return seen.gate_E
