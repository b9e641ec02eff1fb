"""SparseGPT: prune columns from left to right and update the columns that follow to compensate for the error.

Frantar & Alistarh 2023, arXiv:2301.00774; authors' code sparsegpt.py, fasterprune. O: output features, I: input
features, B: columns of a block. Weights are stored transposed, so that a column is contiguous.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from prunus.pruning.calibration.statistics import Hessian, InputStats
from prunus.pruning.masks import (
    Target,
    check_result,
    kth_lowest,
    lowest_in_tensor,
    lowest_per_pattern,
    zeros_wanted,
)

BLOCK = 128


# choose(scores (O, B) of some columns, index of the first of them) -> (O, B) true at weights to zero.
Chooser = Callable[[Tensor, int], Tensor]


def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
    """New weight with round(O * I * sparsity) zeros of least loss, chosen per block of 128 columns, the rest updated.

    All blocks lose the same share, up to rounding by a weight. Weights of dead inputs are zeroed first, up to the
    block's count. The authors' code zeroes one weight more in every block, all ties, and all weights of dead inputs;
    rounding `reference` does too.
    """
    width = None if target.pattern is None else target.pattern[1]
    block = BLOCK if width is None else max(width, BLOCK // width * width)
    return reconstruct(weight_OI, _hessian(inputs), _adaptive(target, len(weight_OI)), width, block=block)


def updated(weight_OI: Tensor, masked_OI: Tensor, inputs: InputStats | None) -> Tensor:
    """New weight with the zeros of masked_OI, and its other weights updated to compensate for them."""

    if torch.equal(masked_OI, weight_OI):
        return masked_OI

    def fixed(score_OB: Tensor, start: int) -> Tensor:
        return masked_OI[:, start : start + score_OB.shape[1]] == 0

    return reconstruct(weight_OI, _hessian(inputs), fixed)


def reconstruct(
    weight_OI: Tensor, hessian: Hessian, choose: Chooser, width: int | None = None, *, block: int = BLOCK
) -> Tensor:
    """Zero the weights chosen by `choose`, block by block from the left, and update the columns after each of them.

    width: number of columns for which `choose` is called at a time, with weights updated up to there; None: a block.
    """
    upper_II = hessian.inverse_factor
    weight_IO = weight_OI.T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    for start in range(0, len(weight_IO), block):
        part_BO, upper_BB = weight_IO[start : start + block], upper_II[start : start + block, start : start + block]
        dead_B = hessian.dead_I[start : start + block]
        error_BO = _prune_block(part_BO, upper_BB, dead_B, choose, start, width or len(part_BO))
        end = start + len(part_BO)
        if bool(error_BO.any()):  # adding zeros would still turn a -0.0 into 0.0
            weight_IO[end:].addmm_(upper_II[start:end, end:].T, error_BO, alpha=-1)
    check_result(weight_IO)
    return weight_IO.to(weight_OI.dtype).T.contiguous()


def _prune_block(part_BO: Tensor, upper_BB: Tensor, dead_B: Tensor, choose: Chooser, start: int, width: int) -> Tensor:
    """Prune the columns of a block in place; returns the (B, O) errors: pruned weights over the factor's diagonal."""
    diagonal_B = upper_BB.diagonal()
    error_BO = torch.zeros_like(part_BO)
    zero_BO = torch.zeros_like(part_BO, dtype=torch.bool)
    pruned: list[bool] = []
    for j in range(len(part_BO)):
        if j % width == 0:
            group = slice(j, j + width)
            score_BO = (part_BO[group] / diagonal_B[group, None]).square_().masked_fill_(dead_B[group, None], 0)
            zero_BO[group] = choose(score_BO.T.contiguous(), start + j).T
            # A column without zeros changes nothing but -0.0, so a GPU need not wait to be told which these are.
            pruned = zero_BO[group].any(1).tolist() if part_BO.device.type == "cpu" else [True] * width
        if not pruned[j % width]:
            continue
        error_BO[j] = (part_BO[j] / diagonal_B[j]).mul_(zero_BO[j])
        part_BO[j].masked_fill_(zero_BO[j], 0)
        part_BO[j + 1 :].addr_(upper_BB[j, j + 1 :], error_BO[j], alpha=-1)
    return error_BO


def _adaptive(target: Target, rows: int) -> Chooser:
    """A Chooser of the lowest scores of all rows together; the columns visited so far have the sparsity asked for."""

    def choose(score_OB: Tensor, start: int) -> Tensor:
        end = start + score_OB.shape[1]
        if target.pattern is not None:
            keep, width = target.pattern
            if score_OB.shape[1] < width:  # the last columns, fewer than the pattern's width, stay dense
                return torch.zeros_like(score_OB, dtype=torch.bool)
            return lowest_per_pattern(score_OB, width - keep, width)
        if target.rounding == "reference":
            place = zeros_wanted(score_OB.numel(), target.sparsity, "reference")
            return score_OB <= kth_lowest(score_OB.reshape(-1), place + 1)
        before, after = (zeros_wanted(rows * columns, target.sparsity) for columns in (start, end))
        return lowest_in_tensor(score_OB, after - before)

    return choose


def _hessian(inputs: InputStats | None) -> Hessian:
    if inputs is None or inputs.hessian is None:
        raise ValueError("the update of weights needs the Hessian of the inputs")
    return inputs.hessian
