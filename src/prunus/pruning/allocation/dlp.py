"""DLP: a block whose Wanda scores are large in the middle is pruned more. arXiv:2505.23807.

The paper takes the median of a block's scores, the public code for unstructured sparsity their mean, as we do.
"""

from collections.abc import Sequence

from prunus.pruning.allocation.arithmetic import more_kept


def allocate(centres: Sequence[float], sizes: Sequence[int], target: float, spread: float = 0.15) -> list[float]:
    """Sparsity of each block from the mean of its Wanda scores. spread: the paper's alpha, half of the range."""
    total = sum(centres)
    return more_kept([1 - centre / total if total else 0.0 for centre in centres], sizes, target, spread)
