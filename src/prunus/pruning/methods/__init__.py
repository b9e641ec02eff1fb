"""Pruning methods, one file each, weight in and weight out. A new one is a file, a row here, a name in recipes.py."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import Tensor

from prunus.pruning.calibration.statistics import InputStats, Needs
from prunus.pruning.masks import Target
from prunus.pruning.methods import alps, dsnot, gblm, magnitude, ria, row_budgets, sparsegpt, wanda
from prunus.recipes import Group, MethodName

# Whose: of the loss by each weight or by each output of the model's Linears, or of a block's own output.
Gradients = Literal["none", "weights", "outputs", "block"]


class Method(NamedTuple):
    """prune(weight_OI, inputs, target) -> new weight, in the dtype of the old.

    needs: what calibration must observe (inputs is None where nothing). group: what is ranked together and so counted
    for itself: each row, or the whole tensor. updates: weights that stay change too. gradients: which ones inputs must
    hold; with `block` the weights are repaired beforehand.
    """

    prune: Callable[[Tensor, InputStats | None, Target], Tensor]
    needs: Needs
    group: Group
    source: str
    description: str
    updates: bool = False
    gradients: Gradients = "none"


def with_row_budgets(method: Method, power: float) -> Method:
    """Wanda, with weights shared out among the rows of a Linear by the Fisher information of their outputs."""

    def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
        return row_budgets.prune(weight_OI, inputs, target, power)

    return method._replace(prune=prune, group="tensor", gradients="outputs")


def with_update(method: Method) -> Method:
    """The method's zeros, with the rest of the weights updated to make up for them."""

    def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
        return sparsegpt.updated(weight_OI, method.prune(weight_OI, inputs, target), inputs)

    return method._replace(prune=prune, needs="hessian", updates=True)


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
        "sparsegpt": Method(
            sparsegpt.prune,
            needs="hessian",
            group="tensor",
            source="Frantar & Alistarh 2023, arXiv:2301.00774",
            description="zero the weights of least loss, column block by column block; later columns make up for it",
            updates=True,
        ),
        "ria": Method(
            ria.prune,
            needs="norms",
            group="tensor",
            source="Zhang et al. 2024, ICLR, Plug-and-Play",
            description="zero the weights with the least share of their row and column x root of the input norm",
        ),
        "dsnot": Method(
            dsnot.prune,
            needs="means",
            group="row",
            source="Zhang et al. 2023, arXiv:2310.08915",
            description="Wanda's zeros, then swapped within rows until the expected error is small",
        ),
        "alps": Method(
            alps.prune,
            needs="hessian",
            group="tensor",
            source="Meng et al. 2024, arXiv:2406.07831",
            description="least squares under a limit on weights, by ADMM; slow (eigenvalues in float64)",
            updates=True,
        ),
        "gblm": Method(
            gblm.prune,
            needs="norms",
            group="row",
            source="Das et al. 2023, arXiv:2311.04902",
            description="zero, in each row, the weights with the least |weight| x (input norm + loss gradient)",
            gradients="weights",
        ),
        "wanda++": Method(
            gblm.prune,
            needs="norms",
            group="row",
            source="Yang et al. 2025, arXiv:2503.04992",
            description="the same with gradients of the block's own output, after a repair of its weights",
            updates=True,
            gradients="block",
        ),
    }
)
