"""Fit a down Linear to the channels that it keeps: least squares in closed form. Pure functions.

Shapes: I channels, K kept ones, O outputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prunus.pruning.width.scores import Inputs, factor


class Fitted(NamedTuple):
    """weight_OK, bias_O: of the down Linear; bias_O is None where it has none."""

    weight_OK: Tensor
    bias_O: Tensor | None


def fit(inputs: Inputs, weight_OI: Tensor, bias_O: Tensor | None, kept: Sequence[int]) -> Fitted:
    """The down Linear of the kept channels whose output is nearest to its target, damped towards its old weights.

    It minimises the sum over tokens of |W' x_K + b' - target|^2 + damping * |W' - W_K|^2, where the target is
    W x + b + e, and e what the output lacks (see Inputs). The intercept, where there is one, is not damped.
    """
    seen = inputs if bias_O is None else inputs.centred()
    kept_K = torch.tensor(kept, device=weight_OI.device)
    # What the output would lack with the old weights, times the kept inputs.
    gone_OI = weight_OI.index_fill(1, kept_K, 0)
    lacks_OK = (gone_OI @ seen.hessian_II)[:, kept_K]
    if seen.error_OI is not None:
        lacks_OK += seen.error_OI[:, kept_K]
    lower_KK = factor(seen.hessian_II[kept_K[:, None], kept_K])
    weight_OK = weight_OI[:, kept_K] + torch.cholesky_solve(lacks_OK.mT, lower_KK).mT
    return Fitted(weight_OK, intercept(inputs, weight_OI, bias_O, weight_OK, kept_K))


def cut(weight_OI: Tensor, bias_O: Tensor | None, kept: Sequence[int]) -> Fitted:
    """The down Linear of the kept channels as it is."""
    return Fitted(weight_OI[:, torch.tensor(kept, device=weight_OI.device)], bias_O)


def intercept(
    inputs: Inputs, weight_OI: Tensor, bias_O: Tensor | None, weight_OK: Tensor, kept_K: Tensor
) -> Tensor | None:
    """The bias with which the mean output is that of the target; None where the Linear has none."""
    if bias_O is None or not inputs.weight:
        return bias_O
    mean_I = inputs.sum_I / inputs.weight
    bias_O = bias_O + weight_OI @ mean_I - weight_OK @ mean_I[kept_K]
    return bias_O if inputs.error_O is None else bias_O + inputs.error_O / inputs.weight


def relative_error(
    inputs: Inputs, weight_OI: Tensor, bias_O: Tensor | None, fitted: Fitted, kept: Sequence[int]
) -> float:
    """Sum over tokens of |output - target|^2, as a share of that of the |output|^2 which the Linear gave.

    Outputs are taken without biases; of a Linear that has one, both are taken without their means.
    """
    seen = inputs if bias_O is None else inputs.centred()
    change_OI = -weight_OI
    change_OI[:, torch.tensor(kept, device=weight_OI.device)] += fitted.weight_OK
    change_OI = change_OI.contiguous()
    squared = (change_OI @ seen.hessian_II * change_OI).sum()
    if seen.error_OI is not None:
        squared = squared - 2 * (change_OI * seen.error_OI).sum() + seen.energy
    before = (weight_OI @ seen.hessian_II * weight_OI).sum()
    return float(squared / before) if before else 0.0
