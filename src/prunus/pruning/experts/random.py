"""Random: a control. The order of the experts follows from the seed and the block alone, so keeps are nested."""

import torch
from torch import Tensor

from prunus.pruning.experts.seen import Seen


def score(seen: Seen) -> Tensor:
    """(E,) random numbers in [0, 1)."""
    generator = torch.Generator().manual_seed(1_000_003 * seen.seed + seen.index)
    return torch.rand(seen.experts, generator=generator, dtype=torch.float64)
