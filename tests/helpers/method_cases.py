"""Weights and inputs for every pruning method."""

import torch

from prunus.pruning.calibration.statistics import Hessian, InputStats


def hessian_of(tokens):
    return Hessian(tokens.T @ tokens, "block 0, q")


def stats(tokens):
    """All that can be known of the inputs."""
    mean, variance = tokens.mean(dim=0), tokens.var(dim=0, correction=0)
    return InputStats(tokens.norm(dim=0), len(tokens), mean, variance, hessian_of(tokens))


def case(shape, seed=0, dtype=torch.float32, dead=()):
    """A weight and correlated tokens; dead inputs are zero on all of them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(dtype)
    mix = torch.randn(shape[1], shape[1], generator=generator) / shape[1] ** 0.5 + torch.eye(shape[1])
    tokens = torch.randn(2 * shape[1] + 9, shape[1], generator=generator) @ mix + 0.2
    tokens[:, list(dead)] = 0
    return weight, tokens
