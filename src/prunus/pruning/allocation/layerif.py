"""LayerIF as in the study arXiv:2604.25098: attention and MLPs with more influence are pruned less.

Askari et al. 2025, arXiv:2505.23811; the study's code is wanda/lib/influence_helper.py. LayerIF's authors have
published no code that computes influences; gradients.py and influence.py are our own implementation. LayerIF's paper
has the opposite direction, more sparsity for more influence (layerif_sketch.py). The study's code reads influences from
stored files, and neither it nor its paper states their sign; here they are positive if training on a sequence lowers
the validation loss.
"""

from collections.abc import Sequence

import numpy as np
import scipy

from prunus.pruning.allocation.arithmetic import normalised, scaled
from prunus.pruning.allocation.importance_scores import PARTS
from prunus.pruning.allocation.influence import identity, influences, own_calibration
from prunus.pruning.allocation.measurement import Measured, Subject
from prunus.pruning.calibration.data import Calibration
from prunus.recipes import PruneRecipe

# Constants of the study's code.
LOWEST_RATIO, HIGHEST_RATIO = 0.05, 0.40  # range of the sparsities' ratios
WINDOW = 5  # width of the smoothing, in blocks
TINY = 1e-8  # added to denominators


def smoothed(scores: Sequence[float], window: int, order: int) -> list[float]:
    """Scores after a Savitzky-Golay filter with a polynomial fit at the ends.

    The window is reduced to the largest odd number of scores; fewer than three scores are returned unchanged.
    """
    width = min(window, len(scores) if len(scores) % 2 else len(scores) - 1)
    if width < 3:
        return list(scores)
    return np.asarray(
        scipy.signal.savgol_filter(np.asarray(scores, float), width, min(order, width - 1), mode="interp")
    ).tolist()


def study_ratios(influences: Sequence[float]) -> list[float]:
    """Ratios of the groups' sparsities in the study: from 0.40 for the least influence to 0.05 for the most.

    Absolute influences are normalised (min-max), with five groups or more smoothed (window 5, order 2) and clipped to
    [0, 1], and normalised again.
    """
    shares = normalised([abs(value) for value in influences])
    if len(shares) >= WINDOW:
        shares = [min(max(share, 0.0), 1.0) for share in smoothed(shares, WINDOW, order=2)]
    low, high = min(shares), max(shares)
    return [
        LOWEST_RATIO + (HIGHEST_RATIO - LOWEST_RATIO) * (1 - (share - low) / (high - low + TINY)) for share in shares
    ]


def sparsities(influences: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """Sparsity of each group of one kind (attention or MLP of each block): lower for more influence.

    These are study_ratios, scaled so that the weighted mean is the target even if some sparsities are clipped. The
    study's code clips after scaling, so its mean can differ from the target; see `reference_sparsities`.
    """
    return scaled(study_ratios(influences), sizes, target)


def reference_sparsities(influences: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """Sparsity of each group as in the study's code: scaled, then clipped to [0, 1]; the mean may miss the target."""
    ratios = study_ratios(influences)
    factor = target * sum(sizes) / (sum(ratio * size for ratio, size in zip(ratios, sizes, strict=True)) + TINY)
    return [min(max(factor * ratio, 0.0), 1.0) for ratio in ratios]


def measure(subject: Subject, calibration: Calibration | None) -> Measured:
    """Influences of attention and MLP of every block, with the identity as the Hessian, as in the study."""
    assert calibration is not None
    kinds = {linear.kind for linears in subject.linears for linear in linears}
    return influences(subject, calibration, [part for part in PARTS if part in kinds], identity)


def allocate(scores: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """`sparsities` for a recipe."""
    return sparsities(scores, sizes, recipe.sparsity)


def allocate_reference(scores: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """`reference_sparsities` for a recipe."""
    return reference_sparsities(scores, sizes, recipe.sparsity)


calibration = own_calibration
