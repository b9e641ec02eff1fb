"""LayerIF: a block whose training data help the validation loss most is pruned most.

Askari et al. 2025, arXiv:2505.23811. The authors publish no code that computes the influences; gradients.py and
influence.py do, from scratch. Two forms: `allocate_study` as the study arXiv:2604.25098 runs it, for attention and MLP
apart; `allocate_paper` as the paper does (Savitzky-Golay 7, 3, then AlphaPruning's map).
"""

from collections.abc import Sequence

import numpy as np
from scipy.signal import savgol_filter

from prunus.pruning.allocation.alphapruning import ratios
from prunus.pruning.allocation.arithmetic import scaled, spread_out

LOWEST_RATIO, HIGHEST_RATIO = 0.05, 0.40


def smoothed(scores: Sequence[float], window: int, order: int) -> list[float]:
    """Savitzky-Golay with a polynomial fit at the ends; the window shrinks to the largest odd number of blocks."""
    width = min(window, len(scores) if len(scores) % 2 else len(scores) - 1)
    if width < 3:
        return list(scores)
    return np.asarray(savgol_filter(np.asarray(scores, float), width, min(order, width - 1), mode="interp")).tolist()


def allocate_study(influences: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """Sparsity of each group of one kind (attention or MLP of each block), in the seed study's form.

    Absolute values, min-max, smoothed (5, 2), min-max again so that the range holds, mapped to 0.05 to 0.40 and scaled
    to the target.
    """
    shares = spread_out(smoothed(spread_out([abs(value) for value in influences]), window=5, order=2))
    width = HIGHEST_RATIO - LOWEST_RATIO
    return scaled([LOWEST_RATIO + width * share for share in shares], sizes, target)


def allocate_paper(
    influences: Sequence[float], sizes: Sequence[int], target: float, spread: float = 0.3
) -> list[float]:
    """Sparsity of each block from its summed positive influence. spread: the paper's epsilon, 0.1 to 0.5 there."""
    shares = smoothed(spread_out([abs(value) for value in influences]), window=7, order=3)
    return scaled(ratios(spread_out(shares), spread), sizes, target)
