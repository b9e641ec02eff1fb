"""Uniform: every block loses the same share of its weights."""

from collections.abc import Sequence


def allocate(sizes: Sequence[int], target: float) -> list[float]:
    """target for each block."""
    return [target] * len(sizes)
