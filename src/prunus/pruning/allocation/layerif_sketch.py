"""LayerIF as in its paper: blocks with more influence are pruned more.

Askari et al. 2025, arXiv:2505.23811, section 3.4. Influences use DataInf's Hessian (arXiv:2310.00902) on sketched
gradients. layerif.py describes how the study's version differs.
"""

from collections.abc import Sequence

from prunus.pruning.allocation.alphapruning import ratios
from prunus.pruning.allocation.arithmetic import normalised, scaled, spread_of
from prunus.pruning.allocation.layerif import datainf, influences, own_calibration, smoothed
from prunus.pruning.allocation.measurement import WHOLE, ImportanceScores, Subject
from prunus.pruning.calibration.data import Calibration
from prunus.recipes import PruneRecipe


def allocate(influences: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """Sparsity of each block from its summed positive influence. The spread is the paper's epsilon."""
    shares = smoothed(normalised([abs(value) for value in influences]), window=7, order=3)
    return scaled(ratios(normalised(shares), spread_of("layerif-sketch", recipe)), sizes, recipe.sparsity)


def measure(subject: Subject, calibration: Calibration | None) -> ImportanceScores:
    """Influences of every block, with DataInf's Hessian."""
    assert calibration is not None
    return influences(subject, calibration, [WHOLE], datainf)


calibration = own_calibration
