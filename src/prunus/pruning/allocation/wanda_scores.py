"""The mean, median and share of outliers of a block's Wanda scores, on which OWL and DLP are based.

Shapes: O output features, R rows of a slice, I input features.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from prunus.errors import PrunusError
from prunus.pruning.allocation.importance_scores import WHOLE
from prunus.pruning.allocation.measurement import Measured, Subject, blocks_with_inputs
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.methods import wanda

# Scores are computed for about this many weights at a time.
SLICE = 1 << 24


def wanda_scores(subject: Subject, calibration: Calibration | None) -> Measured:
    """Statistics of each block's Wanda scores, in details: mean, median and outliers, with one number per block.

    median is empty unless the recipe asks for it. outliers: the share, in percent, of scores above outlier_threshold
    times the mean. This takes one dense pass over the calibration tokens, or none with saved statistics. The scores of
    a block are computed twice and never stored together. Raises PrunusError if all scores of a block are 0.
    """
    means, medians, outliers = [], [], []
    for index, weights, inputs in blocks_with_inputs(subject, calibration):
        scores = [(weights[n], inputs[n].norm_I) for n in subject.names(index)]
        size = sum(weight_OI.numel() for weight_OI, _ in scores)
        mean = sum(part.sum(dtype=torch.float64).item() for part in slices(scores)) / size
        if not mean > 0:
            raise PrunusError(f"block {index}: all Wanda scores are 0 on this calibration text; try another")
        above = sum(int((part > subject.recipe.outlier_threshold * mean).sum()) for part in slices(scores))
        means.append(mean)
        if subject.recipe.statistic == "median":
            medians.append(median_of(lambda scores=scores: slices(scores), size))
        outliers.append(100 * above / size)
    details = {"mean": means, "median": medians, "outliers": outliers}
    return Measured({WHOLE: []}, details, calibration.warnings if calibration else [])


def median_of(parts: Callable[[], Iterator[Tensor]], size: int) -> float:
    """The median (the lower of two) of non-negative float32 numbers that are never stored together.

    Bit patterns of such numbers have the order of their values: a first pass makes a histogram of their upper halves,
    and a second one collects the numbers in the bin of the median.
    """
    place = (size - 1) // 2
    counts = torch.zeros(1 << 15, dtype=torch.long)
    for part in parts():
        counts += torch.bincount((part.flatten().view(torch.int32) >> 16).cpu(), minlength=1 << 15)
    upper = int(torch.searchsorted(counts.cumsum(0), place, right=True))
    below = int(counts[:upper].sum())
    near = [part[part.view(torch.int32) >> 16 == upper].cpu() for part in parts()]
    return torch.cat(near).sort().values[place - below].item()


def slices(scores: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """Yield the Wanda scores of (weight_OI, norm_I) pairs, some rows at a time."""
    for weight_OI, norm_I in scores:
        for part_RI in weight_OI.split(max(1, SLICE // weight_OI.shape[1])):
            yield wanda.score(part_RI, norm_I)
