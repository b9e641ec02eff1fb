"""The smallest weights become zero in compiled code just as a stable sort of a list has it."""

import errno
import os
import pwd

import pytest
import torch
from filelock import FileLock

from prunus.native import load
from prunus.native import load as library
from prunus.pruning import masks
from prunus.pruning.masks import Target, zeros_wanted

pytestmark = pytest.mark.skipif(
    load.zero_smallest(torch.ones(1, dtype=torch.bfloat16), 1) is None, reason="needs compiled code"
)
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
        got = load.zero_smallest(weight, count)
        assert got is not None and got.view(torch.int16).tolist() == by_list(weight, count), count
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


@pytest.mark.parametrize("step", [3, 11, 61])
def test_a_sample_that_sees_nothing_of_the_rest(step):
    """Every number that is sampled (SAMPLE in smallest.cpp) is one; the others are spread over all sizes."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.exp(20 * torch.randn(20_000 * (step // 2) + 1, generator=generator)).bfloat16()
    for seen in (1e30, 1e-30, 1.0):
        weight[::step] = seen
        for count in (1, len(weight) // 3, len(weight)):
            pruned = masks.zero_lowest_in_tensor(weight, weight.abs(), count / len(weight))
            wanted = zeros_wanted(len(weight), count / len(weight))
            found = load.zero_smallest(weight, wanted) if wanted else weight
            assert found is not None and torch.equal(found.view(torch.int16), pruned.view(torch.int16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 100, 4999])
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_is_refused_and_infinity_is_the_greatest(dtype, place, sign):
    weight = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[place] = sign * float("inf")
    pruned = load.zero_smallest(weight, 4999)
    assert pruned is not None and pruned.count_nonzero() == 1 and pruned[place] == weight[place]
    weight[place] = torch.tensor(sign * float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        load.zero_smallest(weight, 10)


def test_what_it_cannot_do_is_left_to_others():
    weight = torch.randn(8, 8)
    assert load.zero_smallest(weight, 3) is None
    assert load.zero_smallest(weight.bfloat16().T, 3) is None
    assert masks.zero_smallest(weight.bfloat16().T, Target(0.5)).count_nonzero() == 32


@pytest.mark.parametrize("target", [Target(0.0), Target(0.37), Target(0.37, "reference"), Target(0, "exact", (2, 4))])
def test_masks_give_the_same_with_it_and_without(monkeypatch, target):
    weight = torch.randn(70, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    compiled = masks.zero_smallest(weight, target)
    monkeypatch.setattr(load, "_library", lambda: None)
    plain = masks.zero_smallest(weight, target)
    assert torch.equal(compiled.view(torch.int16), plain.view(torch.int16))


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("PRUNUS_KERNEL", "off")
    assert load._library.__wrapped__() is None


def test_where_nothing_can_be_compiled_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "prebuilt", lambda source: tmp_path / "none.so")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "/bin/false")
    assert load._library.__wrapped__() is None


def test_without_a_home_there_is_none(monkeypatch, tmp_path):
    """A container may run as a user that the system does not know; pruning ended in an internal error."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(library, "prebuilt", lambda source: tmp_path / "none.so")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert load._library.__wrapped__() is None


def test_where_the_cache_cannot_be_written_there_is_none(monkeypatch, tmp_path):
    def denied(*_, **__):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(library, "prebuilt", lambda source: tmp_path / "none.so")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(FileLock, "acquire", denied)
    assert load._library.__wrapped__() is None
