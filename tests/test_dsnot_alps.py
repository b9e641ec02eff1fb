"""DSnoT and ALPS: golden values, plain loops, and exhaustive search where it is small enough."""

from itertools import combinations

import pytest
import torch
from test_methods import case, stats
from test_sparsegpt import least_squares

from prunus.pruning.masks import Target
from prunus.pruning.methods import METHODS, alps, dsnot, wanda


def dsnot_by_hand(weight, tokens, count):
    """The paper's cycle, row after row, in plain Python, as long as it lowers the error."""
    mean = tokens.double().mean(0)
    variance = tokens.double().var(0, correction=0)
    norm = tokens.double().norm(dim=0)
    result = []
    for row in weight.double():
        score = (row.abs() * norm).tolist()
        gone = set(sorted(range(len(score)), key=score.__getitem__)[:count])
        pull = (row * mean).tolist()
        for _ in range(50):
            error = sum(pull[i] for i in gone)
            sign = 1 if error > 0 else -1
            back = [i for i in gone if pull[i] * sign > 0]
            out = [i for i in range(len(score)) if i not in gone and pull[i] * sign < 0]
            if abs(error) <= 0.1 / 2048 or not back or not out:
                break
            swapped = gone - {max(back, key=lambda i: pull[i] * sign / variance[i].item())}
            swapped |= {min(out, key=score.__getitem__)}
            if abs(sum(pull[i] for i in swapped)) >= abs(error):
                break
            gone = swapped
        result.append([i in gone for i in range(len(score))])
    return result


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_dsnot_equals_plain_loops_and_lowers_the_expected_error(sparsity, seed):
    weight, tokens = case((12, 40), seed)
    got = dsnot.prune(weight, stats(tokens), Target(sparsity))
    assert (got == 0).tolist() == dsnot_by_hand(weight, tokens, int(sparsity * 40))
    assert torch.equal(got[got != 0], weight[got != 0])
    start = wanda.prune(weight, stats(tokens), Target(sparsity))
    errors = [((weight - pruned) @ tokens.mean(0)).abs().sum().item() for pruned in (got, start)]
    assert errors[0] < errors[1]


def test_dsnot_ends_where_nothing_gets_better_so_one_more_cycle_changes_nothing(monkeypatch):
    """With every swap made, an error that two weights overshoot changes its sign for ever."""
    weight, tokens = case((64, 40), seed=5)
    results = []
    for cycles in (50, 51):
        monkeypatch.setattr(dsnot, "CYCLES", cycles)
        results.append(dsnot.prune(weight, stats(tokens), Target(0.5)))
    assert torch.equal(*results)
    start = wanda.prune(weight, stats(tokens), Target(0.5))
    ours, before = (((weight - pruned) @ tokens.mean(0)).abs() for pruned in (results[0], start))
    assert (ours <= before * 1.0001).all() and (ours < before).float().mean() > 0.5


def test_dsnot_makes_a_limited_number_of_swaps_and_none_where_errors_are_small(monkeypatch):
    weight, tokens = case((64, 40), seed=5)
    start = wanda.prune(weight, stats(tokens), Target(0.5))
    moved = {}
    for cycles in (0, 1, 50):
        monkeypatch.setattr(dsnot, "CYCLES", cycles)
        moved[cycles] = ((dsnot.prune(weight, stats(tokens), Target(0.5)) == 0) ^ (start == 0)).sum(1)
    assert moved[0].max() == 0 and moved[1].max() == 2 < moved[50].max()
    monkeypatch.setattr(dsnot, "THRESHOLD", 1e6)
    assert torch.equal(dsnot.prune(weight, stats(tokens), Target(0.5)), start)


def test_more_iterations_of_alps_lose_less(monkeypatch):
    weight, tokens = case((24, 160), seed=7)
    matrix = least_squares(weight, tokens, weight != 0)[1]
    usual = alps.prune(weight, stats(tokens), Target(0.5))
    monkeypatch.setattr(alps, "ITERATIONS", 1)
    assert loss(weight, usual, matrix) < loss(weight, alps.prune(weight, stats(tokens), Target(0.5)), matrix)


def test_dsnot_with_a_pattern_lowers_the_expected_error_too():
    weight, tokens = case((12, 40), seed=4)
    target = Target(0.5, pattern=(2, 4))
    got, start = dsnot.prune(weight, stats(tokens), target), wanda.prune(weight, stats(tokens), target)
    errors = [((weight - pruned) @ tokens.mean(0)).abs() for pruned in (got, start)]
    assert (errors[0] <= errors[1] * 1.0001).all() and errors[0].sum() < errors[1].sum()


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
