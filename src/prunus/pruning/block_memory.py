"""Whether the largest block of a model fits in memory, checked before any work is done."""

import torch

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.pruning.calibration.memory_budget import free_memory


def check_block_fits(source: Checkpoint, dtype: torch.dtype) -> None:
    """Raise PrunusError where the largest block alone, as it runs in dtype, takes more memory than is free."""
    blocks = (source.block_tensors(index).values() for index in range(source.blocks))
    largest = max(sum(stored.elements for stored in block) for block in blocks) * dtype.itemsize
    if largest > (free := free_memory()):
        raise PrunusError(
            f"{source.folder}: its largest block takes {largest / 1e9:.3g} GB of memory in"
            f" {str(dtype).removeprefix('torch.')}, and {free / 1e9:.3g} GB are free; end other programs, or take a"
            " narrower --dtype or a machine with more"
        )
