"""Measuring a model for an allocation: the model and settings, the result, and one dense pass over all blocks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.loader import blocks_on
from prunus.checkpoint.runner import Runner
from prunus.progress import Steps
from prunus.pruning.allocation.importance_scores import WHOLE
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import HiddenStates
from prunus.pruning.calibration.propagation import BlockRun, dense
from prunus.pruning.calibration.statistics import InputStats
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
