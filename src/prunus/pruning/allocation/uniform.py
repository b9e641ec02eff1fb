"""Uniform: every block has the same sparsity."""

from collections.abc import Sequence

from prunus.declarations import Allocation


def allocate(sizes: Sequence[int], target: float) -> list[float]:
    """The target as the sparsity of each block."""
    return [target] * len(sizes)


DECLARATION = Allocation(
    name="uniform",
    source="the default of all methods",
    description="the same sparsity in every Linear",
    allocate=lambda _scores, sizes, recipe: allocate(sizes, recipe.sparsity),
)
