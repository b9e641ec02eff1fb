"""Recipe of `drop`."""

from dataclasses import dataclass

from prunus.errors import PrunusError
from prunus.recipes.base import DECLARED, Calibrated, with_options
from prunus.recipes.declarations import DepthMethod, declared
from prunus.settings import Conflict, setting


@dataclass(frozen=True)
@with_options(declared(DepthMethod))
class DropRecipe(Calibrated):
    """Which decoder blocks to remove. Where `blocks` names their indices, method and calibration are ignored."""

    method: str = setting("shortgpt", "How blocks are chosen.", choices=tuple(declared(DepthMethod)))
    blocks: str | None = setting(None, "Number of blocks (2; default 1), or their indices from 0 (16,17 or 16,).")
    match_sparsity: float | None = setting(
        None,
        "Instead the number nearest to this share of weights, in (0, 1).",
        above=0,
        below=1,
        conflicts=(
            Conflict("blocks", None, "--blocks and --match-sparsity both set the number of blocks; give one of them"),
        ),
    )
    merge: int = DECLARED
    threshold: float = DECLARED
    interval: int = DECLARED

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options("method", declared(DepthMethod))
        if self.blocks is None:
            return
        parts = [part.strip() for part in self.blocks.split(",") if part.strip()]
        if not parts or not all(part.isdecimal() for part in parts):
            raise PrunusError(f"blocks '{self.blocks}' is neither a number of blocks (2) nor a list of indices (16,17)")
        if self.indices is None and int(parts[0]) < 1:
            raise PrunusError("blocks must be at least 1; to remove block 0 by index write '0,'")

    @property
    def indices(self) -> tuple[int, ...] | None:
        """The sorted indices of the blocks to remove if the recipe names them, else None."""
        if self.blocks is None or "," not in self.blocks:
            return None
        return tuple(sorted({int(part) for part in self.blocks.split(",") if part.strip()}))

    def count(self, blocks: int) -> int:
        """How many of `blocks` equal blocks are removed.

        Raises PrunusError where match_sparsity is nearest to none or to all of them.
        """
        if self.match_sparsity is None:
            return len(self.indices) if self.indices is not None else int(self.blocks or 1)
        count = int(self.match_sparsity * blocks + 0.5)
        if not 0 < count < blocks:
            raise PrunusError(
                f"match_sparsity {self.match_sparsity} is nearest to {count} of {blocks} blocks; "
                f"one block is {1 / blocks:.3f} of them"
            )
        return count
