"""ALPS: least squares, and exhaustive search where it is small enough."""

from itertools import combinations

import pytest
import torch
from method_cases import case, stats
from obs_by_hand import least_squares

from prunus.pruning.masks import Target
from prunus.pruning.methods import METHODS, alps


def test_more_iterations_of_alps_lose_less(monkeypatch):
    weight, tokens = case((24, 160), seed=7)
    matrix = least_squares(weight, tokens, weight != 0)[1]
    usual = alps.prune(weight, stats(tokens), Target(0.5))
    monkeypatch.setattr(alps, "ITERATIONS", 1)
    assert loss(weight, usual, matrix) < loss(weight, alps.prune(weight, stats(tokens), Target(0.5)), matrix)


def loss(weight, pruned, matrix):
    change = pruned.double() - weight
    return (change @ matrix @ change.T).trace().item()


@pytest.mark.parametrize("seed", range(4))
def test_alps_is_among_the_best_third_of_all_masks(seed):
    """One row of eight inputs, half kept: all 70 masks are tried, each with its least squares."""
    weight, tokens = case((1, 8), seed)
    losses = []
    matrix = least_squares(weight, tokens, weight != 0)[1]
    for chosen in combinations(range(8), 4):
        keep = torch.zeros(1, 8, dtype=torch.bool)
        keep[0, list(chosen)] = True
        losses.append(loss(weight, least_squares(weight, tokens, keep)[0], matrix))
    got = loss(weight, alps.prune(weight, stats(tokens), Target(0.5)), matrix)
    assert min(losses) * (1 - 1e-6) <= got <= sorted(losses)[70 // 3]


@pytest.mark.parametrize("target", [Target(0.5), Target(0.7), Target(0.5, pattern=(2, 4))])
def test_alps_loses_less_than_the_others_and_little_more_than_least_squares(target):
    weight, tokens = case((24, 160), seed=7)
    pruned = {name: METHODS[name].prune(weight, stats(tokens), target) for name in ("alps", "sparsegpt", "wanda")}
    best, matrix = least_squares(weight, tokens, pruned["alps"] != 0)
    losses = {name: loss(weight, result, matrix) for name, result in pruned.items()}
    assert losses["alps"] < losses["sparsegpt"] < losses["wanda"]
    assert loss(weight, best, matrix) <= losses["alps"] * (1 + 1e-6)
    assert losses["alps"] <= 1.02 * loss(weight, best, matrix)
