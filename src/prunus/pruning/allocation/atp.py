"""ATP: sparsity rises by the same step from block to block. arXiv:2502.14770 (ICML 2025), eq. 10. No data.

The strongest simple baseline: every allocation that measures something has to beat it.
"""

from collections.abc import Sequence

from prunus.declarations import Allocation, Option
from prunus.errors import PrunusError
from prunus.pruning.allocation.arithmetic import shifted

# Without a step the last block loses at most this much more than target, the first this much less: OWL's width.
HALF_RANGE = 0.08


def highest_step(blocks: int, target: float) -> float:
    """The largest step (the paper's beta) at which no sparsity leaves [0, 1]."""
    return 2 * min(target, 1 - target) / max(1, blocks - 1)


def allocate(sizes: Sequence[int], target: float, step: float | None = None) -> list[float]:
    """Sparsities target + step * (i - (L - 1) / 2) for block i of L.

    The authors choose the step by the perplexity that they report; choose it on other text. None: a rise of
    2 * HALF_RANGE over all blocks, less where that would leave [0, 1].
    """
    blocks, limit = len(sizes), highest_step(len(sizes), target)
    if step is None:
        step = min(limit, 2 * HALF_RANGE / max(1, blocks - 1))
    if not 0 <= step <= limit + 1e-12:
        raise PrunusError(f"step {step} is outside [0, {limit:.4g}] for sparsity {target} and {blocks} blocks")
    return shifted([target + step * (i - (blocks - 1) / 2) for i in range(blocks)], sizes, target)


DECLARATION = Allocation(
    name="atp",
    source="Huang et al. 2025, arXiv:2502.14770",
    description="sparsity rises by one step from block to block; needs no data",
    allocate=lambda _scores, sizes, recipe: allocate(sizes, recipe.sparsity, recipe.step),
    options=(Option("step", float, None, "how much more each block loses than the one before."),),
)
