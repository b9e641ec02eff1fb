"""Magnitude: zero the smallest weights.

Han et al. 2015, arXiv:1506.02626; as in locuslab/wanda lib/prune.py, prune_magnitude, weights are ranked in each Linear
separately, over the whole tensor. O: output features, I: input features.
"""

from torch import Tensor

from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target, zero_smallest


def prune(weight_OI: Tensor, _inputs: InputStats | None, target: Target) -> Tensor:
    """New weight with zeros at its round(O * I * sparsity) smallest entries; of equal ones the lower flat index.

    The authors' code zeroes one weight more and all that tie with it, in bfloat16 about 0.2 % of all weights; rounding
    `reference` does too.
    """
    return zero_smallest(weight_OI, target)
