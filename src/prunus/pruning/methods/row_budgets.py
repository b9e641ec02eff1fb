"""F-Wanda: rows whose outputs matter more to the loss keep more weights.

arXiv:2608.00481, implemented from its abstract: scores are Wanda's, and the number of weights that a row keeps is
proportional to the Fisher information of its output. O: output features, I: input features.
"""

import torch
from torch import Tensor

from prunus.pruning.masks import Target, zero_lowest_of_rows, zeros_wanted


def kept_per_row(fisher_O: Tensor, columns: int, zeros: int, power: float) -> Tensor:
    """(O,) int64 number of weights that each row keeps: proportional to fisher^power, at most `columns`.

    They sum to O * columns - zeros. With power 0 all rows keep the same number. Fractions are rounded by largest
    remainder; of equal remainders the lower row is rounded up.
    """
    wanted = len(fisher_O) * columns - zeros
    share_O = fisher_O.double().clamp(min=torch.finfo(torch.float64).tiny).pow(power)
    kept_O = torch.zeros_like(share_O)
    open_O = torch.ones(len(share_O), dtype=torch.bool, device=share_O.device)
    while bool(open_O.any()):  # a row that would keep more weights than it has is full; the others share the rest
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
    """New weight with the target's number of zeros in total; each row loses its lowest scores and keeps its budget."""
    columns = weight_OI.shape[1]
    zeros = zeros_wanted(weight_OI.numel(), target.sparsity, target.rounding)
    return zero_lowest_of_rows(weight_OI, score_OI, columns - kept_per_row(fisher_O, columns, zeros, power))
