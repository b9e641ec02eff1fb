"""Uniform: every block has the same sparsity."""

from collections.abc import Sequence

from prunus.recipes import PruneRecipe


def allocate(_scores: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """The recipe's sparsity for each block."""
    return [recipe.sparsity] * len(sizes)
