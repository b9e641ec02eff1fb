"""Wanda: a weight's importance is its size times the norm of its input.

Sun et al. 2023, arXiv:2306.11695; authors' code lib/prune.py, prune_wanda. O: output features, I: input features.
"""

from torch import Tensor

from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target, zero_lowest


def score(weight_OI: Tensor, norm_I: Tensor) -> Tensor:
    """(O, I) float32 importance; larger means keep. norm_I: L2 norm of each input over all calibration tokens."""
    return weight_OI.abs().float().mul_(norm_I.float())


def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
    """New weight with zeros at the round(I * sparsity) lowest scores of every row; other weights stay the same.

    Inputs that were zero on every token score 0 and are zeroed first; of equal scores the lower column is zeroed. The
    authors' code rounds the count down; rounding `reference` does too.
    """
    if inputs is None:
        raise ValueError("Wanda needs the norms of the inputs")
    return zero_lowest(weight_OI, score(weight_OI, inputs.norm_I), target, "row")
