"""DLP: a block whose Wanda scores are large in the middle is pruned more. arXiv:2505.23807.

The paper takes the median of a block's scores, the public code for unstructured sparsity their mean, as we do.
"""

from collections.abc import Sequence

from prunus.declarations import Allocation, Option
from prunus.pruning.allocation.arithmetic import more_kept, spread_of
from prunus.pruning.allocation.importance_scores import WHOLE
from prunus.pruning.allocation.measurement import Measured, Subject
from prunus.pruning.allocation.wanda_scores import wanda_scores
from prunus.pruning.calibration.data import Calibration


def allocate(centres: Sequence[float], sizes: Sequence[int], target: float, spread: float = 0.15) -> list[float]:
    """Sparsity of each block from the mean of its Wanda scores. spread: the paper's alpha, half of the range."""
    total = sum(centres)
    return more_kept([1 - centre / total if total else 0.0 for centre in centres], sizes, target, spread)


def measure(subject: Subject, calibration: Calibration | None) -> Measured:
    """The mean of every block's Wanda scores, or their median."""
    measured = wanda_scores(subject, calibration)
    return measured._replace(scores={WHOLE: measured.details[subject.recipe.statistic]})


DECLARATION = Allocation(
    name="dlp",
    source="Chen et al. 2025, arXiv:2505.23807",
    description="blocks with larger central Wanda scores lose more",
    allocate=lambda scores, sizes, recipe: allocate(scores, sizes, recipe.sparsity, spread_of("dlp", recipe)),
    measure=measure,
    needs="norms",
    score="central Wanda score",
    options=(
        Option("spread", float, None, "how far apart sparsities may get.", at_least=0, below=0.5, usual=0.15),
        Option("statistic", str, "mean", "statistic of a block's Wanda scores.", choices=("mean", "median")),
    ),
    settings=("statistic",),
)
