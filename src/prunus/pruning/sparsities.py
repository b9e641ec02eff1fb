"""What an allocation comes to: the sparsity of every group of weights, before rounding to numbers of weights."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from prunus.checkpoint.linears import Linear
from prunus.pruning.allocation.importance_scores import WHOLE

Group = tuple[int, str]  # index of a block, and `block`, `attention` or `mlp`


class Sparsities(NamedTuple):
    """groups: the sparsity of each group. warnings: one for each limit that sparsities reached.

    experts: the sparsity of each routed expert, by block, module and number, where they differ (expert_sparsities.py).
    """

    groups: Mapping[Group, float]
    warnings: list[str]
    experts: Mapping[tuple[int, str, int], float] = MappingProxyType({})

    def of(self, index: int, linear: Linear) -> float:
        """Sparsity of one Linear of block `index`, before rounding to a number of weights."""
        if linear.expert is not None and (own := self.experts.get((index, *linear.expert))) is not None:
            return own
        whole = self.groups.get((index, WHOLE))
        return self.groups[index, linear.kind] if whole is None else whole

    def of_experts(self, index: int) -> dict[str, list[float]]:
        """The sparsities of the experts of each module of block `index`, where they differ."""
        found: dict[str, list[float]] = {}
        for (block, module, _), share in self.experts.items():
            if block == index:
                found.setdefault(module, []).append(share)
        return found
