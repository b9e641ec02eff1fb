"""Magnitude: small weights go first. Han et al. 2015, arXiv:1506.02626; as in locuslab/wanda lib/prune.py,
prune_magnitude: each Linear for itself, the whole tensor one group. O: output features, I: input features.
"""

from torch import Tensor

from prunus.declarations import Method
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target, zero_smallest


def prune(weight_OI: Tensor, _inputs: InputStats | None, target: Target) -> Tensor:
    """New weight: the tensor loses its round(O * I * sparsity) smallest entries, equal ones by flat index.

    Differs from the authors' code in the count: theirs also removes one more and every tie (rounding `reference`),
    which in bfloat16 is about 0.2 % of all weights.
    """
    return zero_smallest(weight_OI, target)


DECLARATION = Method(
    name="magnitude",
    source="Han et al. 2015, arXiv:1506.02626",
    description="zero the smallest weights of each Linear; needs no data",
    needs="nothing",
    group="tensor",
    prune=prune,
)
