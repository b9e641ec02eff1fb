"""Wanda against plain loops, the golden case, and properties that any right implementation has."""

from fractions import Fraction

import pytest
import torch
from small_weights import TOKENS, WEIGHT

from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target
from prunus.pruning.methods import wanda


def stats(tokens):
    return InputStats(norm_I=tokens.norm(dim=0), tokens=len(tokens))


def wanda_by_hand(weight, tokens, sparsity):
    """The paper's rule in plain loops over lists; exact fractions, so 29 of 100 is 29."""
    pruned = [list(row) for row in weight]
    for row in pruned:
        scores = [abs(w) * sum(x[i] ** 2 for x in tokens) ** 0.5 for i, w in enumerate(row)]
        for i in sorted(range(len(row)), key=scores.__getitem__)[: round(len(row) * Fraction(str(sparsity)))]:
            row[i] = 0.0
    return pruned


def test_golden_case():
    torch.testing.assert_close(TOKENS.norm(dim=0), torch.tensor([2.236068, 2.236068, 3.162278, 1.5]))
    expected = torch.tensor([[1.118034, 2.236068, 0.790569, 3], [1.677051, 0.223607, 4.743416, 0.3]])
    torch.testing.assert_close(wanda.score(WEIGHT, TOKENS.norm(dim=0)), expected, atol=1e-6, rtol=0)
    got = wanda.prune(WEIGHT, stats(TOKENS), Target(0.5))
    torch.testing.assert_close(got, torch.tensor([[0, -1, 0, 2], [-0.75, 0, 1.5, 0]]))


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (2, 100), (33, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_plain_loops(shape, sparsity, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    tokens = torch.randn(16, shape[1], generator=generator)
    got = wanda.prune(weight, stats(tokens), Target(sparsity))
    assert got.dtype == dtype
    assert got.tolist() == wanda_by_hand(weight.tolist(), tokens.tolist(), sparsity)


def test_scale_of_the_inputs_does_not_matter():
    generator = torch.Generator().manual_seed(1)
    weight, tokens = torch.randn(20, 64, generator=generator), torch.randn(50, 64, generator=generator)
    reference = wanda.prune(weight, stats(tokens), Target(0.4))
    for factor in (0.125, 1024.0):  # powers of two: the products round alike
        assert torch.equal(wanda.prune(weight, stats(factor * tokens), Target(0.4)), reference)


def test_dead_inputs_go_first_and_by_column():
    weight = torch.tensor([[9.0, 0.1, 9.0, 0.2, 9.0, 0.3]])
    tokens = torch.tensor([[0.0, 1, 0, 1, 0, 1]])
    third = wanda.prune(weight, stats(tokens), Target(2 / 6))
    assert third.tolist() == [[0, pytest.approx(0.1), 0, *weight[0, 3:].tolist()]]
    assert wanda.prune(weight, stats(tokens), Target(0.5)).tolist() == [
        [0, *weight[0, 1:2].tolist(), 0, *weight[0, 3:4].tolist(), 0, *weight[0, 5:].tolist()]
    ]
