"""The smallest weights become zero just as a stable sort of a list has it."""

import pytest
import torch

from prunus.pruning.masks import Target, zero_smallest, zeros_wanted

DTYPES = [torch.bfloat16, torch.float16]


def by_list(weight, count):
    """The same bits, by Python's sort, which is stable."""
    expected, sizes = weight.view(torch.int16).tolist(), weight.abs().tolist()
    for index in sorted(range(len(sizes)), key=sizes.__getitem__)[:count]:
        expected[index] = 0
    return expected


def check(weight):
    for count in {1, *(round(share * len(weight)) or 1 for share in (0.01, 0.2, 0.5, 0.9)), len(weight)}:
        given = weight.clone()
        share = count / len(weight)
        assert zeros_wanted(len(weight), share) == count
        got = zero_smallest(weight[None], Target(share))[0]
        assert got.view(torch.int16).tolist() == by_list(weight, count), count
        assert torch.equal(given.view(torch.int16), weight.view(torch.int16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 4095, 4096, 4113, 30_000])
def test_normal_weights_with_zeros_of_both_signs(size, dtype):
    weight = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    weight[::7], weight[3::11] = 0.0, -0.0
    check(weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ties_within_and_across_pieces(levels, dtype):
    check(torch.randint(-levels, levels + 1, (20_000,), generator=torch.Generator().manual_seed(levels)).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size_that_there_is(dtype):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    check(every[every.isfinite()].clone())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sample_that_sees_nothing_of_the_rest(dtype):
    """Every number that is sampled (_SAMPLE_STEP of masks.py) is one; the others are spread over all sizes."""
    weight = torch.exp(4 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))).to(dtype).clamp(max=6e4)
    for seen in (6e4, 1e-7, 1.0):
        weight[::61] = seen
        check(weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 100, 4999])
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_is_refused_and_infinity_is_the_greatest(dtype, place, sign):
    weight = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[place] = sign * float("inf")
    pruned = zero_smallest(weight[None], Target(4999 / 5000))[0]
    assert pruned.count_nonzero() == 1 and pruned[place] == weight[place]
    weight[place] = torch.tensor(sign * float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        zero_smallest(weight[None], Target(10 / 5000))


def test_a_weight_that_is_not_contiguous():
    assert zero_smallest(torch.randn(8, 8).bfloat16().T, Target(0.5)).count_nonzero() == 32
