"""Depth methods, one file each: a model and calibration tokens -> which blocks stay, and what they are made of."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from prunus.pruning.depth import angular, laco, shortgpt, sleb, tail
from prunus.pruning.depth.choice import Calibrated, Choice
from prunus.recipes import DepthMethodName


class DepthMethod(NamedTuple):
    """choose(model, count) -> the blocks that stay when count go. needs_data: whether it looks at tokens."""

    choose: Callable[[Calibrated, int], Choice]
    needs_data: bool
    source: str
    description: str


DEPTH_METHODS: Mapping[DepthMethodName, DepthMethod] = MappingProxyType(
    {
        "shortgpt": DepthMethod(
            shortgpt.choose,
            needs_data=True,
            source="Men et al. 2024, arXiv:2403.03853",
            description="remove the blocks that turn the hidden states least (Block Influence)",
        ),
        "angular": DepthMethod(
            angular.choose,
            needs_data=True,
            source="Gromov et al. 2024, arXiv:2403.17887",
            description="remove the run of neighbouring blocks across which the last token turns least",
        ),
        "tail": DepthMethod(
            tail.choose,
            needs_data=False,
            source="baseline",
            description="remove the last blocks",
        ),
        "laco": DepthMethod(
            laco.choose,
            needs_data=True,
            source="Yang et al. 2024, arXiv:2402.11187",
            description="fold blocks into the one before them while the last hidden states stay alike",
        ),
        "sleb": DepthMethod(
            sleb.choose,
            needs_data=True,
            source="Song et al. 2024, arXiv:2402.09025",
            description="remove one block after the other, each time the one whose absence costs the least likelihood",
        ),
    }
)
