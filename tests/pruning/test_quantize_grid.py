"""Rounding of one matrix: GPTQ against updates with exact inverses, scales against all that are tried."""

import pytest
import torch

from prunus.pruning.bits import gptq
from prunus.pruning.bits.grid import LARGEST, RANGE, TRIES, Grid, plain_scales, scales_of, searched_scales, to_nearest
from prunus.pruning.calibration.statistics import Hessian


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed, width, rows=300):
    """Correlated inputs, some larger than others."""
    return draw(seed, rows, width) @ draw(seed + 1, width, width) / width**0.5 * (0.2 + draw(seed + 2, width).abs())


def value(codes, grid):
    return codes.code_OI.float() * codes.scale_OG.repeat_interleave(grid.group, 1)


def by_exact_inverses(weight_OI, matrix_II, scale_OG, grid):
    """Integers column by column: after each, the inverse of the Hessian of the columns that are left, in float64."""
    weight_OI, matrix_II = weight_OI.double().clone(), matrix_II.double()
    damped_II = matrix_II + 0.01 * matrix_II.diagonal().mean() * torch.eye(len(matrix_II))
    left = torch.argsort(damped_II.diagonal().float(), descending=True, stable=True).tolist()
    zero_OI, code_OI = weight_OI == 0, torch.zeros_like(weight_OI)
    while left:
        first, *others = left
        inverse = torch.linalg.inv(damped_II[left][:, left])
        scale_O = scale_OG[:, first // grid.group].double()
        code_O = (weight_OI[:, first] / scale_O).round().clamp(grid.low, grid.high).masked_fill(zero_OI[:, first], 0)
        error_O = (weight_OI[:, first] - code_O * scale_O) / inverse[0, 0]
        weight_OI[:, others] -= error_O[:, None] * inverse[0, 1:]
        code_OI[:, first], left = code_O, others
    return code_OI


@pytest.mark.parametrize(("bits", "width", "group"), [(4, 64, 32), (4, 160, 32), (8, 48, 48)])
def test_gptq_is_that_of_updates_with_exact_inverses(bits, width, group):
    """The second matrix has more columns than are updated at a time."""
    grid, weight_OI, x_SI = Grid(bits, group), draw(0, 12, width), inputs(1, width)
    weight_OI[draw(7, 12, width) > 1] = 0
    hessian = Hessian(x_SI.T @ x_SI)
    made = gptq.quantise(weight_OI, gptq.Ordered(hessian), grid)
    expected = by_exact_inverses(weight_OI, hessian.matrix_II, made.scale_OG, grid)
    assert made.code_OI.dtype == torch.int8 and torch.equal(made.code_OI.double(), expected)
    assert bool((made.code_OI[weight_OI == 0] == 0).all())
    loss, plain = (
        ((value(one, grid) - weight_OI) @ hessian.matrix_II).mul(value(one, grid) - weight_OI).sum()
        for one in (made, to_nearest(weight_OI, grid))
    )
    assert loss < 0.8 * plain


def test_inputs_that_are_always_zero_are_rounded_to_nearest():
    grid, weight_OI, x_SI = Grid(4, 32), draw(0, 8, 32), inputs(1, 32)
    x_SI[:, 5:9] = 0
    made = gptq.quantise(weight_OI, gptq.Ordered(Hessian(x_SI.T @ x_SI)), grid)
    nearest = (weight_OI / made.scale_OG).round().clamp(-8, 7).to(torch.int8)
    equal = made.code_OI == nearest
    assert bool(equal[:, 5:9].all()) and not bool(equal.all())


def test_the_columns_importance_is_what_their_error_costs_when_later_ones_make_up_for_it():
    x_SI = inputs(3, 24)
    hessian = Hessian(x_SI.T @ x_SI)
    ordered = gptq.Ordered(hessian)
    damped = hessian.damped(0.01, torch.float64)
    for place, column in enumerate(ordered.order_I.tolist()):
        left = ordered.order_I[place:]
        expected = 1 / torch.linalg.inv(damped[left][:, left])[0, 0]
        assert float(ordered.importance_I[column]) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_scale_that_is_tried_has_less_error(bits, weighted):
    grid = Grid(bits, 32)
    weight_NB = draw(4, 50, 32) * (10 ** draw(5, 50, 1))
    importance_NB = draw(6, 50, 32).square() if weighted else torch.ones(50, 32)

    def error(scale_N1):
        rounded = (weight_NB / scale_N1).round().clamp(grid.low, grid.high) * scale_N1
        return ((rounded - weight_NB).square() * importance_NB).sum(1)

    found = searched_scales(weight_NB, importance_NB if weighted else None, grid)
    plain = weight_NB.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 0.5)
    torch.testing.assert_close(plain_scales(weight_NB, grid), plain, rtol=2**-8, atol=0)
    tried = [plain_scales(weight_NB, grid)]
    for sign in (1, -1) if bits == 4 else (1,):
        top = sign * weight_NB.abs().amax(1, keepdim=True) / 2 ** (bits - 1)
        tried += [grid.stored(top * (LARGEST - RANGE * n / TRIES)) for n in range(TRIES)]
    least = torch.stack([error(scale) for scale in tried]).amin(0)
    torch.testing.assert_close(error(found), least, rtol=1e-5, atol=0)
    assert bool((error(found) <= error(plain_scales(weight_NB, grid)) * (1 + 1e-6)).all())
    assert bool((error(found) < 0.9 * error(plain_scales(weight_NB, grid))).any()) or bits == 8


def test_the_sign_of_a_scale_gives_the_longer_side_to_the_largest_weight():
    """-8 is an integer, 8 is none, so only a negative scale holds these weights exactly."""
    weight_OI = torch.tensor([[0.8, -0.7, 0.1, 0.0] * 8])
    made = to_nearest(weight_OI, Grid(4, 32))
    assert float(made.scale_OG) == pytest.approx(-0.1, rel=2**-8) and made.code_OI[0, :4].tolist() == [-8, 7, -1, 0]
    assert float(to_nearest(weight_OI, Grid(8, 32)).scale_OG) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_numbers_of_every_format(bits, dtype):
    weight_OI = torch.cat([draw(8, 3, 64), 1e-9 * draw(9, 1, 64), torch.zeros(1, 64)])
    scale_OG = scales_of(weight_OI, None, Grid(bits, 32, dtype))
    assert torch.equal(scale_OG.to(dtype).float(), scale_OG) and bool((scale_OG != 0).all())
    if bits == 4:
        assert torch.equal(scale_OG.bfloat16().float(), scale_OG)
        assert bool((scale_OG.abs() >= torch.finfo(torch.float16).smallest_normal).all())
