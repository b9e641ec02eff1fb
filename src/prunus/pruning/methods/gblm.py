"""GBLM: Wanda's score with the gradient of the loss added to the input norm.

Das et al. 2023, arXiv:2311.04902; authors' code lib/prune.py, prune_gblm (l2). O: output features, I: input features.
Gradients are those of the dense model, combined over sequences by their root sum of squares.
"""

from torch import Tensor

from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target, zero_lowest
from prunus.pruning.methods.loss_gradients import LossGradients


def score(weight_OI: Tensor, inputs: InputStats) -> Tensor:
    """(O, I) float32 importance |W| (norm / sqrt(sequences) + gradient); larger means keep.

    Unlike Wanda's, this score depends on the scale of the norm, which is per sequence as in the authors' code.
    """
    if inputs.gradient_OI is None:
        raise ValueError("this score needs gradients")
    factor_OI = inputs.gradient_OI.float() + inputs.norm_I.float() / inputs.sequences**0.5
    return factor_OI.mul_(weight_OI.float().abs())


def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
    """New weight with zeros at the round(I * sparsity) lowest scores of every row; other weights stay the same.

    The authors' code rounds the count down; rounding `reference` does too.
    """
    if inputs is None:
        raise ValueError("the score needs norms and gradients")
    return zero_lowest(weight_OI, score(weight_OI, inputs), target, "row")


passes = (LossGradients,)
