"""Router: the sum of an expert's gate values, called weighted frequency in the code of arXiv:2510.13999."""

from torch import Tensor

from prunus.declarations import Criterion
from prunus.pruning.experts.seen import Seen


def score(seen: Seen) -> Tensor:
    """(E,) sum of the gate values with which the expert's output is multiplied."""
    return seen.gate_E


DECLARATION = Criterion(
    name="router",
    source="baseline",
    description="keep the experts with the largest sum of gate values",
    score=score,
)
