"""What allocations share: numbers per group in, sparsities out that keep the budget; then whole weights per Linear.

A group is what gets one sparsity: a block, or the attention or the MLP of a block. sizes: weights of each group.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor

from prunus.declarations import Allocation, declared
from prunus.errors import PrunusError
from prunus.recipes import PruneRecipe

# No group loses more than this share of its weights, or its output would be constant.
HIGHEST = 0.99


def weighted_mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    """Mean of values weighted by sizes."""
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def spread_out(scores: Sequence[float]) -> list[float]:
    """Scores moved to [0, 1]; scores that are all alike become 0 (the reference codes divide by zero)."""
    low, high = min(scores), max(scores)
    return [0.0 if high == low else (score - low) / (high - low) for score in scores]


def shifted(wanted: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """wanted plus one number, each clipped to [0, HIGHEST], so that the weighted mean is target.

    The reference implementations clip and lose the budget.
    """
    check_target(target)
    return _solve(lambda x: [_clip(v + x) for v in wanted], -max(wanted), HIGHEST - min(wanted), sizes, target)


def scaled(ratios: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """ratios (positive) times one number, each clipped to [0, HIGHEST], so that the weighted mean is target."""
    check_target(target)
    return _solve(lambda x: [_clip(x * r) for r in ratios], 0.0, HIGHEST / min(ratios), sizes, target)


def more_kept(needs: Sequence[float], sizes: Sequence[int], target: float, width: float) -> list[float]:
    """Sparsities around target, 2 * width apart at most: the greater the need of a group, the more it keeps.

    target + mean(extra) - extra, where extra = 2 * width * (need - lowest) / (highest - lowest): what OWL and DLP do.
    The range is not centred on target.
    """
    extra = [2 * width * share for share in spread_out(needs)]
    mean = weighted_mean(extra, sizes)
    return shifted([target + mean - e for e in extra], sizes, target)


def spread_of(allocation: str, recipe: PruneRecipe) -> float:
    """The spread that a recipe asks for, or the usual one of an allocation."""
    options = declared(Allocation)[allocation].options
    return next(option for option in options if option.name == "spread").of(recipe)


def check_target(target: float) -> None:
    """Raise PrunusError where clipped sparsities cannot reach the mean asked for."""
    if not 0 <= target <= HIGHEST:
        raise PrunusError(
            f"sparsity {target} cannot be shared out when no block may lose more than {HIGHEST} of its weights; "
            "use --allocation uniform"
        )


def tensor_counts(sparsities: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Zeros per Linear that sum to total: each its share rounded down, what is left to the largest remainders."""
    exact = [Fraction(s) * size for s, size in zip(sparsities, sizes, strict=True)]
    counts = [floor(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    left = total - sum(counts)
    # Clipping solves for the mean in floating point, so what is left is a number of weights, at most one per Linear
    # but for an error of 1e-16 of all weights.
    step = 1 if left > 0 else -1
    open_ends = [i for i in by_remainder[::step] if 0 <= counts[i] + step <= sizes[i]]
    assert abs(left) <= len(open_ends), f"{left} zeros left to share among {len(open_ends)} Linears"
    for i in open_ends[: abs(left)]:
        counts[i] += step
    return counts


def row_counts(sparsities: Sequence[float], shapes: Sequence[tuple[int, int]], total: int) -> list[tuple[int, int]]:
    """For each Linear the zeros of a row, and how many rows have one more, so that all zeros together are total.

    Each share is rounded down; then, by largest remainder, rows of one Linear after the other lose one more: all of
    them, but for the last such Linear.
    """
    exact = [Fraction(s) * columns for s, (_, columns) in zip(sparsities, shapes, strict=True)]
    counts = [floor(share) for share in exact]
    more = [0] * len(counts)
    left = total - sum(count * rows for count, (rows, _) in zip(counts, shapes, strict=True))
    for i in sorted(range(len(shapes)), key=lambda i: (counts[i] - exact[i], i)):
        rows, columns = shapes[i]
        if left < 0 < counts[i]:  # by an error of floating point, where no share had a remainder
            counts[i], left = counts[i] - 1, left + rows
        if counts[i] < columns:
            more[i] = min(max(left, 0), rows)
            left -= more[i]
        if more[i] == rows:
            counts[i], more[i] = counts[i] + 1, 0
    assert left == 0, f"{left} zeros left to share among rows"
    return list(zip(counts, more, strict=True))


def _clip(value: float) -> float:
    return min(max(value, 0.0), HIGHEST)


def _solve(
    sparsities_at: Callable[[float], list[float]], low: float, high: float, sizes: Sequence[int], target: float
) -> list[float]:
    """By bisection: the weighted mean grows with x."""
    for _ in range(200):
        middle = (low + high) / 2
        if weighted_mean(sparsities_at(middle), sizes) < target:
            low = middle
        else:
            high = middle
    return sparsities_at(high)
