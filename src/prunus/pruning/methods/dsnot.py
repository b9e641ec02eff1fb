"""DSnoT: start from Wanda's zeros, then swap zeros and weights of a row until its expected error is small.

Zhang et al. 2023, arXiv:2310.08915; authors' code lib/prune.py, prune_DSnoT. O: output features, R: some of them, I:
input features, G: groups of the pattern. No weight that stays changes. Differs from the authors' code on purpose: MLP
Linears are refined too (theirs skips them by default), variances are over all tokens (theirs within batches), the
threshold is per token, and a row whose candidates run out is left as it is (theirs walks on into weights that were
kept).
"""

import torch
from torch import Tensor

from prunus.pruning.masks import SLICE, Target
from prunus.pruning.methods import wanda
from prunus.pruning.observe import InputStats

CYCLES = 50
THRESHOLD = 0.1 / 2048  # the authors' 0.1 is for sums over 2048 tokens


def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
    """New weight with as many zeros per row (or group of the pattern) as Wanda's."""
    if inputs is None or inputs.mean_I is None or inputs.variance_I is None:
        raise ValueError("DSnoT needs the means of the inputs")
    start_OI = wanda.prune(weight_OI, inputs, target)
    # A weight that is zero already counts as neither: taking it back would gain nothing.
    gone_OI, kept_OI = (start_OI == 0) & (weight_OI != 0), start_OI != 0
    width = None if target.pattern is None else target.pattern[1]
    # Rows do not depend on each other: a few at a time need less memory, and stay in a CPU's cache.
    rows = max(1, SLICE // weight_OI.shape[1]) if weight_OI.device.type == "cpu" else len(weight_OI)
    for begin in range(0, len(weight_OI), rows):
        weight_RI, gone_RI, kept_RI = (table[begin : begin + rows] for table in (weight_OI, gone_OI, kept_OI))
        score_RI = wanda.score(weight_RI, inputs.norm_I)
        gone_RI.copy_(refine(weight_RI, gone_RI, kept_RI, score_RI, inputs.mean_I, inputs.variance_I, width))
    return weight_OI.masked_fill(gone_OI, 0)


def refine(
    weight_OI: Tensor,
    gone_OI: Tensor,
    kept_OI: Tensor,
    score_OI: Tensor,
    mean_I: Tensor,
    variance_I: Tensor,
    width: int | None = None,
) -> Tensor:
    """A better gone_OI with as many true in every row, and in every `width` columns where one is given.

    The error of a row is the sum of W * mean over what is gone. Each cycle takes one weight of the error's sign back,
    that with the largest W * mean / variance, and gives up the one of the lowest score among those kept that have the
    other sign, so that both shrink the error (with a width: among all kept of the same group, if the error shrinks and
    keeps its sign). Rows stop when the error is below THRESHOLD, or nothing is left to swap.
    """
    gone_OI, kept_OI = gone_OI.clone(), kept_OI.clone()
    pull_OI = weight_OI.float() * mean_I.float()
    gain_OI = pull_OI / variance_I.clamp(min=torch.finfo(torch.float32).tiny)
    error_O = (pull_OI * gone_OI).sum(1)
    rows_O = torch.arange(len(weight_OI), device=weight_OI.device)
    group_I = None if width is None else torch.arange(weight_OI.shape[1], device=weight_OI.device) // width
    for _ in range(CYCLES):
        sign_O1 = error_O.sign()[:, None]
        back_OI = (gain_OI * sign_O1).masked_fill(~gone_OI | (pull_OI * sign_O1 <= 0), -torch.inf)
        back_O = back_OI.argmax(1)
        allowed_OI = kept_OI & (pull_OI * sign_O1 < 0)
        if group_I is not None:
            allowed_OI = kept_OI & (group_I == group_I[back_O][:, None])
        out_OI = score_OI.masked_fill(~allowed_OI, torch.inf)
        out_O = out_OI.argmin(1)
        after_O = error_O + pull_OI[rows_O, out_O] - pull_OI[rows_O, back_O]
        live_O = (error_O.abs() > THRESHOLD) & (back_OI[rows_O, back_O] > -torch.inf) & allowed_OI[rows_O, out_O]
        if group_I is not None:
            live_O &= (after_O.sign() == error_O.sign()) & (after_O.abs() < error_O.abs())
        if not bool(live_O.any()):
            break
        live = rows_O[live_O]
        for place_O, gone in ((back_O, False), (out_O, True)):
            gone_OI[live, place_O[live]] = gone
            kept_OI[live, place_O[live]] = not gone
        error_O = torch.where(live_O, after_O, error_O)
    return gone_OI
