"""OWL: blocks with more outliers among their Wanda scores keep more weights.

Yin et al. 2023, arXiv:2310.05175; authors' code lib/prune_all.py, prune_wanda_outlier_structure. An outlier is a Wanda
score above M times the mean score of its block.
"""

from collections.abc import Sequence

import numpy as np

from prunus.pruning.allocation.arithmetic import decreasing_sparsities, spread_of
from prunus.pruning.allocation.measurement import WHOLE, Measured, Subject, wanda_scores
from prunus.pruning.calibration.data import Calibration
from prunus.recipes import PruneRecipe

# The authors' code replaces sparsities of 0 or less by this.
LEAST = 0.01


def sparsities(
    outlier_shares: Sequence[float], sizes: Sequence[int], target: float, spread: float = 0.08
) -> list[float]:
    """Sparsity of each block from its share of outliers (in any unit). spread: the paper's lambda, half of the range.

    The authors' code raises sparsities of 0 or less to LEAST, which changes the mean; here other blocks compensate.
    """
    return decreasing_sparsities(outlier_shares, sizes, target, spread)


def reference_sparsities(
    outlier_shares: Sequence[float], target: float, spread: float = 0.08, least: float = LEAST
) -> list[float]:
    """Sparsity of each block as in the authors' code, to the bit: sparsities of 0 or less are replaced by `least`.

    If there are any, the mean exceeds the target. If all shares are equal, every block gets the target; the authors'
    code divides by zero.
    """
    share = np.asarray(outlier_shares, float)
    low, high = share.min(), share.max()
    if low == high:
        return [target] * len(share)
    extra = (share - low) * (1 / (high - low) * spread * 2)
    found = 1 - (extra - extra.mean() + (1 - target))
    return np.where(found <= 0, least, found).tolist()


def measure(subject: Subject, calibration: Calibration | None) -> Measured:
    """The share of outliers in every block, in percent."""
    measured = wanda_scores(subject, calibration)
    return measured._replace(scores={WHOLE: measured.details["outliers"]})


def allocate_reference(outlier_shares: Sequence[float], _sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """`reference_sparsities` for a recipe. As in the study's code, `least` is 0 for Magnitude."""
    least = 0.0 if recipe.method == "magnitude" else LEAST
    return reference_sparsities(outlier_shares, recipe.sparsity, spread_of("owl", recipe), least)


def allocate(scores: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """`sparsities` for a recipe."""
    return sparsities(scores, sizes, recipe.sparsity, spread_of("owl", recipe))
