"""RIA: a weight's importance is its share of its row plus its share of its column, times a power of its input norm.

Zhang et al. 2024, "Plug-and-Play" (ICLR); authors' code lib/prune.py, prune_ria. O: output features, I: input features.
"""

from torch import Tensor

from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target, zero_lowest

EXPONENT = 0.5  # of the input norm, as in the paper


def score(weight_OI: Tensor, norm_I: Tensor) -> Tensor:
    """(O, I) float32 importance; larger means keep. norm_I: L2 norm of each input over all calibration tokens."""
    size_OI = weight_OI.abs().float()
    # In a row or column of zeros the share is 0. In the authors' code it is 0/0 = NaN, which is never pruned.
    column_I, row_O1 = size_OI.sum(0), size_OI.sum(1, keepdim=True)
    share_OI = size_OI / column_I.masked_fill(column_I == 0, 1)
    share_OI += size_OI.div_(row_O1.masked_fill(row_O1 == 0, 1))
    return share_OI.mul_(norm_I.float().pow(EXPONENT))


def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
    """New weight with zeros at the round(O * I * sparsity) lowest scores; of equal ones the lower flat index.

    The authors' code zeroes one weight more and all that tie with it; rounding `reference` does too.
    """
    if inputs is None:
        raise ValueError("RIA needs the norms of the inputs")
    return zero_lowest(weight_OI, score(weight_OI, inputs.norm_I), target, "tensor")
