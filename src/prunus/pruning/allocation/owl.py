"""OWL: a block with more outliers keeps more weights.

Yin et al. 2023, arXiv:2310.05175; authors' code lib/prune_all.py, prune_wanda_outlier_structure. An outlier is a Wanda
score above M times the mean score of its block.
"""

from collections.abc import Sequence

from prunus.pruning.allocation.arithmetic import more_kept


def allocate(outlier_shares: Sequence[float], sizes: Sequence[int], target: float, spread: float = 0.08) -> list[float]:
    """Sparsity of each block from its share of outliers (in any unit). spread: the paper's lambda, half of the range.

    The authors raise sparsities below 0 to 0.01 and lose the budget; here the rest moves so that it holds.
    """
    return more_kept(outlier_shares, sizes, target, spread)
