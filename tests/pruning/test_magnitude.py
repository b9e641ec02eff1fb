"""Magnitude: the golden case, the whole tensor as one group, and the authors' count."""

import pytest
import torch
from small_weights import WEIGHT

from prunus.pruning.masks import Target
from prunus.pruning.methods import magnitude


def test_golden_case():
    exact = magnitude.prune(WEIGHT, None, Target(0.5))
    torch.testing.assert_close(exact, torch.tensor([[0, -1, 0, 2], [-0.75, 0, 1.5, 0]]))
    reference = magnitude.prune(WEIGHT, None, Target(0.5, "reference"))  # the threshold is .75, and it goes too
    torch.testing.assert_close(reference, torch.tensor([[0.0, -1, 0, 2], [0, 0, 1.5, 0]]))


def test_the_tensor_is_one_group():
    weight = torch.tensor([[1.0, 2, 3, 4], [-10, 20, -30, 40]])
    assert magnitude.prune(weight, None, Target(0.5)).tolist() == [[0, 0, 0, 0], [-10, 20, -30, 40]]


@pytest.mark.parametrize(("sparsity", "at_threshold"), [(0.2, 0.0015), (0.5, 0.0024)])
def test_ties_of_bfloat16_make_the_authors_count_too_large_and_ours_exact(sparsity, at_threshold):
    """On Gaussian weights the value at the threshold carries 0.15 % (0.24 %) of all; theirs takes all of it."""
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    zeros = {rule: magnitude.prune(weight, None, Target(sparsity, rule)) == 0 for rule in ("exact", "reference")}
    assert zeros["exact"].sum().item() == round(sparsity * 1_000_000)
    assert zeros["reference"][zeros["exact"]].all()
    last = weight.abs()[zeros["exact"]].max()
    ties = weight.abs() == last
    assert ties.double().mean().item() == pytest.approx(at_threshold, abs=2e-4)
    assert zeros["reference"][ties].all()
    assert not zeros["exact"][ties].all()
