"""DLP: blocks with a larger mean (or median) of their Wanda scores are pruned more.

Chen et al. 2025, arXiv:2505.23807. The paper uses the median of a block's scores. The public code for unstructured
sparsity uses their mean, which is the default here.
"""

from collections.abc import Sequence

from prunus.pruning.allocation.arithmetic import decreasing_sparsities, spread_of
from prunus.pruning.allocation.measurement import WHOLE, Measured, Subject, wanda_scores
from prunus.pruning.calibration.data import Calibration
from prunus.recipes import PruneRecipe


def allocate(centres: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """Sparsity of each block from the mean or median of its Wanda scores. The spread is the paper's alpha."""
    total = sum(centres)
    scores = [1 - centre / total if total else 0.0 for centre in centres]
    return decreasing_sparsities(scores, sizes, recipe.sparsity, spread_of("dlp", recipe))


def measure(subject: Subject, calibration: Calibration | None) -> Measured:
    """The mean or the median of every block's Wanda scores."""
    measured = wanda_scores(subject, calibration)
    return measured._replace(scores={WHOLE: measured.details[subject.recipe.statistic]})
