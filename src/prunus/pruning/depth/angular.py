"""Angular distance: remove the run of blocks across which the last token's hidden state turns least.

Gromov et al. 2024, arXiv:2403.17887. Shapes: B block boundaries (one more than blocks), N sequences, D hidden width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from prunus.pruning.depth.choice import DepthInputs, KeptBlocks


def choose(model: DepthInputs, count: int) -> KeptBlocks:
    """The model without `count` consecutive blocks. Scores: by first block of the run, the mean distance across it."""
    boundaries: list[list[Tensor]] = [[] for _ in range(model.source.blocks + 1)]
    for index, before_NTD, after_NTD in model.walk():
        if index == 0:
            boundaries[0].append(last_token(before_NTD))
        boundaries[index + 1].append(last_token(after_NTD))
    scores = distances(torch.stack([torch.cat(parts) for parts in boundaries]), count)
    first = min(range(len(scores)), key=scores.__getitem__)
    return KeptBlocks.without(range(first, first + count), model.source.blocks, scores)


def last_token(hidden_NTD: Tensor) -> Tensor:
    """(N, D) float32 hidden states of the last tokens, as a copy: walk() overwrites its batches."""
    return hidden_NTD[:, -1].to("cpu", torch.float32, copy=True)


def distances(state_BND: Tensor, count: int) -> list[float]:
    """Mean over sequences of arccos(cosine) / pi between boundaries l and l + count, for every l; 0 to 1."""
    cosine_BN = functional.cosine_similarity(state_BND[:-count].double(), state_BND[count:].double(), dim=-1)
    return (cosine_BN.clamp(-1, 1).arccos() / math.pi).mean(1).tolist()
