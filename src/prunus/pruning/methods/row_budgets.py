"""F-Wanda: rows whose outputs matter more to the loss keep more weights.

arXiv:2608.00481, by its abstract: scores stay Wanda's, the weights that a row keeps are in proportion to the Fisher
information of its output. O: output features, I: input features.
"""

import torch
from torch import Tensor

from prunus.pruning.masks import Target, zero_lowest_of_rows, zeros_wanted


def kept_of_rows(fisher_O: Tensor, columns: int, zeros: int, power: float) -> Tensor:
    """(O,) int64 weights that each row keeps, in proportion to fisher^power and at most `columns`; zeros go in all.

    Power 0 is the same for all rows. Whole numbers by largest remainder, equal ones by index.
    """
    wanted = len(fisher_O) * columns - zeros
    share_O = fisher_O.double().clamp(min=torch.finfo(torch.float64).tiny).pow(power)
    kept_O = torch.zeros_like(share_O)
    open_O = torch.ones(len(share_O), dtype=torch.bool, device=share_O.device)
    while bool(open_O.any()):  # rows that would keep more than they have are full; the others share what is left
        kept_O[open_O] = share_O[open_O] * ((wanted - columns * int((~open_O).sum())) / share_O[open_O].sum())
        full_O = open_O & (kept_O > columns)
        if not bool(full_O.any()):
            break
        kept_O[full_O] = columns
        open_O &= ~full_O
    whole_O = kept_O.floor().long()
    missing = wanted - int(whole_O.sum())
    remainder_O = (kept_O - whole_O).masked_fill(whole_O == columns, -1)
    whole_O[remainder_O.argsort(descending=True, stable=True)[:missing]] += 1
    return whole_O


def zero_by_budgets(weight_OI: Tensor, score_OI: Tensor, fisher_O: Tensor, target: Target, power: float) -> Tensor:
    """New weight with as many zeros in all as the target says, of each row those with its lowest scores."""
    columns = weight_OI.shape[1]
    zeros = zeros_wanted(weight_OI.numel(), target.sparsity, target.rounding)
    return zero_lowest_of_rows(weight_OI, score_OI, columns - kept_of_rows(fisher_O, columns, zeros, power))
