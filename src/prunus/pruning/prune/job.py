"""The job of pruning, and measurements that several variants of a model share.

Shared ones are stored in a folder under a hash of all they depend on.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.resolve import typed_path
from prunus.disk import locked
from prunus.plain_data import content_hash
from prunus.pruning.calibration import TRACES, calibration_name
from prunus.pruning.calibration.hidden_states import BATCH_TOKENS
from prunus.pruning.job import StepJob
from prunus.pruning.masks import Target
from prunus.pruning.scope import weights_of
from prunus.recipes import PruneRecipe
from prunus.recipes.declarations import Allocation, Method, declared
from prunus.version import versions


@dataclass(frozen=True, kw_only=True)
class PruneJob(StepJob[PruneRecipe]):
    """A recipe that zeroes weights.

    linears: the Linears in scope, by block. Filled in before the first block: sparsities: (sparsity, extra zeros) that
    the method gets, by block and Linear.
    """

    method: Method
    linears: list[list[Linear]]
    dtype: torch.dtype
    sparsities: Mapping[tuple[int, str], tuple[float, int]] = field(default_factory=dict)

    def zeros(self, index: int, linear: str) -> Target:
        """The zeros that a Linear of block `index` gets."""
        return target_of(self.recipe, *self.sparsities[index, linear])

    def identity(self) -> dict[str, str]:
        """Fingerprint of the source, which is enough, since each block is checked when it is read."""
        return {"source": self.source.fingerprint()}

    @property
    def is_calibrated(self) -> bool:
        """Whether the method or the allocation measures something on the calibration tokens."""
        return self.needs_tokens or self.recipe.measured == "norms"

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
    def disk(self) -> int:
        """Bytes of disk for the result and for temporary files.

        Gradients need space for the block inputs of a batch; more is used only if it is free.
        """
        recipe, hidden, width = self.recipe, 0, self.source.architecture.width
        measured = recipe.measured if self.saved is None else "nothing"
        if self.options.offload and (self.needs_tokens or measured == "norms"):
            hidden = recipe.tokens * (width + self.room_needed) * self.dtype.itemsize
        if self.options.offload and measured == "gradients":
            hidden = max(hidden, 4 * max(BATCH_TOKENS, recipe.seqlen) * (self.source.blocks + 2) * width)
        return self.source.nbytes + hidden


def target_of(recipe: PruneRecipe, sparsity: float, extra_zeros: int = 0) -> Target:
    """The target of a Linear. Ties are removed if rounding is `reference` and the method's own code removes them."""
    ties = declared(Method)[recipe.method].group == "tensor" and recipe.allocation == "uniform"
    return Target(sparsity, recipe.rounding, recipe.groups, recipe.group, ties, extra_zeros)


# Fields of a recipe on which importance scores may depend, besides the options of the allocation.
SCORED = ("scope", "sequences", "seqlen", "calibration_tokens", "seed", "dtype")


@contextmanager
def once(folder: Path, key: str) -> Iterator[Path]:
    """The path of a measurement, locked: if it does not exist, the caller creates it while other processes wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{key}.lock"):
        yield folder / key


def key_of(kind: str, source: Checkpoint, device: torch.device, **about: object) -> str:
    """The key of a measurement: a hash of all that it depends on."""
    return f"{kind}-" + content_hash(
        {"source": source.checksum(), "device": device.type, "versions": versions(), **about}
    )


def scores_key(source: Checkpoint, recipe: PruneRecipe, device: torch.device) -> str:
    """The key of an allocation's importance scores. Method, sparsity and other later settings are not part of it."""
    name = calibration_name(recipe.calibration, source.manifest)
    file = typed_path(name.removeprefix(TRACES))
    allocation = declared(Allocation)[recipe.allocation]
    fields = (*SCORED, *allocation.settings, *allocation.sampling)
    return key_of(
        "evidence",
        source,
        device,
        allocation=recipe.allocation,
        calibration=hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else name,
        recipe={field: value for field, value in recipe.to_json().items() if field in fields},
    )
