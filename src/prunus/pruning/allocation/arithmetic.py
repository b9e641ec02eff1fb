"""Arithmetic shared by allocations: sparsities of groups whose weighted mean is the target, and counts per Linear.

A group is a block, or the attention or the MLP of a block; it has one sparsity. sizes: number of weights of each group.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor

from prunus.errors import PrunusError

# The highest sparsity of a group: without any weights its output would be constant.
HIGHEST = 0.99


def weighted_mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean of values, weighted by sizes."""
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def normalised(scores: Sequence[float]) -> list[float]:
    """Scores mapped linearly to [0, 1]; all 0 if they are equal, where the reference implementations divide by zero."""
    low, high = min(scores), max(scores)
    return [0.0 if high == low else (score - low) / (high - low) for score in scores]


def shifted(values: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """The values plus a constant, clipped to [0, HIGHEST], such that the weighted mean is target.

    The reference implementations clip after the shift, so that their mean differs from the target.
    """
    return _solve(lambda x: [_clip(v + x) for v in values], -max(values), HIGHEST - min(values), sizes, target)


def scaled(ratios: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """The ratios (positive) times a constant, clipped to [0, HIGHEST], such that the weighted mean is target."""
    return _solve(lambda x: [_clip(x * r) for r in ratios], 0.0, HIGHEST / min(ratios), sizes, target)


def decreasing_sparsities(
    scores: Sequence[float], sizes: Sequence[int], target: float, half_range: float
) -> list[float]:
    """Sparsities that decrease linearly with the scores, over a range of 2 * half_range, as in OWL.

    They are target + mean(extra) - extra, with extra = 2 * half_range * (score - lowest) / (highest - lowest). The
    weighted mean is target; the range is not centred on it.
    """
    extra = [2 * half_range * share for share in normalised(scores)]
    mean = weighted_mean(extra, sizes)
    return shifted([target + mean - e for e in extra], sizes, target)


def tensor_counts(sparsities: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Zeros per Linear that sum to total: shares rounded down, and the rest given to the largest remainders."""
    exact = [Fraction(s) * size for s, size in zip(sparsities, sizes, strict=True)]
    counts = [floor(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    left = total - sum(counts)
    # At most one weight per Linear is left to assign, besides the bisection's rounding error of 1e-16 of all weights.
    step = 1 if left > 0 else -1
    open_ends = [i for i in by_remainder[::step] if 0 <= counts[i] + step <= sizes[i]]
    assert abs(left) <= len(open_ends), f"{left} zeros left to share among {len(open_ends)} Linears"
    for i in open_ends[: abs(left)]:
        counts[i] += step
    return counts


def row_counts(sparsities: Sequence[float], shapes: Sequence[tuple[int, int]], total: int) -> list[tuple[int, int]]:
    """For each Linear the zeros per row and the number of rows that get one more, such that all zeros sum to total.

    Shares are rounded down. Then the Linears, in the order of largest remainder, get one more zero in every row until
    the total is reached; in the last of them only some rows do.
    """
    exact = [Fraction(s) * columns for s, (_, columns) in zip(sparsities, shapes, strict=True)]
    counts = [floor(share) for share in exact]
    extra = [0] * len(counts)
    left = total - sum(count * rows for count, (rows, _) in zip(counts, shapes, strict=True))
    for i in sorted(range(len(shapes)), key=lambda i: (counts[i] - exact[i], i)):
        rows, columns = shapes[i]
        if left < 0 < counts[i]:  # by a rounding error, if no share has a remainder
            counts[i], left = counts[i] - 1, left + rows
        if counts[i] < columns:
            extra[i] = min(max(left, 0), rows)
            left -= extra[i]
        if extra[i] == rows:
            counts[i], extra[i] = counts[i] + 1, 0
    assert left == 0, f"{left} zeros left to share among rows"
    return list(zip(counts, extra, strict=True))


def _clip(value: float) -> float:
    return min(max(value, 0.0), HIGHEST)


def _solve(
    sparsities_at: Callable[[float], list[float]], low: float, high: float, sizes: Sequence[int], target: float
) -> list[float]:
    """sparsities_at(x) for the x in [low, high] at which their weighted mean, which grows with x, is target.

    Raises PrunusError if clipped sparsities cannot have this mean.
    """
    if not 0 <= target <= HIGHEST:
        raise PrunusError(
            f"sparsity {target} cannot be reached, as an allocation prunes each block to {HIGHEST} at most; "
            "use --allocation uniform"
        )
    for _ in range(200):
        middle = (low + high) / 2
        if weighted_mean(sparsities_at(middle), sizes) < target:
            low = middle
        else:
            high = middle
    return sparsities_at(high)
