"""Pruning methods, one file each, weight in and weight out. A new one is a file, a row here, a name in recipes.py."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import Tensor

from prunus.pruning.methods import magnitude, wanda
from prunus.pruning.observe import InputStats
from prunus.recipes import MethodName, Rounding


class Method(NamedTuple):
    """prune(weight_OI, inputs, sparsity, rounding) -> new weight.

    needs: what calibration must observe (inputs is None where nothing). group: what is ranked together and so counted
    for itself: each row, or the whole tensor.
    """

    prune: Callable[[Tensor, InputStats | None, float, Rounding], Tensor]
    needs: Literal["nothing", "norms"]
    group: Literal["row", "tensor"]
    source: str
    description: str


METHODS: Mapping[MethodName, Method] = MappingProxyType(
    {
        "magnitude": Method(
            magnitude.prune,
            needs="nothing",
            group="tensor",
            source="Han et al. 2015, arXiv:1506.02626",
            description="zero the smallest weights of each Linear; needs no data",
        ),
        "wanda": Method(
            wanda.prune,
            needs="norms",
            group="row",
            source="Sun et al. 2023, arXiv:2306.11695",
            description="zero, in each output row, the weights with the least |weight| x input norm",
        ),
    }
)
