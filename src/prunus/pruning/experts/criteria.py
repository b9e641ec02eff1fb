"""Criteria for experts: a score for each expert of a block from calibration statistics, and the choice of those kept.

Each block keeps the same share of its experts. With the same scores, the experts that a smaller share keeps are among
those that a larger share keeps. E: experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.plain_data import Record
from prunus.pruning.experts.mixtures import Mixture
from prunus.recipes import ExpertsRecipe
from prunus.recipes.declarations import Criterion, declared


@dataclass(frozen=True)
class RoutingSums:
    """Statistics of the experts of block `index`; sums are float64, over the tokens routed to each expert.

    token_E: number of tokens. norm_E: sum of the L2 norms of the expert's output. product_E: sum of these, each times
    the gate value with which the output is multiplied.
    """

    index: int
    token_E: Tensor
    norm_E: Tensor
    product_E: Tensor
    seed: int = 0


def ean(seen: RoutingSums) -> Tensor:
    """(E,) sum of the norms of the expert's output over its tokens.

    Expert activation norm, a criterion that Lasby et al. 2025 (arXiv:2510.13999) compare with.
    """
    return seen.norm_E


def frequency(seen: RoutingSums) -> Tensor:
    """(E,) number of tokens for which the router chooses the expert."""
    return seen.token_E.double()


def man(seen: RoutingSums) -> Tensor:
    """(E,) mean of the norms of the expert's output over its tokens; 0 for an expert without tokens.

    Mean activation norm: Liu et al. 2026, arXiv:2606.15716, for models that are to stay good at everything.
    """
    return seen.norm_E / seen.token_E.clamp(min=1)


def random(seen: RoutingSums) -> Tensor:
    """(E,) random numbers in [0, 1), a control. They follow from the seed and the block alone, so keeps are nested."""
    generator = torch.Generator().manual_seed(1_000_003 * seen.seed + seen.index)
    return torch.rand(len(seen.token_E), generator=generator, dtype=torch.float64)


def reap(seen: RoutingSums) -> Tensor:
    """(E,) mean of gate value times norm of the output; 0 for an expert without tokens.

    Router-weighted expert activation pruning: Lasby et al. 2025, arXiv:2510.13999. The gate value is the one with which
    the output is multiplied, whatever the router does before: renormalised where the model does so. (The authors' code
    took the softmax over all experts, until it was corrected in March 2026.)
    """
    return seen.product_E / seen.token_E.clamp(min=1)


SCORES = {"reap": reap, "ean": ean, "frequency": frequency, "man": man, "random": random}


class KeptExperts(Record):
    """The experts that are kept, ascending, and the scores of all experts, by block; tokens: how many each had."""

    kept: Mapping[int, Sequence[int]]
    scores: Mapping[int, Sequence[float]]
    tokens: Mapping[int, Sequence[int]]
    warnings: Sequence[str]

    def removed(self, mixtures: Sequence[Mixture]) -> dict[int, list[int]]:
        """The experts that are removed, by block."""
        return {m.index: sorted(set(range(m.count)) - set(self.kept[m.index])) for m in mixtures}


def choose_experts(recipe: ExpertsRecipe, mixtures: Sequence[Mixture], seen: Sequence[RoutingSums]) -> KeptExperts:
    """The experts that a recipe keeps. Raises Unremovable where too few would be left in a block."""
    scores = [SCORES[recipe.method](mixture) for mixture in seen]
    kept: dict[int, list[int]] = {}
    for mixture, score_E in zip(mixtures, scores, strict=True):
        count = recipe.count(mixture.count)
        mixture.check(count)
        kept[mixture.index] = best(score_E, count, mixture.groups)
    return KeptExperts(
        kept=kept,
        scores={mixture.index: row.tolist() for mixture, row in zip(seen, scores, strict=True)},
        tokens={mixture.index: mixture.token_E.tolist() for mixture in seen},
        warnings=warn_of_unused(seen) if declared(Criterion)[recipe.method].needs != "nothing" else [],
    )


def best(score_E: Tensor, count: int, groups: int) -> list[int]:
    """The `count` experts with the highest scores, ascending, as many of each group; of equal ones the lower number."""
    size = len(score_E) // groups
    order_GE = score_E.view(groups, size).argsort(dim=1, descending=True, stable=True)[:, : count // groups]
    return sorted((order_GE + torch.arange(groups)[:, None] * size).flatten().tolist())


def warn_of_unused(seen: Sequence[RoutingSums]) -> list[str]:
    """A warning for experts that no calibration token was sent to."""
    idle = [(mixture.index, expert) for mixture in seen for expert, tokens in enumerate(mixture.token_E) if not tokens]
    if not idle:
        return []
    block, expert = idle[0]
    more = f" and {len(idle) - 1} more" if len(idle) > 1 else ""
    return [f"no calibration token met expert {expert} of block {block}{more}, so the criterion cannot judge them"]
