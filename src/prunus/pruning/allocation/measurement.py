"""Measuring a model for an allocation: the model and settings, the result, and one dense pass over all blocks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.loader import blocks_on
from prunus.checkpoint.runner import Runner
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.allocation.importance_scores import WHOLE
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import HiddenStates
from prunus.pruning.calibration.propagation import BlockRun, dense
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.methods import wanda
from prunus.recipes import PruneRecipe


class Measured(NamedTuple):
    """scores: for each group a list with one number per block. details: further lists, for information only."""

    scores: dict[str, list[float]]
    details: Mapping[str, list[Any]]
    warnings: list[str]


class Subject(NamedTuple):
    """The model to measure, and how.

    linears: the Linears in scope, by block. saved(index): input statistics of a block's Linears that were saved before;
    None if the model must be run. file: for hidden states while it runs; None keeps them in memory.
    """

    source: Checkpoint
    recipe: PruneRecipe
    linears: Sequence[Sequence[Linear]]
    runner: Runner
    saved: Callable[[int], Mapping[str, InputStats]] | None = None
    file: Path | None = None

    def names(self, index: int, part: str = WHOLE) -> list[str]:
        """Names within block `index` of its Linears in scope, or of those in one part of it."""
        return [linear.name for linear in self.linears[index] if part in (WHOLE, linear.kind)]


def blocks_with_inputs(
    subject: Subject, calibration: Calibration | None
) -> Iterator[tuple[int, dict[str, Tensor], Mapping[str, InputStats]]]:
    """Yield (index, weights, input statistics) of every block, both by Linear; saved, or from one dense pass."""
    source, saved, device = subject.source, subject.saved, subject.runner.device
    if saved is None:
        assert calibration is not None
        yield from dense_pass(subject, calibration)
        return
    for index, tensors in enumerate(blocks_on(source, range(source.blocks), device)):
        yield index, {name: tensors[f"{name}.weight"].to(device) for name in subject.names(index)}, saved(index)


def dense_pass(
    subject: Subject, calibration: Calibration
) -> Iterator[tuple[int, dict[str, Tensor], Mapping[str, InputStats]]]:
    """Yield (index, weights, input statistics) of every block, both by Linear, from one pass of the dense model."""
    weights = calibration.token_weights(subject.recipe) if subject.recipe.weighted else None
    source, runner = subject.source, subject.runner
    hidden = HiddenStates(runner, calibration.sequences, subject.file, token_weights=weights)
    with Steps("measuring", total=source.blocks, unit="blocks") as steps:
        blocks = blocks_on(source, range(source.blocks), runner.device)
        for index in range(source.blocks):
            block = runner.make_block(index, next(blocks))
            least = subject.recipe.min_expert_tokens
            run = BlockRun(runner, block, index, hidden, subject.linears[index], last=False, least_tokens=least)
            for stats in dense(run):  # one, since no Hessians are asked for
                names = subject.names(index)
                found: dict[str, Tensor] = {n: block.get_submodule(n).get_parameter("weight") for n in names}
                yield index, found, stats
            steps.advance()


# The mean, median and share of outliers of a block's Wanda scores, on which OWL and DLP are based.
# Shapes: O output features, R rows of a slice, I input features.

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
