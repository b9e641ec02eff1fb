"""Measuring a model for an allocation: what is measured, what comes back, and one pass over all blocks.

Shapes: N sequences, T tokens, O output features, I input features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from prunus.checkpoint.block_loader import blocks_on
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.runner import Runner
from prunus.progress import Steps
from prunus.pruning.allocation.importance_scores import WHOLE
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import HiddenStates, propagate
from prunus.pruning.calibration.statistics import InputStats, Observer
from prunus.recipes import PruneRecipe


class Measured(NamedTuple):
    """scores: per group one number per block; details: more, for people."""

    scores: dict[str, list[float]]
    details: dict[str, Any]
    warnings: list[str]


class Subject(NamedTuple):
    """What is measured. linears: of each block those in scope.

    saved: of a block's number, statistics of its Linears' inputs that were taken before, so that nothing has to be run.
    file: where hidden states are kept while it is run, None for memory.
    """

    source: Checkpoint
    recipe: PruneRecipe
    linears: Sequence[Sequence[Linear]]
    runner: Runner
    saved: Callable[[int], Mapping[str, InputStats]] | None = None
    file: Path | None = None

    def names(self, index: int, part: str = WHOLE) -> list[str]:
        """Names within a block of its Linears in scope, or of those of one part of it."""
        return [linear.name for linear in self.linears[index] if part in (WHOLE, linear.kind)]


def blocks_with_inputs(
    subject: Subject, calibration: Calibration | None
) -> Iterator[tuple[int, dict[str, Tensor], Mapping[str, InputStats]]]:
    """Of every block its number, weights and what is known of their inputs: saved, or seen in one dense pass."""
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
    """The same, seen in one pass of the unpruned model."""
    weights = calibration.token_weights(subject.recipe) if subject.recipe.weighted else None
    source, runner = subject.source, subject.runner
    hidden = HiddenStates(runner, calibration.sequences, subject.file, token_weights=weights)
    with Steps("measuring", total=source.blocks, unit="blocks") as steps:
        blocks = blocks_on(source, range(source.blocks), runner.device)
        for index in range(source.blocks):
            block = runner.make_block(index, next(blocks))
            with Observer(runner, block, subject.linears[index]) as seen:
                propagate(runner, block, hidden)
            names = subject.names(index)
            found: dict[str, Tensor] = {n: block.get_submodule(n).get_parameter("weight") for n in names}
            yield index, found, seen.stats(index)
            steps.advance()
