"""The sparsity of each routed expert: within a block, experts that matter less are pruned more.

An expert matters by its REAP score on the dense model (experts/reap.py): the mean over its tokens of gate value times
norm of its output. Within a block sparsities decrease linearly with the scores, as those of blocks do in OWL, and their
mean is what the allocation gives the block.
"""

from collections.abc import Mapping

import torch

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.pruning.allocation.arithmetic import decreasing_sparsities
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.saved_statistics import FIELDS
from prunus.pruning.experts import CRITERIA
from prunus.pruning.experts.measure import observe
from prunus.pruning.experts.mixture import find_mixtures
from prunus.pruning.scope import linears_in_scope
from prunus.pruning.sparsities import Sparsities
from prunus.recipes import ExpertsRecipe, PruneRecipe


def check_experts(source: Checkpoint, recipe: PruneRecipe) -> None:
    """Raise PrunusError if the recipe asks for different sparsities of experts, and there are none to prune."""
    if recipe.expert_spread and not any(one.experts for linears in linears_in_scope(source, recipe) for one in linears):
        raise PrunusError(f"{source.folder} has no routed experts in scope; leave expert_spread out")


def measure_scores(
    source: Checkpoint, recipe: PruneRecipe, device: torch.device, calibration: Calibration
) -> dict[str, list[float]]:
    """The score of each expert, by the name of their module, from a pass of the dense model."""
    check_experts(source, recipe)
    mixtures = find_mixtures(source)
    asked = ExpertsRecipe(**{name: getattr(recipe, name) for name in (*FIELDS, "dtype")})
    seen = observe(source, mixtures, asked, calibration, device, None)
    score = CRITERIA["reap"].score
    return {
        source.block_name(mixture.index, mixture.experts): score(one).tolist()
        for mixture, one in zip(mixtures, seen, strict=True)
    }


def with_experts(
    source: Checkpoint, recipe: PruneRecipe, sparsities: Sparsities, scores: Mapping[str, list[float]]
) -> Sparsities:
    """The sparsities with those of each routed expert in scope. scores: of measure_scores."""
    found: dict[tuple[int, str, int], float] = {}
    for index, linears in enumerate(linears_in_scope(source, recipe)):
        for module in dict.fromkeys(linear.experts for linear in linears if linear.experts):
            own = scores.get(source.block_name(index, module), [])
            target = next(sparsities.of(index, linear) for linear in linears if linear.experts == module)
            shares = decreasing_sparsities(own, [1] * len(own), target, recipe.expert_spread) if own else []
            found |= {(index, module, expert): share for expert, share in enumerate(shares)}
    return sparsities._replace(experts=found)
