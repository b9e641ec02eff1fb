"""LayerIF as the study arXiv:2604.25098 runs it: attention and MLP with more influence lose less.

Askari et al. 2025, arXiv:2505.23811; the study's code is wanda/lib/influence_helper.py. No code of LayerIF's authors
computes influences; gradients.py and influence.py do, from scratch. The paper itself goes the other way, more influence
and more sparsity: layerif_sketch.py. The study's code reads influences from stored files, and neither it nor its paper
says with which sign they were stored; ours are positive where training on a sequence lowers the validation loss.
"""

from collections.abc import Sequence

import numpy as np
from scipy.signal import savgol_filter

from prunus.declarations import Allocation, Option
from prunus.pruning.allocation.arithmetic import scaled, spread_out
from prunus.pruning.allocation.importance_scores import PARTS
from prunus.pruning.allocation.influence import identity, influences
from prunus.pruning.allocation.measurement import Measured, Subject
from prunus.pruning.calibration.data import Calibration

# Of the study: ratios of sparsities, width of its smoothing, and what keeps its divisions from failing.
LOWEST_RATIO, HIGHEST_RATIO = 0.05, 0.40
WINDOW = 5
TINY = 1e-8


def smoothed(scores: Sequence[float], window: int, order: int) -> list[float]:
    """Savitzky-Golay with a polynomial fit at the ends; the window shrinks to the largest odd number of blocks."""
    width = min(window, len(scores) if len(scores) % 2 else len(scores) - 1)
    if width < 3:
        return list(scores)
    return np.asarray(savgol_filter(np.asarray(scores, float), width, min(order, width - 1), mode="interp")).tolist()


def study_ratios(influences: Sequence[float]) -> list[float]:
    """How sparsities of the groups relate in the seed study: from 0.40 for the least influence to 0.05 for the most.

    Absolute values, min-max, smoothed (5, 2) from five groups on, clipped to [0, 1], min-max again.
    """
    shares = spread_out([abs(value) for value in influences])
    if len(shares) >= WINDOW:
        shares = [min(max(share, 0.0), 1.0) for share in smoothed(shares, WINDOW, order=2)]
    low, high = min(shares), max(shares)
    return [
        LOWEST_RATIO + (HIGHEST_RATIO - LOWEST_RATIO) * (1 - (share - low) / (high - low + TINY)) for share in shares
    ]


def allocate_study(influences: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """Sparsity of each group of one kind (attention or MLP of each block): the more influence, the less sparsity.

    study_ratios, scaled so that the mean weighted by sizes is the target even where sparsities meet their limits. The
    study's code clips after scaling and loses the budget; `allocate_as_run` does so too.
    """
    return scaled(study_ratios(influences), sizes, target)


def allocate_as_run(influences: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """The same as the study's code has it: scaled, then clipped to [0, 1]; the mean may fall short of the target."""
    ratios = study_ratios(influences)
    factor = target * sum(sizes) / (sum(ratio * size for ratio, size in zip(ratios, sizes, strict=True)) + TINY)
    return [min(max(factor * ratio, 0.0), 1.0) for ratio in ratios]


def measure(subject: Subject, calibration: Calibration | None) -> Measured:
    """For LayerIF in the seed study's form: attention and MLP apart, identity in place of the Hessian."""
    assert calibration is not None
    kinds = {linear.kind for linears in subject.linears for linear in linears}
    return influences(subject, calibration, [part for part in PARTS if part in kinds], identity)


DECLARATION = Allocation(
    name="layerif",
    source="Askari et al. 2025, arXiv:2505.23811, as in arXiv:2604.25098",
    description="attention and MLP with more influence lose less, as in the study's code; identity Hessian",
    allocate=lambda scores, sizes, recipe: allocate_study(scores, sizes, recipe.sparsity),
    measure=measure,
    needs="gradients",
    score="influence",
    apart=True,
    options=(
        Option("influence_train", int, 300, "training sequences, sampled like the calibration sequences.", at_least=1),
        Option("influence_validation", int, 96, "sequences of the validation loss.", at_least=1),
    ),
    as_run=lambda scores, sizes, recipe: allocate_as_run(scores, sizes, recipe.sparsity),
)
