"""The grid of a quantised weight: integers times scales, without zero points, so that a zero stays exactly zero.

A group of consecutive inputs of a row shares a scale. Several are tried for each group: the plain scale, by which the
largest weight has the largest integer, and smaller and larger ones; the least weighted squared error decides. With 4
bits a scale may be negative: there is one more integer below zero than above it, and the sign gives it to the side of
the largest weight. Scales of 4 bits are rounded to bfloat16 within the normal range of float16, so that all formats
hold the same weights.

O, I: output and input features; G: groups of a row; B: inputs of a group; N: groups of several rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LEAST = {4: 6.2e-5, 8: 1e-6}  # scale, by bits
TRIES = 12
LARGEST, RANGE = 1.15, 0.6  # of the factors by which scales are tried: 1.15, 1.1, ... 0.6
SLICE = 4096  # groups at a time, which stay in the processor's cache


class Grid(NamedTuple):
    """The grid of a weight.

    bits: of an integer. group: number of inputs that share a scale; it divides that of a row. dtype: of the scales.
    """

    bits: int
    group: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def low(self) -> int:
        """The smallest integer."""
        return -(1 << self.bits - 1)

    @property
    def high(self) -> int:
        """The largest integer."""
        return (1 << self.bits - 1) - 1

    def codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The nearest integers of weights, as floats."""
        return (weight / scale).round_().clamp_(self.low, self.high)

    def stored(self, scale: Tensor) -> Tensor:
        """Scales as they are stored, in float32."""
        sign = torch.where(scale < 0, -1.0, 1.0)
        return (sign * scale.abs().clamp(min=LEAST[self.bits])).bfloat16().to(self.dtype).float()


class Codes(NamedTuple):
    """A quantised weight. code_OI: int8. scale_OG: float32 with numbers that the scales' dtype holds."""

    code_OI: Tensor
    scale_OG: Tensor


def plain_scales(weight_NB: Tensor, grid: Grid) -> Tensor:
    """(N, 1) scales by which the largest weight of each group is nearest to the largest integer."""
    return grid.stored(weight_NB.abs().amax(1, keepdim=True) / (grid.high + 0.5))


def searched_scales(weight_NB: Tensor, importance_NB: Tensor | None, grid: Grid) -> Tensor:
    """(N, 1) scales with the least weighted error among those tried, which include plain_scales."""
    low_N1, high_N1 = weight_NB.amin(1, keepdim=True), weight_NB.amax(1, keepdim=True)
    top_N1 = torch.maximum(-low_N1, high_N1) / -grid.low
    signed_N1 = torch.where(-low_N1 >= high_N1, top_N1, -top_N1)
    starts = [signed_N1, -signed_N1] if grid.bits < 8 else [top_N1]
    best_N1 = plain_scales(weight_NB, grid)
    least_N1 = weighted_error(weight_NB, best_N1, importance_NB, grid)
    for start_N1 in starts:
        for number in range(TRIES):
            scale_N1 = grid.stored(start_N1 * (LARGEST - RANGE * number / TRIES))
            error_N1 = weighted_error(weight_NB, scale_N1, importance_NB, grid)
            better_N1 = error_N1 < least_N1
            best_N1 = torch.where(better_N1, scale_N1, best_N1)
            least_N1 = torch.where(better_N1, error_N1, least_N1)
    return best_N1


def weighted_error(weight_NB: Tensor, scale_N1: Tensor, importance_NB: Tensor | None, grid: Grid) -> Tensor:
    """(N, 1) weighted sum of the squared errors of rounding to nearest."""
    error_NB = grid.codes(weight_NB, scale_N1).mul_(scale_N1).sub_(weight_NB).square_()
    return (error_NB if importance_NB is None else error_NB.mul_(importance_NB)).sum(1, keepdim=True)


def scales_of(weight_OI: Tensor, importance_I: Tensor | None, grid: Grid) -> Tensor:
    """(O, G) searched scales of a whole weight. importance_I: weight of the squared error of each input."""
    rows, inputs = weight_OI.shape
    parts_NB, weights_NB = weight_OI.reshape(-1, grid.group), None
    if importance_I is not None:
        weights_NB = importance_I.view(1, -1, grid.group).expand(rows, -1, -1).reshape(-1, grid.group)
    most = max(1, SLICE * 64 // grid.group)
    scales = [
        searched_scales(part_NB, None if weights_NB is None else weights_NB[n * most : n * most + len(part_NB)], grid)
        for n, part_NB in enumerate(parts_NB.split(most))
    ]
    return torch.cat(scales).view(rows, inputs // grid.group)


def to_nearest(weight_OI: Tensor, grid: Grid) -> Codes:
    """A weight that is rounded to nearest."""
    weight_OI = weight_OI.float()
    scale_OG = scales_of(weight_OI, None, grid)
    return Codes(grid.codes(weight_OI, scale_OG.repeat_interleave(grid.group, 1)).to(torch.int8), scale_OG)
