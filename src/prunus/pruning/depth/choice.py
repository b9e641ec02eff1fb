"""Types that depth methods share: the model with its calibration tokens, a dense pass over its blocks, and the choice.

Shapes: N sequences, T tokens, W numbers per token between two blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import shares_state
from prunus.checkpoint.runner import Runner
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.calibration.hidden_states import HiddenStates, finite
from prunus.recipes import DropRecipe


class Mix(NamedTuple):
    """A block of the result, made from blocks of the source.

    base: the block of the source whose norms, biases and other tensors it has. parts: (block, factor) in ascending
    order; its Linear weights are the sum of factor times that block's Linear weights.
    """

    base: int
    parts: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, index: int) -> "Mix":
        """An unchanged copy of block `index`."""
        return cls(index, ((index, 1.0),))

    @property
    def is_copy(self) -> bool:
        """Whether the block is an unchanged copy of its base."""
        return self == Mix.of(self.base)

    def tensors(self, source: Checkpoint) -> dict[str, Tensor]:
        """The block's tensors, by their names within the block; weights are summed in float32."""
        tensors = source.read_block(self.base)
        if self.is_copy:
            return tensors
        for name in (f"{linear.name}.weight" for linear in source.linears(self.base) if not linear.experts):
            total_OI = torch.zeros_like(tensors[name], dtype=torch.float32)
            for index, factor in self.parts:
                total_OI += factor * source.read_weight(index, name).float()
            tensors[name] = total_OI.to(tensors[name].dtype)
        return tensors


class KeptBlocks(NamedTuple):
    """The decision of a depth method: the blocks of the result in order, scores (defined in its file) and warnings."""

    kept: list[Mix]
    scores: list[float]
    warnings: list[str]

    @classmethod
    def without(cls, removed: Sequence[int], blocks: int, scores: Sequence[float]) -> "KeptBlocks":
        """The choice of all blocks but the removed ones, unchanged. blocks: number of blocks of the source."""
        return cls([Mix.of(index) for index in range(blocks) if index not in removed], list(scores), [])

    def removed(self, blocks: int) -> list[int]:
        """Indices of the source's blocks that the result no longer has."""
        kept = {mix.base for mix in self.kept}
        return [index for index in range(blocks) if index not in kept]

    @classmethod
    def restored(
        cls, kept: Sequence[tuple[int, Sequence[tuple[int, float]]]], scores: list[float], warnings: list[str]
    ) -> "KeptBlocks":
        """The choice with these fields, in which JSON has made lists of all tuples."""
        return cls([Mix(base, tuple((n, factor) for n, factor in parts)) for base, parts in kept], scores, warnings)


@dataclass
class DepthInputs:
    """A model, a recipe and calibration sequences on a device: the input of a depth method."""

    source: Checkpoint
    recipe: DropRecipe
    sequences: Sequence[list[int]]
    device: torch.device
    runner: Runner = field(init=False)

    def __post_init__(self) -> None:
        self.runner = Runner(self.source, self.source.dtype, self.device)

    def check_independent(self, method: str) -> None:
        """Raise PrunusError if blocks cannot be left out in a trial, as later blocks read more than hidden states."""
        if shares_state(self.runner.architecture):
            raise PrunusError(
                f"{method} runs the model without some blocks, but in this model ({self.source.config.model_type}) "
                "blocks read state that earlier ones store; use shortgpt, angular, tail or --blocks by index"
            )

    def embedded(self) -> HiddenStates:
        """Hidden states at the input of the first block, for all tokens."""
        return HiddenStates(self.runner, self.sequences, None)

    def block(self, mix: Mix) -> nn.Module:
        """The block as a module that can be run; it is read anew, which takes little of the time of a pass."""
        return self.runner.make_block(mix.base, mix.tensors(self.source))

    def walk(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (block's index, its input (N, T, W), its output) for every block and batch, in a dense pass.

        Inputs share memory with the next block's, so copy what is kept. If an output is not finite, PrunusError names
        the block.
        """
        hidden = self.embedded()
        with Steps("scoring", total=self.source.blocks, unit="blocks") as steps:
            for index in range(self.source.blocks):
                block = self.block(Mix.of(index))
                for batch, rows_NTW, before_NTW in hidden.batches_on(self.device):
                    after_NTW = finite(self.runner.run_block(block, before_NTW, batch), index)
                    yield index, before_NTW, after_NTW
                    rows_NTW.copy_(after_NTW)
                steps.advance()
