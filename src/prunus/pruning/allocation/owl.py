"""OWL: a block with more outliers keeps more weights.

Yin et al. 2023, arXiv:2310.05175; authors' code lib/prune_all.py, prune_wanda_outlier_structure. An outlier is a Wanda
score above M times the mean score of its block.
"""

from collections.abc import Sequence

import numpy as np

from prunus.pruning.allocation.arithmetic import more_kept

# What the authors' code prunes of a block for which there is nothing left.
LEAST = 0.01


def allocate(outlier_shares: Sequence[float], sizes: Sequence[int], target: float, spread: float = 0.08) -> list[float]:
    """Sparsity of each block from its share of outliers (in any unit). spread: the paper's lambda, half of the range.

    The authors raise sparsities below 0 to LEAST and lose the budget; here the rest moves so that it holds.
    """
    return more_kept(outlier_shares, sizes, target, spread)


def allocate_as_run(
    outlier_shares: Sequence[float], target: float, spread: float = 0.08, least: float = LEAST
) -> list[float]:
    """The same as the authors' code has it, float by float: sparsities of 0 or less become least, the rest stays.

    Where any is, the mean exceeds the target. Blocks that all look alike get target each (theirs divides by zero).
    """
    share = np.asarray(outlier_shares, float)
    low, high = share.min(), share.max()
    if low == high:
        return [target] * len(share)
    extra = (share - low) * (1 / (high - low) * spread * 2)
    found = 1 - (extra - extra.mean() + (1 - target))
    return np.where(found <= 0, least, found).tolist()
