"""ATP: sparsity increases by the same step from block to block.

Huang et al., ICML 2025, arXiv:2502.14770, eq. 10. It needs no data and is the strongest simple baseline, which an
allocation that measures scores should beat.
"""

from collections.abc import Sequence

from prunus.errors import PrunusError
from prunus.pruning.allocation.arithmetic import shifted
from prunus.recipes import PruneRecipe

# Without a step, the sparsities of the last and the first block differ from the target by at most this much, as in OWL.
HALF_RANGE = 0.08


def allocate(_scores: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """Sparsity target + step * (i - (L - 1) / 2) for each block i of L.

    Without a step they increase by 2 * HALF_RANGE over all blocks, or by less if they would leave [0, 1]. The authors
    choose the step by the perplexity that they report; choose it on other text. Raises PrunusError if sparsities would
    leave [0, 1].
    """
    target, step, blocks = recipe.sparsity, recipe.step, len(sizes)
    limit = 2 * min(target, 1 - target) / max(1, blocks - 1)  # for which all sparsities lie in [0, 1]
    if step is None:
        step = min(limit, 2 * HALF_RANGE / max(1, blocks - 1))
    if not 0 <= step <= limit + 1e-12:
        raise PrunusError(f"step {step} is outside [0, {limit:.4g}] for sparsity {target} and {blocks} blocks")
    return shifted([target + step * (i - (blocks - 1) / 2) for i in range(blocks)], sizes, target)
