"""Choosing channels and fitting the others, against single removals with full refits and torch's own least squares."""

import pytest
import torch

from prunus.checkpoint.runner import Batch
from prunus.pruning.width.fit import (
    DAMPINGS,
    Held,
    Inputs,
    by_chance,
    by_contribution,
    by_fluctuation,
    by_obs,
    cut,
    damped,
    fit,
    held_out,
    kept_of,
    lowest,
    relative_error,
)

TOKENS, CHANNELS, OUTPUTS = 60, 10, 4


def example(seed=0, tokens=TOKENS, channels=CHANNELS):
    """Inputs that depend on each other, a weight, a bias, what the output lacks, and what is summed of all of them."""
    torch.manual_seed(seed)
    mixed_II = torch.randn(channels, channels, dtype=torch.float64)
    x_SI = torch.randn(tokens, channels, dtype=torch.float64) @ mixed_II + 0.5
    weight_OI, bias_O = torch.randn(OUTPUTS, channels, dtype=torch.float64), torch.randn(OUTPUTS, dtype=torch.float64)
    e_SO = torch.randn(tokens, OUTPUTS, dtype=torch.float64) + 0.3 * x_SI[:, :1]
    own = Inputs(x_SI.mT @ x_SI, x_SI.sum(0), float(tokens), tokens)
    towards = own._replace(error_OI=e_SO.mT @ x_SI, error_O=e_SO.sum(0), energy=float(e_SO.square().sum()))
    return x_SI, weight_OI, bias_O, e_SO, own, towards


def ridge(own, kept, damping=0.01):
    """The square root of the damping of a fit on these channels."""
    return (damping * own.hessian_II[kept][:, kept].diagonal().mean()).sqrt()


def cheapest_set(own, weight_OI, removed, x_SI=None, e_SO=None):
    """The cost of removing these channels if all others are refitted from scratch, by torch's own least squares.

    x_SI, e_SO: the tokens and what the output lacks for each; None: it lacks nothing, and the Hessian is enough.
    """
    kept = kept_of(CHANNELS, removed)
    if x_SI is None:
        root_II = torch.linalg.cholesky(damped(own.hessian_II, 0.01)).mT  # |W root^T|^2 = W H W^T
        wanted = root_II @ weight_OI.mT
    else:  # damped towards the old weights, by rows that ask for these
        old_II = ridge(own, range(CHANNELS)) * torch.eye(CHANNELS, dtype=x_SI.dtype)
        root_II = torch.cat([x_SI, old_II])
        wanted = torch.cat([x_SI @ weight_OI.mT + e_SO, old_II @ weight_OI.mT])
    solution_KO = torch.linalg.lstsq(root_II[:, kept], wanted).solution
    return float((root_II[:, kept] @ solution_KO - wanted).square().sum())


@pytest.mark.parametrize("seed", range(4))
def test_obs_removes_what_costs_least_after_a_full_refit_of_all_others(seed):
    _, weight_OI, _, _, own, _ = example(seed)
    removed = []
    for _ in range(CHANNELS - 1):
        left = kept_of(CHANNELS, removed)
        removed.append(min(left, key=lambda one: cheapest_set(own, weight_OI, [*removed, one])))
    assert by_obs(own, weight_OI, CHANNELS - 1, batch=1).tolist() == removed
    by_weight = lowest(by_contribution(own.hessian_II, weight_OI), CHANNELS - 1).tolist()
    assert by_weight != removed


@pytest.mark.parametrize("seed", range(4))
def test_obs_removes_what_the_fit_to_the_target_needs_least(seed):
    x_SI, weight_OI, _, e_SO, own, towards = example(seed)
    e_SO = e_SO + x_SI[:, seed : seed + 1] * torch.randn(OUTPUTS, dtype=x_SI.dtype)
    towards = towards._replace(error_OI=e_SO.mT @ x_SI)
    removed = []
    for _ in range(CHANNELS - 1):
        costs = {one: cheapest_set(own, weight_OI, [*removed, one], x_SI, e_SO) for one in kept_of(CHANNELS, removed)}
        removed.append(min(costs, key=costs.__getitem__))
    assert by_obs(towards, weight_OI, CHANNELS - 1, batch=1).tolist() == removed
    assert by_obs(own, weight_OI, CHANNELS - 1, batch=1).tolist() != removed


def test_batches_are_those_of_the_costs_before_them():
    _, weight_OI, _, _, own, _ = example()
    first = by_obs(own, weight_OI, 3, batch=3).tolist()
    single = sorted(range(CHANNELS), key=lambda one: cheapest_set(own, weight_OI, [one]))
    assert first == single[:3]
    second = by_obs(own, weight_OI, 6, batch=3).tolist()[3:]
    left = kept_of(CHANNELS, first)
    assert second == sorted(left, key=lambda one: cheapest_set(own, weight_OI, [*first, one]))[:3]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_orders_are_nested(batch):
    _, weight_OI, _, _, own, _ = example()
    whole = by_obs(own, weight_OI, 9, batch=batch).tolist()
    assert len(set(whole)) == 9
    for count in range(10):
        assert by_obs(own, weight_OI, count, batch=batch).tolist() == whole[:count]
    assert by_chance(9, 4, "0 a").tolist() == by_chance(9, 9, "0 a").tolist()[:4] != by_chance(9, 4, "0 b").tolist()


def test_channels_that_are_never_active_go_first_and_their_weights_stay():
    x_SI, weight_OI, *_ = example()
    x_SI[:, [2, 7]] = 0
    own = Inputs(x_SI.mT @ x_SI, x_SI.sum(0), float(TOKENS), TOKENS)
    assert set(by_obs(own, weight_OI, 2, batch=1).tolist()) == {2, 7}
    kept = [0, 1, 2, 3, 7]
    fitted = fit(own, weight_OI, None, kept)
    assert torch.equal(fitted.weight_OK[:, [2, 4]], weight_OI[:, [2, 7]])
    none = Inputs(torch.zeros_like(own.hessian_II), torch.zeros_like(own.sum_I), 0.0, 0)
    assert torch.equal(fit(none, weight_OI, None, kept).weight_OK, weight_OI[:, kept])
    assert torch.equal(by_obs(none, weight_OI, 9, batch=1), lowest(weight_OI.norm(dim=0), 9))


@pytest.mark.parametrize("aims", [False, True], ids=["own", "dense"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("tokens", "damping"), [(60, 0.01), (5, 0.01), (60, 2.0)])  # with 5 tokens, damping decides
def test_the_fit_is_that_of_torchs_least_squares_with_rows_for_the_damping(aims, biased, tokens, damping):
    x_SI, weight_OI, bias_O, e_SO, own, towards = example(tokens=tokens)
    kept = [0, 2, 3, 6, 9]
    fitted = fit(towards if aims else own, weight_OI, bias_O if biased else None, kept, damping)
    target_SO = x_SI @ weight_OI.mT + (bias_O if biased else 0) + (e_SO if aims else 0)
    x_SK = x_SI[:, kept]
    if biased:  # the damping is that of inputs without their means; a column of ones is the intercept
        root = (damping * (x_SK - x_SK.mean(0)).square().sum(0).mean()).sqrt()
        x_SK = torch.cat([x_SK, torch.ones(tokens, 1, dtype=torch.float64)], 1)
    else:
        root = ridge(own, kept, damping)
    rows_KK = root * torch.eye(len(kept), x_SK.shape[1], dtype=torch.float64)
    wanted = torch.cat([target_SO, root * weight_OI[:, kept].mT])
    solution = torch.linalg.lstsq(torch.cat([x_SK, rows_KK]), wanted).solution
    torch.testing.assert_close(fitted.weight_OK, solution[: len(kept)].mT, rtol=1e-8, atol=1e-8)
    if biased:
        torch.testing.assert_close(fitted.bias_O, solution[-1], rtol=1e-8, atol=1e-8)
    else:
        assert fitted.bias_O is None


@pytest.mark.parametrize("aims", [False, True], ids=["own", "dense"])
@pytest.mark.parametrize("biased", [False, True])
def test_damping_is_the_one_with_the_least_error_on_tokens_that_the_fit_left_out(aims, biased):
    kept, chosen = [0, 2, 3, 6, 9], set()
    for seed in range(12):
        x_SI, weight_OI, bias_O, e_SO, own, towards = example(seed, tokens=10)
        lacks_SO = e_SO if aims else torch.zeros(10, 1, dtype=torch.float64)
        inputs, held = towards if aims else own, Held(x_SI[::3], lacks_SO[::3])
        made = fit(inputs._replace(held=held), weight_OI, bias_O if biased else None, kept, None)
        target_SO = x_SI @ weight_OI.mT + lacks_SO
        if biased:  # what the intercept makes up for is taken off all tokens first
            x_SI, target_SO = x_SI - x_SI.mean(0), target_SO - target_SO.mean(0)
        x_SK, left = x_SI[:, kept], [token for token in range(10) if token % 3]
        errors = {}
        for damping in DAMPINGS:
            root = (damping * x_SK[left].square().sum(0).mean()).sqrt()
            rows_SK = torch.cat([x_SK[left], root * torch.eye(5, dtype=torch.float64)])
            wanted = torch.cat([target_SO[left], root * weight_OI[:, kept].mT])
            solution_KO = torch.linalg.lstsq(rows_SK, wanted).solution
            errors[damping] = float((x_SK[::3] @ solution_KO - target_SO[::3]).square().sum())
        assert made.damping == min(errors, key=errors.__getitem__)
        again = fit(inputs, weight_OI, bias_O if biased else None, kept, made.damping)
        torch.testing.assert_close(made.weight_OK, again.weight_OK)  # the fit itself has all tokens
        chosen.add(made.damping)
    assert len(chosen) > 2


def test_held_out_sequences_are_spread_over_the_batches_and_take_little_memory():
    def held(shapes, channels=256):
        found = held_out([Batch(torch.zeros(shape, dtype=torch.long)) for shape in shapes], channels)
        assert [tuple(mask.shape) for mask in found] == shapes
        assert all(bool((mask == mask[:, :1]).all()) for mask in found)  # whole sequences
        return [int(mask[:, 0].sum()) for mask in found]

    assert held([(16, 32), (8, 64)]) == [2, 1] and held([(1, 9)]) == [0] and held([(1, 9), (1, 9)]) == [0, 1]
    assert held([(4, 512)] * 16) == [0, 0, 1, 0] * 4 and held([(4, 512)] * 16, 16_384) == [0, 1] * 8


@pytest.mark.parametrize("aims", [False, True], ids=["own", "dense"])
@pytest.mark.parametrize("biased", [False, True])
def test_the_error_is_that_of_the_outputs(aims, biased):
    x_SI, weight_OI, bias_O, e_SO, own, towards = example()
    kept, inputs, bias = [1, 4, 5], towards if aims else own, bias_O if biased else None
    for made in (fit(inputs, weight_OI, bias, kept), cut(weight_OI, bias, kept)):
        old_SO, new_SO = x_SI @ weight_OI.mT, x_SI[:, kept] @ made.weight_OK.mT
        lacks_SO = new_SO - old_SO - (e_SO if aims else 0)
        if biased:
            old_SO, lacks_SO = old_SO - old_SO.mean(0), lacks_SO - lacks_SO.mean(0)
        expected = float(lacks_SO.square().sum() / old_SO.square().sum())
        assert relative_error(inputs, weight_OI, bias, made, kept) == pytest.approx(expected, rel=1e-9)


def test_scores_of_contribution_and_fluctuation_are_those_of_their_definitions():
    x_SI, weight_OI, _, _, own, _ = example()
    parts_SOI = x_SI[:, None] * weight_OI  # what each channel adds to each output of each token
    torch.testing.assert_close(by_contribution(own.hessian_II, weight_OI), parts_SOI.square().sum((0, 1)).sqrt())
    varying_SOI = parts_SOI - parts_SOI.mean(0)
    torch.testing.assert_close(by_fluctuation(own, weight_OI), varying_SOI.square().sum(1).mean(0))
    assert lowest(torch.tensor([3.0, 1, 1, 0]), 3).tolist() == [3, 1, 2]
