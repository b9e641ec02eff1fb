"""What calibration shows of the routed experts of one block. E: experts."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Reconstruction(NamedTuple):
    """How well the other experts make up for those that are removed (reconstruction.py).

    score_E: the higher, the later an expert is removed. kept: the experts to keep, by their number.
    """

    score_E: Tensor
    kept: dict[int, list[int]]


@dataclass(frozen=True)
class Seen:
    """What calibration shows of the experts of block `index`; sums are float64, over the tokens routed to each expert.

    token_E: number of tokens. weight_E: sum of the tokens' weights, which is that number unless tokens count
    differently. gate_E: sum of the gate values with which the expert's output is multiplied. norm_E: sum of the L2
    norms of its output before that. product_E: sum of gate value times norm. All but token_E weigh tokens.
    """

    index: int
    token_E: Tensor
    weight_E: Tensor
    gate_E: Tensor
    norm_E: Tensor
    product_E: Tensor
    seed: int = 0
    reconstruction: Reconstruction | None = None

    @property
    def experts(self) -> int:
        """Number of experts."""
        return len(self.token_E)
