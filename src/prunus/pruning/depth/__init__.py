"""Depth methods, one file each: what a block does to the hidden states -> how much it is needed."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from prunus.pruning.depth import shortgpt
from prunus.recipes import DepthMethodName


class DepthMethod(NamedTuple):
    """score(before_NTD, after_NTD) -> (N, T): how much each token needs the block; low means it can go."""

    score: Callable[[Tensor, Tensor], Tensor]
    source: str
    description: str


DEPTH_METHODS: Mapping[DepthMethodName, DepthMethod] = MappingProxyType(
    {
        "shortgpt": DepthMethod(
            shortgpt.block_influence,
            source="Men et al. 2024, arXiv:2403.03853",
            description="remove the blocks that turn the hidden states least (Block Influence)",
        ),
    }
)
