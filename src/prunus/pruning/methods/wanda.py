"""Wanda: a weight matters as much as its size times the size of its input.

Sun et al. 2023, arXiv:2306.11695; authors' code lib/prune.py, prune_wanda. O: output features, I: input features.
"""

from torch import Tensor

from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target, zero_lowest


def score(weight_OI: Tensor, norm_I: Tensor) -> Tensor:
    """(O, I) float32 importance; larger means keep. norm_I: L2 norm of each input over all calibration tokens."""
    return weight_OI.abs().float().mul_(norm_I.float())


def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
    """New weight: every row (one output) loses its round(I * sparsity) lowest scores, the rest is untouched.

    Inputs that were always zero score 0 and go first; equal scores go by column. Differs from the authors' code in the
    count: theirs rounds down (rounding `reference`).
    """
    if inputs is None:
        raise ValueError("Wanda needs the norms of the inputs")
    return zero_lowest(weight_OI, score(weight_OI, inputs.norm_I), target, "row")
