"""Wanda: a weight's importance is its size times the norm of its input.

Sun et al. 2023, arXiv:2306.11695; authors' code lib/prune.py, prune_wanda. O: output features, I: input features.
"""

import torch
from torch import Tensor

from prunus.declarations import Method
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target, zero_lowest, zero_lowest_of_rows, zeros_wanted
from prunus.recipes import PruneRecipe


def score(weight_OI: Tensor, norm_I: Tensor) -> Tensor:
    """(O, I) float32 importance; larger means keep. norm_I: L2 norm of each input over all calibration tokens."""
    return weight_OI.abs().float().mul_(norm_I.float())


def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
    """New weight with zeros at the round(I * sparsity) lowest scores of every row; other weights stay the same.

    Inputs that were zero on every token score 0 and are zeroed first; of equal scores the lower column is zeroed. The
    authors' code rounds the count down; rounding `reference` does too.
    """
    if inputs is None:
        raise ValueError("Wanda needs the norms of the inputs")
    return zero_lowest(weight_OI, score(weight_OI, inputs.norm_I), target, "row")


def configure(method: Method, recipe: PruneRecipe) -> Method:
    """F-Wanda if the recipe sets row_power: budgets of rows follow the Fisher information of their outputs."""
    if not recipe.row_power:
        return method

    def prune_by_budgets(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
        if inputs is None or inputs.fisher_O is None:
            raise ValueError("F-Wanda needs norms and the Fisher information of the outputs")
        columns = weight_OI.shape[1]
        zeros = zeros_wanted(weight_OI.numel(), target.sparsity, target.rounding)
        kept_O = kept_per_row(inputs.fisher_O, columns, zeros, recipe.row_power)
        return zero_lowest_of_rows(weight_OI, score(weight_OI, inputs.norm_I), columns - kept_O)

    return method._replace(prune=prune_by_budgets, group="tensor", fisher=True)


# F-Wanda: rows whose outputs matter more to the loss keep more weights.
# arXiv:2608.00481, implemented from its abstract: scores are Wanda's, and the number of weights that a row keeps is
# proportional to the Fisher information of its output. O: output features, I: input features.


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
