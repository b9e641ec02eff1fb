"""GPTQ: round columns in turn, and update the columns that follow to compensate for the error.

Frantar et al. 2022, arXiv:2210.17323. Columns go in the order of falling mean squared input (act-order), with all
scales fixed beforehand, so that groups stay groups of consecutive inputs and need no index. A weight that is zero stays
zero.

O: output features, I: input features, G: groups of a row, B: columns of a block. Weights are transposed, so that a
column is contiguous.
"""

import torch
from torch import Tensor

from prunus.pruning.bits.grid import Codes, Grid, scales_of
from prunus.pruning.calibration.statistics import Hessian

BLOCK = 128


class Ordered:
    """A Hessian whose inputs are in the order in which they are rounded; Linears that read the same input share it.

    order_I: the inputs. factor_II: upper U with U^T U = H^-1 of the damped Hessian in this order. warning: Hessian's.
    """

    def __init__(self, hessian: Hessian) -> None:
        self.of = hessian
        self.order_I = hessian.matrix_II.diagonal().argsort(descending=True, stable=True)
        permuted = Hessian(hessian.matrix_II[self.order_I[:, None], self.order_I], hessian.name)
        self.factor_II = permuted.inverse_factor
        self.warning = permuted.warning
        self.back_I = self.order_I.argsort()

    @property
    def importance_I(self) -> Tensor:
        """(I,) cost of a squared error of each input's weight if the inputs after it compensate for it: 1 / U_jj^2."""
        return self.factor_II.diagonal().square().reciprocal()[self.back_I]


def quantise(weight_OI: Tensor, ordered: Ordered, grid: Grid) -> Codes:
    """A weight that is rounded by GPTQ."""
    upper_II, order_I = ordered.factor_II, ordered.order_I
    dense_OI = weight_OI.float()
    scale_OG = scales_of(dense_OI, ordered.importance_I, grid)
    scale_IO = scale_OG.repeat_interleave(grid.group, 1).T[order_I].contiguous()
    weight_IO = dense_OI.T[order_I].contiguous()
    zero_IO = weight_IO == 0
    code_IO = torch.empty_like(weight_IO)
    for start in range(0, len(weight_IO), BLOCK):
        part_BO = weight_IO[start : start + BLOCK]
        end = start + len(part_BO)
        upper_BB = upper_II[start:end, start:end]
        error_BO = torch.empty_like(part_BO)
        for j, column_O in enumerate(part_BO):
            scale_O = scale_IO[start + j]
            code_IO[start + j] = code_O = grid.codes(column_O, scale_O).masked_fill_(zero_IO[start + j], 0)
            error_BO[j] = (column_O - code_O * scale_O) / upper_BB[j, j]
            part_BO[j + 1 :].addr_(upper_BB[j, j + 1 :], error_BO[j], alpha=-1)
        weight_IO[end:].addmm_(upper_II[start:end, end:].T, error_BO, alpha=-1)
    return Codes(code_IO[ordered.back_I].T.to(torch.int8).contiguous(), scale_OG)
