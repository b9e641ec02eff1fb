"""A job: a recipe applied to a checkpoint, with its method, passes, Linears, device, sparsities and disk space."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.runner import pick_device
from prunus.checkpoint.writer import HIDDEN, Partial, disk_needed
from prunus.declarations import Method
from prunus.errors import PrunusError
from prunus.pruning.allocation import ALLOCATIONS
from prunus.pruning.calibration.hidden_states import BATCH_TOKENS
from prunus.pruning.calibration.memory_budget import check_block_fits
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.pruning.masks import Target
from prunus.pruning.methods import METHODS, find_method
from prunus.pruning.passes import Pass
from prunus.pruning.scope import linears_in_scope, weights_of
from prunus.recipes import PruneRecipe


class Job(NamedTuple):
    """A recipe applied to a checkpoint.

    linears: the Linears in scope, by block. stats: input statistics saved beforehand. offload: whether hidden states
    are in a file. shared: folder of measurements that the variants of a study share. sparsities: (sparsity, extra
    zeros) that the method gets, by block and Linear; filled in once the allocation has its scores.
    """

    source: Checkpoint
    recipe: PruneRecipe
    method: Method
    passes: tuple[Pass, ...]
    linears: list[list[Linear]]
    device: torch.device
    dtype: torch.dtype
    stats: SavedStats | None = None
    offload: bool = False
    shared: Path | None = None
    sparsities: Mapping[tuple[int, str], tuple[float, int]] = MappingProxyType({})

    def hidden_file(self, partial: Partial) -> Path | None:
        """The file for hidden states; None keeps them in memory."""
        return partial.folder / HIDDEN if self.offload else None

    def target(self, index: int, linear: str) -> Target:
        """The zeros that one Linear of block `index` gets."""
        return target_of(self.recipe, *self.sparsities[index, linear])

    @property
    def needs_tokens(self) -> bool:
        """Whether calibration tokens run through the blocks while they are pruned."""
        return bool(self.passes) or (self.method.needs != "nothing" and self.stats is None)

    @property
    def weights(self) -> int:
        """Number of weights in scope, of which the recipe's sparsity is a share."""
        return sum(map(weights_of, self.linears))

    @property
    def room_needed(self) -> int:
        """Numbers per token kept in addition to hidden states: with true_sequential, the widest input of a Linear."""
        if self.recipe.propagation != "true_sequential":
            return 0
        linears = (linear for index in range(self.source.blocks) for linear in self.source.linears(index))
        return max(linear.shape_OI[1] for linear in linears)

    @property
    def measured(self) -> str:
        """What this run measures the allocation's scores from; `nothing` if the recipe holds the scores."""
        return ALLOCATIONS[self.recipe.allocation].needs if self.recipe.scores is None else "nothing"

    @property
    def disk(self) -> int:
        """Bytes of disk for the result and for temporary files.

        Gradients need space for the block inputs of one batch; more is used only if it is free.
        """
        recipe, hidden, width = self.recipe, 0, self.source.architecture.width
        measured = self.measured if self.stats is None else "nothing"
        if self.offload and (self.needs_tokens or measured == "norms"):
            hidden = recipe.samples * recipe.seqlen * (width + self.room_needed) * self.dtype.itemsize
        if self.offload and (measured == "gradients" or any(one.whole_model for one in self.passes)):
            hidden = max(hidden, 4 * max(BATCH_TOKENS, recipe.seqlen) * (self.source.blocks + 2) * width)
        return disk_needed(self.source.nbytes) + hidden + sum(one.disk(self) for one in self.passes)


def make_job(
    source: Checkpoint, recipe: PruneRecipe, device: str, offload: bool, stats: str | Path | None, shared: Path | None
) -> Job:
    """The job of a recipe; raises PrunusError if model, recipe and statistics do not fit each other."""
    linears = linears_in_scope(source, recipe)
    dtype = source.dtype if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    check_block_fits(source, dtype)
    method = find_method(recipe)
    passes = tuple(make() for make in method.passes)
    saved = None
    if stats is not None:
        if passes:
            raise PrunusError(f"{stats} holds no {passes[0].needs}, which {name_of(recipe)} needs; leave --stats out")
        saved = SavedStats(stats, source)
        saved.check(recipe, method.needs, ALLOCATIONS[recipe.allocation].needs)
        recipe = saved.recipe(recipe)
    return Job(source, recipe, method, passes, linears, pick_device(device), dtype, saved, offload, shared)


def target_of(recipe: PruneRecipe, sparsity: float, extra_zeros: int = 0) -> Target:
    """The target of a Linear. Ties are removed if rounding is `reference` and the method's own code removes them."""
    ties = METHODS[recipe.method].group == "tensor" and recipe.allocation == "uniform"
    return Target(sparsity, recipe.rounding, recipe.groups, recipe.group, ties, extra_zeros)


def name_of(recipe: PruneRecipe) -> str:
    """The method and the options set for it, for messages."""
    names = [option.name for option in METHODS[recipe.method].options]
    chosen = [name for name in names if getattr(recipe, name) != getattr(PruneRecipe, name)]
    return f"{recipe.method} with {', '.join(chosen)}" if chosen else recipe.method
