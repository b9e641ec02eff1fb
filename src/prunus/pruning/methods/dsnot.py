"""DSnoT: start from Wanda's zeros, then swap pruned and kept weights of a row until its expected error is small.

Zhang et al. 2023, arXiv:2310.08915; authors' code lib/prune.py, prune_DSnoT. O: output features, R: some of them, I:
input features. The values of kept weights do not change. Deviations from the authors' code, all deliberate:
- A swap is made only if it lowers the error of its row. Theirs makes every swap, so an error can alternate in sign
  forever.
- MLP Linears are refined too; theirs skips them by default.
- Variances are over all tokens; theirs are within batches.
- The threshold is per token; theirs is for sums over 2048 tokens.
- A row without candidates is left alone; theirs goes on to weights that were kept.
"""

import torch
from torch import Tensor

from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import SLICE, Target
from prunus.pruning.methods import wanda

CYCLES = 50  # swaps per row, at most
THRESHOLD = 0.1 / 2048  # error of a row per token, up to which it is done; the authors' is over 2048 tokens


def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
    """New weight with as many zeros per row (or group of the pattern) as Wanda's."""
    if inputs is None or inputs.mean_I is None or inputs.variance_I is None:
        raise ValueError("DSnoT needs the means of the inputs")
    start_OI = wanda.prune(weight_OI, inputs, target)
    # A weight that was zero before pruning is neither pruned nor kept: restoring it would change nothing.
    pruned_OI, kept_OI = (start_OI == 0) & (weight_OI != 0), start_OI != 0
    width = None if target.pattern is None else target.pattern[1]
    # Rows are independent. A few at a time need less memory and stay in a CPU's cache.
    rows = max(1, SLICE // weight_OI.shape[1]) if weight_OI.device.type == "cpu" else len(weight_OI)
    for begin in range(0, len(weight_OI), rows):
        weight_RI, pruned_RI, kept_RI = (table[begin : begin + rows] for table in (weight_OI, pruned_OI, kept_OI))
        score_RI = wanda.score(weight_RI, inputs.norm_I)
        pruned_RI.copy_(refine(weight_RI, pruned_RI, kept_RI, score_RI, inputs.mean_I, inputs.variance_I, width))
    return weight_OI.masked_fill(pruned_OI, 0)


def refine(
    weight_OI: Tensor,
    pruned_OI: Tensor,
    kept_OI: Tensor,
    score_OI: Tensor,
    mean_I: Tensor,
    variance_I: Tensor,
    width: int | None,
) -> Tensor:
    """(O, I) true at pruned weights, with as many per row as in pruned_OI and, if width is given, per `width` columns.

    The error of a row is the sum of W * mean over its pruned weights. Each cycle restores one pruned weight whose
    W * mean has the sign of the error, the one with the largest W * mean / variance, and prunes one kept weight: the
    one of lowest score among those of the opposite sign, so that both changes move the error towards 0. With a width it
    is the one of lowest score among all kept weights of the same group, provided the error keeps its sign. A row is
    done after CYCLES swaps, if the swap would not reduce the size of its error, if the error is at most THRESHOLD, or
    if no swap is left.
    """
    result_OI = pruned_OI.clone()
    effect_OI = weight_OI.float() * mean_I.float()
    gain_OI = effect_OI / variance_I.clamp(min=torch.finfo(torch.float32).tiny)
    group_I = None if width is None else torch.arange(weight_OI.shape[1], device=weight_OI.device) // width
    rows_R = torch.arange(len(weight_OI), device=weight_OI.device)  # rows that are not done
    kept_RI, pruned_RI, score_RI, effect_RI, gain_RI = kept_OI.clone(), result_OI, score_OI, effect_OI, gain_OI
    error_R = (effect_OI * pruned_OI).sum(1)
    for _ in range(CYCLES):
        sign_R1 = error_R.sign()[:, None]
        restored_RI = (gain_RI * sign_R1).masked_fill(~pruned_RI | (effect_RI * sign_R1 <= 0), -torch.inf)
        restored_R1 = restored_RI.argmax(1, keepdim=True)
        eligible_RI = effect_RI * sign_R1 < 0 if group_I is None else group_I == group_I[restored_R1]
        allowed_RI = kept_RI & eligible_RI
        removed_R1 = score_RI.masked_fill(~allowed_RI, torch.inf).argmin(1, keepdim=True)
        after_R = error_R + (effect_RI.gather(1, removed_R1) - effect_RI.gather(1, restored_R1))[:, 0]
        possible_R = (restored_RI.gather(1, restored_R1) > -torch.inf)[:, 0] & allowed_RI.gather(1, removed_R1)[:, 0]
        active_R = possible_R & (error_R.abs() > THRESHOLD) & (after_R.abs() < error_R.abs())
        if group_I is not None:
            active_R &= after_R.sign() == error_R.sign()
        # A row without a swap in this cycle would have none in the next: only the others continue.
        rows_R, error_R = rows_R[active_R], after_R[active_R]
        if not len(rows_R):
            break
        kept_RI, pruned_RI, score_RI, effect_RI, gain_RI = (
            table_RI[active_R] for table_RI in (kept_RI, pruned_RI, score_RI, effect_RI, gain_RI)
        )
        for place_R1, pruned in ((restored_R1[active_R], False), (removed_R1[active_R], True)):
            pruned_RI.scatter_(1, place_R1, pruned)
            kept_RI.scatter_(1, place_R1, not pruned)
        result_OI[rows_R] = pruned_RI
    return result_OI
