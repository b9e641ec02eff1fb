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


def allocate(outlier_shares: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """Sparsity of each block from its share of outliers (in any unit). The spread is the paper's lambda.

    The authors' code raises sparsities of 0 or less to LEAST, which changes the mean; here other blocks compensate.
    """
    return decreasing_sparsities(outlier_shares, sizes, recipe.sparsity, spread_of("owl", recipe))


def allocate_reference(outlier_shares: Sequence[float], _sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """Sparsity of each block as in the authors' code, to the bit: sparsities of 0 or less are replaced by LEAST.

    If there are any, the mean exceeds the target. They are 0 for Magnitude, as in the study's code. If all shares are
    equal, every block gets the target; the authors' code divides by zero.
    """
    share, target, spread = np.asarray(outlier_shares, float), recipe.sparsity, spread_of("owl", recipe)
    low, high = share.min(), share.max()
    if low == high:
        return [target] * len(share)
    extra = (share - low) * (1 / (high - low) * spread * 2)
    found = 1 - (extra - extra.mean() + (1 - target))
    return np.where(found <= 0, 0.0 if recipe.method == "magnitude" else LEAST, found).tolist()


def measure(subject: Subject, calibration: Calibration | None) -> Measured:
    """The share of outliers in every block, in percent."""
    measured = wanda_scores(subject, calibration)
    return measured._replace(scores={WHOLE: measured.details["outliers"]})
