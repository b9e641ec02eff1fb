"""LayerIF as in its paper: blocks with more influence are pruned more.

Askari et al. 2025, arXiv:2505.23811, section 3.4. Influences use DataInf's Hessian (arXiv:2310.00902) on sketched
gradients. layerif.py describes how the study's version differs.
"""

from collections.abc import Sequence

from prunus.declarations import Allocation, Option
from prunus.pruning.allocation.alphapruning import ratios
from prunus.pruning.allocation.arithmetic import normalised, scaled, spread_of
from prunus.pruning.allocation.importance_scores import WHOLE
from prunus.pruning.allocation.influence import datainf, influences, own_calibration
from prunus.pruning.allocation.layerif import smoothed
from prunus.pruning.allocation.measurement import Measured, Subject
from prunus.pruning.calibration.data import Calibration


def allocate(influences: Sequence[float], sizes: Sequence[int], target: float, spread: float = 0.3) -> list[float]:
    """Sparsity of each block from its summed positive influence. spread: the paper's epsilon, there 0.1 to 0.5."""
    shares = smoothed(normalised([abs(value) for value in influences]), window=7, order=3)
    return scaled(ratios(normalised(shares), spread), sizes, target)


def measure(subject: Subject, calibration: Calibration | None) -> Measured:
    """Influences of every block, with DataInf's Hessian."""
    assert calibration is not None
    return influences(subject, calibration, [WHOLE], datainf)


DECLARATION = Allocation(
    name="layerif-sketch",
    source="Askari et al. 2025, arXiv:2505.23811; DataInf, arXiv:2310.00902",
    description="blocks with more influence lose more, as in the paper; DataInf on sketched gradients",
    allocate=lambda scores, sizes, recipe: allocate(
        scores, sizes, recipe.sparsity, spread_of("layerif-sketch", recipe)
    ),
    measure=measure,
    needs="gradients",
    score="influence",
    options=(
        Option("spread", float, None, "how far apart sparsities may get.", at_least=0, below=1, usual=0.3),
        Option("influence_train", int, 300, "training sequences, sampled like the calibration sequences.", at_least=1),
        Option("influence_validation", int, 96, "sequences of the validation loss.", at_least=1),
    ),
    calibration=own_calibration,
    sampling=("influence_train", "influence_validation"),
)
