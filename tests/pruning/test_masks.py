"""Choosing zeros: exact counts, deterministic ties, and nothing else touched; against plain sorts of lists."""

from fractions import Fraction
from itertools import product

import pytest
import torch

from prunus.pruning import masks
from prunus.pruning.masks import count_zeros, kth_lowest, zero_lowest_in_tensor, zero_lowest_per_row, zeros_wanted

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPARSITIES = [0.0, 0.01, 0.2, 0.29, 0.5, 0.57, 0.99]
SHAPES = [(1, 1), (5, 7), (3, 100), (100, 3), (40, 64)]
LEVELS = (2, 5, 200)  # distinct scores


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def lowest_by_list(scores, count):
    """Positions of the count lowest; Python's sort is stable, so the lower index goes first."""
    return sorted(range(len(scores)), key=scores.__getitem__)[:count]


def weight_and_score(shape, dtype, levels, seed=0):
    """levels: how many distinct scores there are; few of them make many ties. Some weights are 0.0 and -0.0."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(dtype)
    weight.flatten()[::7] = 0.0
    weight.flatten()[3::11] = -0.0
    return weight, torch.randint(0, levels, shape, generator=generator).to(dtype) / 8


@pytest.mark.parametrize("more", [0, 1, 7, 20])
def test_the_first_rows_lose_one_weight_more(more):
    score = torch.randint(0, 5, (20, 11), generator=torch.Generator().manual_seed(more)).float()
    got = zero_lowest_per_row(torch.ones(20, 11), score, 0.3, extra_zeros=more)
    for index, (row, kept) in enumerate(zip(score.tolist(), got.tolist(), strict=True)):
        gone = sorted(range(11), key=row.__getitem__)[: 3 + (index < more)]
        assert kept == [0.0 if column in gone else 1.0 for column in range(11)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_loses_exactly_the_first_of_a_stable_sort(shape, dtype):
    for levels, sparsity in product(LEVELS, SPARSITIES):
        weight, score = weight_and_score(shape, dtype, levels)
        expected = bits(weight).flatten().tolist()
        for index in lowest_by_list(score.flatten().tolist(), round(Fraction(str(sparsity)) * weight.numel())):
            expected[index] = 0
        got = zero_lowest_in_tensor(weight, score, sparsity)
        assert bits(got).flatten().tolist() == expected, (levels, sparsity)


@pytest.mark.parametrize("rounding", ["exact", "reference"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_lose_exactly_the_first_of_a_stable_sort(shape, rounding):
    for levels, sparsity in product(LEVELS, SPARSITIES):
        weight, score = weight_and_score(shape, torch.float32, levels)
        count = round(Fraction(str(sparsity)) * shape[1]) if rounding == "exact" else int(shape[1] * sparsity)
        expected = bits(weight).tolist()
        for row, scores in zip(expected, score.tolist(), strict=True):
            for index in lowest_by_list(scores, count):
                row[index] = 0
        got = zero_lowest_per_row(weight, score, sparsity, rounding)
        assert bits(got).tolist() == expected, (levels, sparsity)


@pytest.mark.slow
@pytest.mark.parametrize("slice_size", [1, 7, 100, 300, 1000])
def test_slices_and_ties_across_them_change_nothing(monkeypatch, slice_size):
    monkeypatch.setattr(masks, "SLICE", slice_size)
    monkeypatch.setattr(masks, "_SLICE_OF_16_BITS", slice_size)
    for levels, sparsity in product((1, 3, 200), SPARSITIES):
        weight, score = weight_and_score((3, 100), torch.bfloat16, levels)
        expected = bits(weight).flatten().tolist()
        for index in lowest_by_list(score.flatten().tolist(), round(Fraction(str(sparsity)) * 300)):
            expected[index] = 0
        got = zero_lowest_in_tensor(weight, score, sparsity)
        assert bits(got).flatten().tolist() == expected, (levels, sparsity)
        assert count_zeros(weight) == int((weight == 0).sum())


def test_slices_of_a_large_weight_are_all_there():
    weight = torch.randn(3000, 400, generator=torch.Generator().manual_seed(1))  # more than one slice of rows
    got = zero_lowest_per_row(weight, weight.abs(), 0.29)
    assert (got == 0).sum(1).unique().tolist() == [116]
    kept = weight.abs().sort(dim=1).values[:, 116:].sum(1)
    torch.testing.assert_close(got.abs().sum(1), kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.9])
def test_reference_rule_for_tensors_is_the_authors_threshold(sparsity, dtype):
    """locuslab/wanda: sort all, take the value at int(N * S), remove everything up to and including it."""
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(2)).to(dtype)
    ordered = sorted(weight.abs().flatten().tolist())
    threshold = ordered[int(1500 * sparsity)]
    got = zero_lowest_in_tensor(weight, weight.abs(), sparsity, "reference")
    expected = [[0.0 if abs(w) <= threshold else w for w in row] for row in weight.tolist()]
    assert got.tolist() == expected
    assert (got == 0).sum() >= int(1500 * sparsity) + 1
    exactly = zero_lowest_in_tensor(weight, weight.abs(), sparsity, "reference", ties=False)
    assert (exactly == 0).sum() == int(1500 * sparsity) and (got == 0)[exactly == 0].all()


@pytest.mark.parametrize(
    ("size", "sparsity", "exact", "reference"),
    [
        (100, 0.29, 29, 28),  # 28.999999999999996 in floating point, as the authors' codes have it
        (100, 0.57, 57, 56),
        (3584, 0.1, 358, 358),
        (18944, 0.2, 3789, 3788),
        (1000, 0.001, 1, 1),
        (7, 0.5, 4, 3),  # 3.5, halves to even
        (5, 0.5, 2, 2),
        (3, 0.5, 2, 1),
        (10, 0.0, 0, 0),
        (3, 0.99, 3, 2),
    ],
)
def test_counts(size, sparsity, exact, reference):
    assert zeros_wanted(size, sparsity) == exact
    assert zeros_wanted(size, sparsity, "reference") == reference


def test_every_percentage_of_a_hundred_is_itself():
    assert [zeros_wanted(100, percent / 100) for percent in range(100)] == list(range(100))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparsity_zero_changes_no_bit(dtype):
    weight, score = weight_and_score((6, 10), dtype, 3)
    for function in (zero_lowest_per_row, zero_lowest_in_tensor):
        assert torch.equal(bits(function(weight, score, 0.0)), bits(weight))


def test_input_is_left_alone_and_kept_negative_zero_stays():
    weight = torch.tensor([[-0.0, 1.0, -0.0, 2.0]])
    before = weight.clone()
    got = zero_lowest_in_tensor(weight, weight.abs(), 0.25)
    assert torch.equal(bits(weight), bits(before))
    assert str(got.tolist()) == "[[0.0, 1.0, -0.0, 2.0]]"  # the first zero became +0.0, the second was not chosen


@pytest.mark.parametrize("dtype", DTYPES)
def test_kth_lowest_is_that_of_the_sorted_list(dtype):
    score = torch.randn(999, generator=torch.Generator().manual_seed(3)).to(dtype).abs()
    score[:5] = torch.finfo(dtype).smallest_normal / 4  # subnormal
    ordered = sorted(score.tolist())
    assert [kth_lowest(score, k).item() for k in (1, 5, 6, 500, 999)] == [ordered[k - 1] for k in (1, 5, 6, 500, 999)]


@pytest.mark.parametrize("function", [zero_lowest_per_row, zero_lowest_in_tensor])
def test_scores_without_an_order_are_refused(function):
    with pytest.raises(ValueError, match="NaN"):
        function(torch.ones(2, 2), torch.tensor([[1.0, float("nan")], [1.0, 2.0]]), 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_zeros_of_either_sign_are_counted_and_nothing_else(dtype):
    tiniest = torch.finfo(dtype).smallest_normal
    weight = torch.tensor([[0.0, -0.0, 1.0, -1.0], [tiniest, -tiniest, -0.0, float("inf")]], dtype=dtype)
    assert count_zeros(weight) == 3
    assert count_zeros(weight.T) == 3  # not contiguous
