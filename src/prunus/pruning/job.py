"""What the loop over blocks needs to know: method, passes, Linears, device, targets and disk space."""

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
    """A recipe applied to a checkpoint. linears: of each block those in scope."""

    source: Checkpoint
    recipe: PruneRecipe
    method: Method
    passes: tuple[Pass, ...]
    linears: list[list[Linear]]
    device: torch.device
    dtype: torch.dtype
    # Statistics saved beforehand; whether hidden states are kept in a file; a folder of what variants measure once.
    stats: SavedStats | None = None
    offload: bool = False
    shared: Path | None = None
    # Sparsity that the method is asked for, and in how many rows one weight more, by block and Linear: known once the
    # allocation has its scores.
    sparsities: Mapping[tuple[int, str], tuple[float, int]] = MappingProxyType({})

    def hidden_file(self, partial: Partial) -> Path | None:
        """Where hidden states are kept; None: in memory."""
        return partial.folder / HIDDEN if self.offload else None

    def target(self, index: int, linear: str) -> Target:
        """How much one Linear is to lose."""
        sparsity, more = self.sparsities[index, linear]
        return target_of(self.recipe, sparsity)._replace(more=more)

    @property
    def needs_tokens(self) -> bool:
        """Whether calibration tokens run through the blocks while they are pruned."""
        return bool(self.passes) or (self.method.needs != "nothing" and self.stats is None)

    @property
    def weights(self) -> int:
        """How many weights the recipe's sparsity is a share of."""
        return sum(map(weights_of, self.linears))

    @property
    def room_needed(self) -> int:
        """Numbers per token kept besides hidden states: with true_sequential, the widest input of a Linear."""
        if self.recipe.propagation != "true_sequential":
            return 0
        linears = (linear for index in range(self.source.blocks) for linear in self.source.linears(index))
        return max(linear.shape_OI[1] for linear in linears)

    @property
    def measured(self) -> str:
        """What the allocation's scores are measured from in this run."""
        return ALLOCATIONS[self.recipe.allocation].needs if self.recipe.scores is None else "nothing"

    @property
    def disk(self) -> int:
        """Bytes of disk for the result and for what is kept there meanwhile.

        Gradients take no more of the disk for what blocks read than is free, but room for one batch.
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
    """The job of a recipe; PrunusError where model, recipe or statistics do not fit each other."""
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


def target_of(recipe: PruneRecipe, sparsity: float) -> Target:
    """What a Linear of a recipe is to lose. Ties go with rounding `reference` where a method's own code has it so."""
    ties = METHODS[recipe.method].group == "tensor" and recipe.allocation == "uniform"
    return Target(sparsity, recipe.rounding, recipe.groups, recipe.group, ties)


def name_of(recipe: PruneRecipe) -> str:
    """The method, and which of its options were set, for messages."""
    names = [option.name for option in METHODS[recipe.method].options]
    chosen = [name for name in names if getattr(recipe, name) != getattr(PruneRecipe, name)]
    return f"{recipe.method} with {', '.join(chosen)}" if chosen else recipe.method
