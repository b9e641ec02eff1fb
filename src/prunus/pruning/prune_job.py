"""The job of pruning: a recipe that zeroes weights, with the model's Linears and what they need."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from prunus.checkpoint.linears import Linear
from prunus.declarations import Allocation, Method, declared
from prunus.pruning.calibration.hidden_states import BATCH_TOKENS
from prunus.pruning.job import Job
from prunus.pruning.masks import Target
from prunus.pruning.scope import weights_of
from prunus.recipes import PruneRecipe


@dataclass(frozen=True, kw_only=True)
class PruneJob(Job[PruneRecipe]):
    """A recipe that zeroes weights.

    linears: the Linears in scope, by block. Filled in before the first block: sparsities: (sparsity, extra zeros) that
    the method gets, by block and Linear; gradients: the folder with those of the loss, if the method uses them.
    """

    method: Method
    linears: list[list[Linear]]
    dtype: torch.dtype
    sparsities: Mapping[tuple[int, str], tuple[float, int]] = field(default_factory=dict)
    gradients: Path | None = None

    def zeros(self, index: int, linear: str) -> Target:
        """The zeros that one Linear of block `index` gets."""
        return target_of(self.recipe, *self.sparsities[index, linear])

    def identity(self) -> dict[str, object]:
        """As Job says; the fingerprint is enough, since each block is checked when it is read."""
        experts = any(linear.experts for linears in self.linears for linear in linears)
        revised = revisions(self.recipe) | ({"experts_revision": 2} if experts else {})  # they were left dense
        return {"source": self.source.fingerprint(), **revised}

    @property
    def is_calibrated(self) -> bool:
        """As Job says; an allocation may need it where the method does not."""
        return self.needs_tokens or self.measured == "norms"

    @property
    def needs_tokens(self) -> bool:
        """Whether calibration tokens run through the blocks while they are pruned."""
        return self.method.needs != "nothing" and self.saved is None

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
        return declared(Allocation)[self.recipe.allocation].needs if self.recipe.scores is None else "nothing"

    @property
    def disk(self) -> int:
        """Bytes of disk for the result and for temporary files.

        Gradients need space for the block inputs of one batch; more is used only if it is free.
        """
        recipe, hidden, width = self.recipe, 0, self.source.architecture.width
        measured = self.measured if self.saved is None else "nothing"
        if self.where.offload and (self.needs_tokens or measured == "norms"):
            hidden = recipe.tokens * (width + self.room_needed) * self.dtype.itemsize
        if self.where.offload and (measured == "gradients" or self.method.fisher):
            hidden = max(hidden, 4 * max(BATCH_TOKENS, recipe.seqlen) * (self.source.blocks + 2) * width)
        return self.source.nbytes + hidden


def revisions(recipe: PruneRecipe) -> dict[str, int]:
    """Revision numbers by the change that affects the recipe; empty if its result has never changed.

    They are in keys, so that results of an earlier version are not mistaken for today's.
    """
    measured = declared(Allocation)[recipe.allocation].needs if recipe.scores is None else "nothing"
    changed = {
        "layerif_revision": recipe.allocation == "layerif",  # its direction was reversed
        "influence_revision": measured == "gradients",  # token ids and traces were not truncated
        "reference_revision": recipe.rounding == "reference" and recipe.allocation != "uniform",  # counts have changed
    }
    return {name: 2 for name, applies in changed.items() if applies}


def target_of(recipe: PruneRecipe, sparsity: float, extra_zeros: int = 0) -> Target:
    """The target of a Linear. Ties are removed if rounding is `reference` and the method's own code removes them."""
    ties = declared(Method)[recipe.method].group == "tensor" and recipe.allocation == "uniform"
    return Target(sparsity, recipe.rounding, recipe.groups, recipe.group, ties, extra_zeros)
