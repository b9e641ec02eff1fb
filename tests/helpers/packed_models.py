"""Helpers for tests of packed files: weights of every kind, comparisons, and checks of refusals."""

import numpy as np
import pytest
import torch

from prunus.errors import PrunusError

INTEGERS = {4: torch.int32, 2: torch.int16}


def bits(tensor):
    return tensor.contiguous().view(INTEGERS[tensor.element_size()]).numpy()


def same_bits(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and np.array_equal(bits(left), bits(right))


def refused(words, function, *arguments, **options):
    with pytest.raises(PrunusError) as caught:
        function(*arguments, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def variant_weights(source, seed=0):
    """{name: weight} for every stored form: unchanged, zeroed, zeroed and changed, with -0.0 and NaN, all zero."""
    generator = torch.Generator().manual_seed(seed)
    names = [name for name in source.tensors if "proj.weight" in name][:5]
    weights = {name: source.read(name) for name in names}
    for name in names[1:]:
        weights[name][torch.rand(weights[name].shape, generator=generator) < 0.4] = 0
    weights[names[2]] *= 1.5
    weights[names[3]].view(-1)[7], weights[names[3]].view(-1)[9] = -0.0, float("nan")
    weights[names[4]].zero_()
    return weights
