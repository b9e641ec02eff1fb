"""What is observed of inputs: norms, means, variances and Hessians against all tokens kept and computed at once."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from prunus.checkpoint.linears import Linear
from prunus.checkpoint.runner import Batch
from prunus.pruning.calibration.statistics import InputStats, Needs, Observer, add_product, mirror

SHAPES = [(2, 5), (1, 9), (3, 4)]  # sequences and tokens of the batches


class Block(nn.Module):
    """Two Linears that read the same input, under the names of a decoder block's."""

    def __init__(self):
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.q_proj, self.self_attn.k_proj = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, states):
        return [self.get_submodule(f"self_attn.{name}_proj")(states) for name in "qk"]


def batches(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(*shape, 6, generator=generator) + 0.5).to(dtype) for shape in SHAPES]


def observe(needs: Needs, counted=None, dtype=torch.float32) -> InputStats:
    block, runner = Block().to(dtype), SimpleNamespace()
    q, k = (Linear(f"self_attn.{name}_proj", "attention", (4, 6), "self_attn.q_proj") for name in "qk")
    runner_like: Any = runner
    with Observer(runner_like, block, [q, k], needs=needs) as seen, torch.no_grad():
        for states, counted_NT1 in zip(batches(dtype), counted or [None] * len(SHAPES), strict=True):
            runner.batch = Batch(torch.zeros(states.shape[:2]), counted_NT1)
            block(states)
    found = seen.stats(3)
    assert found["self_attn.q_proj"].tokens == (sum(int(one.sum()) for one in counted) if counted else 31)
    assert found["self_attn.q_proj"] is found["self_attn.k_proj"], "one factor for both"
    return found["self_attn.q_proj"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_of_it_equals_that_of_all_tokens_at_once(dtype):
    tokens = torch.cat([batch.flatten(0, 1) for batch in batches(dtype)]).double()
    got = observe("hessian", dtype=dtype)
    assert got.hessian is not None and got.mean_I is not None and got.variance_I is not None
    torch.testing.assert_close(got.norm_I.double(), tokens.norm(dim=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(got.mean_I.double(), tokens.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got.variance_I.double(), tokens.var(0, correction=0), rtol=1e-6, atol=0)
    assert got.hessian.matrix_II.dtype == torch.float32
    torch.testing.assert_close(got.hessian.matrix_II.double(), tokens.T @ tokens, rtol=1e-6, atol=1e-5)
    assert got.hessian.name == "block 3, self_attn.q_proj"


def test_a_token_that_does_not_count_is_as_if_it_were_not_there():
    counted = [torch.ones(*shape, 1, dtype=torch.bool) for shape in SHAPES]
    counted[0][:, :2], counted[2][1] = False, False
    tokens = torch.cat([batch[part[..., 0]] for batch, part in zip(batches(), counted, strict=True)]).double()
    got = observe("hessian", counted)
    assert got.hessian is not None and got.mean_I is not None and got.variance_I is not None
    torch.testing.assert_close(got.norm_I.double(), tokens.norm(dim=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(got.mean_I.double(), tokens.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got.variance_I.double(), tokens.var(0, correction=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(got.hessian.matrix_II.double(), tokens.T @ tokens, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("needs", "present"), [("norms", 0), ("means", 2), ("hessian", 3)])
def test_only_what_is_needed_is_kept(needs, present):
    got = observe(needs)
    assert sum(part is not None for part in (got.mean_I, got.variance_I, got.hessian)) == present


@pytest.mark.parametrize("width", [1, 255, 256, 257, 700])
def test_products_in_panels_are_the_whole_product(width):
    parts = torch.randn(3, 50, width, generator=torch.Generator().manual_seed(width)) + 0.3
    total = torch.zeros(width, width)
    for part in parts:
        add_product(total, part)
    mirror(total)
    every = parts.flatten(0, 1).double()
    torch.testing.assert_close(total, total.T, rtol=1e-6, atol=3e-5)
    torch.testing.assert_close(total.double(), every.T @ every, rtol=1e-6, atol=3e-5)
