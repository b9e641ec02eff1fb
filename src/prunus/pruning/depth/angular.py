"""Angular distance: drop the run of blocks across which the last token turns least. Gromov et al., arXiv:2403.17887.

Shapes: B block borders (one more than blocks), N sequences, D hidden width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from prunus.declarations import DepthMethod
from prunus.pruning.depth.choice import Calibrated, Choice


def choose(model: Calibrated, count: int) -> Choice:
    """Drop count neighbouring blocks. Scores: for every possible first block, the mean distance across the run."""
    borders: list[list[Tensor]] = [[] for _ in range(model.source.blocks + 1)]
    for index, before_NTD, after_NTD in model.walk():
        if index == 0:
            borders[0].append(last_token(before_NTD))
        borders[index + 1].append(last_token(after_NTD))
    scores = distances(torch.stack([torch.cat(parts) for parts in borders]), count)
    first = min(range(len(scores)), key=scores.__getitem__)
    return Choice.without(range(first, first + count), model.source.blocks, scores)


def last_token(hidden_NTD: Tensor) -> Tensor:
    """(N, D) float32 in memory of its own: the walk goes on in the memory of its batches."""
    return hidden_NTD[:, -1].to("cpu", torch.float32, copy=True)


def distances(border_BND: Tensor, count: int) -> list[float]:
    """arccos(cosine) / pi between border l and border l + count, mean over sequences, for every l; 0 to 1."""
    cosine_BN = functional.cosine_similarity(border_BND[:-count].double(), border_BND[count:].double(), dim=-1)
    return (cosine_BN.clamp(-1, 1).arccos() / math.pi).mean(1).tolist()


DECLARATION = DepthMethod(
    name="angular",
    source="Gromov et al. 2024, arXiv:2403.17887",
    description="remove the run of neighbouring blocks across which the last token turns least",
    choose=choose,
)
