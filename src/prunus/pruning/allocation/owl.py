"""OWL: blocks with more outliers among their Wanda scores keep more weights.

Yin et al. 2023, arXiv:2310.05175; authors' code lib/prune_all.py, prune_wanda_outlier_structure. An outlier is a Wanda
score above M times the mean score of its block.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from prunus.errors import PrunusError
from prunus.pruning.allocation.arithmetic import decreasing_sparsities
from prunus.pruning.allocation.measurement import WHOLE, ImportanceScores, Subject, blocks_with_inputs
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.methods import wanda
from prunus.recipes import PruneRecipe
from prunus.recipes.declarations import SPREAD

# The authors' code replaces sparsities of 0 or less by this.
LEAST = 0.01
# Scores are computed for about this many weights at a time.
SLICE = 1 << 24


def spread_of(recipe: PruneRecipe) -> float:
    """The recipe's spread, or SPREAD if it has none."""
    return SPREAD if recipe.spread is None else recipe.spread


def allocate(outlier_shares: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """Sparsity of each block from its share of outliers (in any unit). The spread is the paper's lambda.

    The authors' code raises sparsities of 0 or less to LEAST, which changes the mean; here other blocks compensate.
    """
    return decreasing_sparsities(outlier_shares, sizes, recipe.sparsity, spread_of(recipe))


def allocate_reference(outlier_shares: Sequence[float], _sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """Sparsity of each block as in the authors' code, to the bit: sparsities of 0 or less are replaced by LEAST.

    If there are any, the mean exceeds the target. They are 0 for Magnitude, as in the study's code. If all shares are
    equal, every block gets the target; the authors' code divides by zero.
    """
    share, target, spread = np.asarray(outlier_shares, float), recipe.sparsity, spread_of(recipe)
    low, high = share.min(), share.max()
    if low == high:
        return [target] * len(share)
    extra = (share - low) * (1 / (high - low) * spread * 2)
    sparsities = 1 - (extra - extra.mean() + (1 - target))
    return np.where(sparsities <= 0, 0.0 if recipe.method == "magnitude" else LEAST, sparsities).tolist()


def measure(subject: Subject, calibration: Calibration | None) -> ImportanceScores:
    """The share of outliers in every block, in percent; details have the mean of each block's scores.

    This takes a dense pass over the calibration tokens, or none with saved statistics. The scores of a block are
    computed twice and never stored together. Raises PrunusError if all scores of a block are 0.
    """
    means, shares = [], []
    for index, weights, inputs in blocks_with_inputs(subject, calibration):
        scored = [(weights[name], inputs[name].norm_I) for name in subject.names(index)]
        size = sum(weight_OI.numel() for weight_OI, _ in scored)
        mean = sum(part.sum(dtype=torch.float64).item() for part in slices(scored)) / size
        if not mean > 0:
            raise PrunusError(f"block {index}: all Wanda scores are 0 on this calibration text; try another")
        above = sum(int((part > subject.recipe.outlier_threshold * mean).sum()) for part in slices(scored))
        means.append(mean)
        shares.append(100 * above / size)
    return ImportanceScores(
        scores={WHOLE: shares}, details={"mean": means}, warnings=calibration.warnings if calibration else []
    )


def slices(scored: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """Yield the Wanda scores of (weight_OI, norm_I) pairs, some rows (R, I) at a time."""
    for weight_OI, norm_I in scored:
        for part_RI in weight_OI.split(max(1, SLICE // weight_OI.shape[1])):
            yield wanda.score(part_RI, norm_I)
