"""Which experts are kept, from a criterion's scores: the same number in each block, or the best of all blocks.

With the same scores, the experts that a smaller share keeps are among those that a larger one keeps.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunus.pruning.experts import CRITERIA
from prunus.pruning.experts.mixture import Mixture
from prunus.pruning.experts.seen import Seen
from prunus.recipes import ExpertsRecipe


class Choice(NamedTuple):
    """The experts that are kept, ascending, and the scores of all experts, by block; tokens: how many each one had."""

    kept: dict[int, list[int]]
    scores: dict[int, list[float]]
    tokens: dict[int, list[int]]
    warnings: list[str]

    def removed(self, mixtures: Sequence[Mixture]) -> dict[int, list[int]]:
        """The experts that are removed, by block."""
        return {m.index: sorted(set(range(m.count)) - set(self.kept[m.index])) for m in mixtures}

    def to_json(self) -> dict[str, object]:
        """The choice as JSON data."""
        tables = {name: {str(n): row for n, row in getattr(self, name).items()} for name in self._fields[:3]}
        return {**tables, "warnings": self.warnings}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Choice":
        """The inverse of to_json."""
        kept, scores, tokens = ({int(n): row for n, row in data[name].items()} for name in cls._fields[:3])
        return cls(kept, scores, tokens, data["warnings"])


def choose(recipe: ExpertsRecipe, mixtures: Sequence[Mixture], seen: Sequence[Seen]) -> Choice:
    """The experts that a recipe keeps. Raises Unremovable where too few would be left in a block."""
    criterion = CRITERIA[recipe.method]
    scores = [criterion.score(one) for one in seen]
    counts = kept_counts(recipe, mixtures, scores)
    kept: dict[int, list[int]] = {}
    for mixture, one, score_E, count in zip(mixtures, seen, scores, counts, strict=True):
        mixture.check(count)
        by_set = criterion.keep is not None and recipe.spread == "uniform"
        kept[mixture.index] = (
            criterion.keep(one, count) if by_set and criterion.keep else best(score_E, count, mixture.groups)
        )
    return Choice(
        kept,
        {one.index: row.tolist() for one, row in zip(seen, scores, strict=True)},
        {one.index: one.token_E.tolist() for one in seen},
        unmet(seen) if criterion.needs != "nothing" else [],
    )


def kept_counts(recipe: ExpertsRecipe, mixtures: Sequence[Mixture], scores: Sequence[Tensor]) -> list[int]:
    """How many experts each block keeps."""
    if recipe.spread == "uniform":
        return [recipe.count(mixture.count) for mixture in mixtures]
    total = sum(recipe.count(mixture.count) for mixture in mixtures)
    # The best ones of each block are kept first, which makes the floor; then the best of the others of all blocks.
    places = [
        (rank >= mixture.top_k, -float(scores[number][expert]), number, expert)
        for number, mixture in enumerate(mixtures)
        for rank, expert in enumerate(scores[number].argsort(descending=True, stable=True).tolist())
    ]
    chosen = sorted(places)[:total]
    return [sum(place[2] == number for place in chosen) for number in range(len(mixtures))]


def best(score_E: Tensor, count: int, groups: int) -> list[int]:
    """The `count` experts with the highest scores, ascending, as many of each group; of equal ones the lower number."""
    size = len(score_E) // groups
    order_GE = score_E.view(groups, size).argsort(dim=1, descending=True, stable=True)[:, : count // groups]
    return sorted((order_GE + torch.arange(groups)[:, None] * size).flatten().tolist())


def unmet(seen: Sequence[Seen]) -> list[str]:
    """A warning for experts that no calibration token was sent to."""
    found = [(one.index, expert) for one in seen for expert in range(one.experts) if not one.token_E[expert]]
    if not found:
        return []
    block, expert = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return [f"no calibration token met expert {expert} of block {block}{more}, so the criterion cannot judge them"]
