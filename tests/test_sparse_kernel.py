"""The kernel against numpy in float64, on every instruction set that this processor has, and its layout bit by bit."""

import numpy as np
import pytest
import torch

from prunus.sparse import library, weight
from prunus.sparse.linear import multiply
from prunus.sparse.weight import pack

pytestmark = pytest.mark.skipif(library.kernel().library is None, reason=library.kernel().reason)
EPSILON = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-23}
BEST = library.kernel().isa
# Outputs not of 16, inputs not of 32 or 512, single ones, and sizes that fit.
SHAPES = [(1, 1), (5, 31), (16, 32), (17, 33), (40, 515), (64, 512), (33, 1100)]


@pytest.fixture(params=range(1, BEST + 1), ids=lambda isa: library.ISAS[isa])
def isa(request, monkeypatch):
    """Every instruction set in turn."""
    found = library.kernel()._replace(isa=request.param)
    for module in (library, weight):
        monkeypatch.setattr(module, "needed", lambda: found)
    monkeypatch.setattr("prunus.sparse.linear.needed", lambda: found)
    return request.param


def random_weight(shape, sparsity, dtype=torch.bfloat16, seed=0):
    """A matrix with about so many zeros, two of them negative: these count as weights."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(shape, generator=generator).to(dtype)
    made[torch.rand(shape, generator=generator) < sparsity] = 0
    made.view(-1)[:: max(1, made.numel() // 2)] = -0.0
    return made


def exact(x, dense, bias=None):
    """The product in float64, and the sum of the sizes of what is added, by which errors are judged."""
    x, dense = x.double().numpy(), dense.double().numpy()
    bias = 0 if bias is None else bias.double().numpy()
    return x @ dense.T + bias, np.abs(x) @ np.abs(dense.T) + np.abs(bias)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("activations", EPSILON, ids=str)
def test_products_are_those_of_float64(isa, dtype, activations):
    for shape in SHAPES:
        for sparsity in (0.0, 0.2, 0.5, 0.95, 1.0):
            dense = random_weight(shape, sparsity, dtype)
            bias = torch.randn(shape[0]).to(activations)
            packed = pack(dense)
            for rows in range(1, 9):
                x = torch.randn(rows, shape[1]).to(activations)
                expected, size = exact(x, dense, bias)
                # One rounding of the result, and float32 sums of products.
                allowed = EPSILON[activations] * np.abs(expected) + 2.0**-21 * size + 1e-7
                for given in (packed, dense):
                    got = multiply(x, given, bias).double().numpy()
                    assert (np.abs(got - expected) <= allowed).all(), (shape, sparsity, rows)
