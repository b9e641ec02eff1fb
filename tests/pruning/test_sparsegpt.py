"""SparseGPT against golden values, a plain float64 implementation, and exact least squares."""

import pytest
import torch
from method_cases import case, hessian_of, stats
from obs_by_hand import least_squares
from small_weights import TOKENS, WEIGHT

from prunus.errors import PrunusError
from prunus.pruning.calibration.statistics import Hessian
from prunus.pruning.masks import Target
from prunus.pruning.methods import METHODS, sparsegpt, with_update
from prunus.pruning.methods.sparsegpt import _adaptive, reconstruct


def golden(target, width=None):
    return reconstruct(WEIGHT, Hessian(2 * TOKENS.T @ TOKENS), _adaptive(target, 2), width, block=4)


@pytest.mark.parametrize(
    ("target", "width", "expected", "loss"),
    [
        (Target(0.5), None, [[0, -1.252159, 0.673997, 3.00283], [0, 0, 1.129942, 0]], 4.194775),
        (Target(0.5, "reference"), None, [[0, -1.252159, 0, 2.272013], [0, 0, 1.129942, 0]], 7.531338),
        (Target(0.0, pattern=(2, 4)), 4, [[0, -1.252159, 0, 2.272013], [-0.75, 0, 1.555608, 0]], 3.470704),
    ],
)
def test_golden_case(target, width, expected, loss):
    got = golden(target, width)
    torch.testing.assert_close(got, torch.tensor(expected), atol=2e-6, rtol=0)
    assert loss_of(got, WEIGHT, Hessian(2 * TOKENS.T @ TOKENS)) == pytest.approx(loss, abs=2e-5)


def loss_of(got, weight, hessian):
    """1/2 tr(D H D^T), for the change D of the weight and the damped Hessian H."""
    change = got.double() - weight.double()
    return 0.5 * (change @ hessian.damped(0.01, torch.float64) @ change.T).trace().item()


def test_factor_of_the_golden_case_and_its_meaning():
    """U_jj^2 is the first entry of the inverse of what is left of H from column j on."""
    hessian = Hessian(2 * TOKENS.T @ TOKENS)
    upper = hessian.inverse_factor
    expected = torch.tensor([1.183533, 0.461195, 0.260911, 0.465683])
    torch.testing.assert_close(upper.diagonal(), expected, atol=3e-6, rtol=0)
    damped = hessian.damped(0.01, torch.float64)
    for j in range(4):
        assert upper[j, j].item() ** 2 == pytest.approx(damped[j:, j:].inverse()[0, 0].item(), rel=1e-5)
    assert hessian.warning is None


@pytest.mark.parametrize("size", [1, 5, 200])
def test_factor_is_that_of_the_inverse(size):
    hessian = hessian_of(case((2, size))[1])
    upper = hessian.inverse_factor.double()
    expected = torch.linalg.cholesky(hessian.damped(0.01, torch.float64).inverse(), upper=True)
    torch.testing.assert_close(upper, expected, rtol=1e-3, atol=1e-6)
    assert torch.equal(upper, upper.triu())


def by_the_paper(weight, matrix, sparsity, block=128):
    """Column after column with a fresh inverse of what is left of H, in float64: no factor, no lazy batches."""
    weight, matrix = weight.double().clone(), matrix.double().clone()
    matrix += 0.01 * matrix.diagonal().mean() * torch.eye(len(matrix))
    loss, taken = 0.0, 0
    for start in range(0, weight.shape[1], block):
        end = min(start + block, weight.shape[1])
        inverses = [matrix[j:, j:].inverse() for j in range(start, end)]
        scores = [(weight[:, start + j] ** 2 / inverse[0, 0]).tolist() for j, inverse in enumerate(inverses)]
        places = [(row, j) for row in range(len(weight)) for j in range(end - start)]
        wanted = round(sparsity * len(weight) * end) - taken
        taken += wanted
        chosen = set(sorted(places, key=lambda place: scores[place[1]][place[0]])[:wanted])
        for j, inverse in enumerate(inverses):
            for row in range(len(weight)):
                if (row, j) in chosen:
                    change = weight[row, start + j] / inverse[0, 0]
                    loss += (0.5 * change * weight[row, start + j]).item()
                    weight[row, start + j :] -= change * inverse[0]
                    weight[row, start + j] = 0
    return weight, loss


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
@pytest.mark.parametrize("columns", [20, 140])
def test_equals_the_paper_column_by_column(columns, sparsity):
    weight, tokens = case((4, columns))
    expected, loss = by_the_paper(weight, tokens.T @ tokens, sparsity)
    hessian = hessian_of(tokens)
    got = reconstruct(weight, hessian, _adaptive(Target(sparsity), 4))
    assert torch.equal(got == 0, expected == 0)
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-4)
    assert loss_of(got, weight, hessian) == pytest.approx(loss, rel=1e-3)


def test_independent_inputs_need_no_update_and_score_weight_times_norm():
    weight, _ = case((5, 40))
    sizes = torch.rand(40, generator=torch.Generator().manual_seed(1)) + 0.5
    inputs = stats(torch.diag(sizes))
    got = sparsegpt.prune(weight, inputs, Target(0.4))
    score = weight**2 * (sizes**2 + 0.01 * (sizes**2).mean())
    lowest = score.flatten().sort().indices[:80]
    expected = weight.clone().flatten()
    expected[lowest] = 0
    torch.testing.assert_close(got.flatten(), expected)


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_update_lies_between_the_mask_alone_and_least_squares(name):
    weight, tokens = case((16, 96), seed=5)
    masked = METHODS[name].prune(weight, stats(tokens), Target(0.5))
    got = with_update(METHODS[name]).prune(weight, stats(tokens), Target(0.5))
    assert torch.equal(got == 0, masked == 0)
    best, matrix = least_squares(weight, tokens, masked != 0)
    losses = [((w.double() - weight) @ matrix @ (w.double() - weight).T).trace().item() for w in (best, got, masked)]
    assert losses[0] <= losses[1] * (1 + 1e-6)
    assert losses[1] < 0.9 * losses[2]


def test_loss_is_less_than_that_of_wanda_with_and_without_update():
    weight, tokens = case((16, 300), seed=6)
    matrix = tokens.double().T @ tokens.double()
    losses = []
    for method in (METHODS["sparsegpt"], with_update(METHODS["wanda"]), METHODS["wanda"]):
        change = method.prune(weight, stats(tokens), Target(0.6)).double() - weight
        losses.append((change @ matrix @ change.T).trace().item())
    assert losses == sorted(losses)


def test_singular_hessian_is_damped_more_and_said():
    """Eigenvalues of rounding error, as a Hessian in bfloat16 has: 1 % of the diagonal is not enough, 10 % is."""
    vectors = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0))).Q
    values = torch.linspace(1, 2, 20)
    values[0] = -0.05
    hessian = Hessian(vectors @ torch.diag(values) @ vectors.T, "block 3, mlp.down_proj")
    assert hessian.inverse_factor.isfinite().all()
    assert hessian.warning == "block 3, mlp.down_proj: the Hessian needed damping 0.1 instead of 0.01"


def test_hopeless_hessian_names_the_linear_and_what_to_do():
    hessian = Hessian(torch.tensor([[1.0, 1e4], [1e4, 1.0]]), "block 3, mlp.down_proj")
    with pytest.raises(
        PrunusError, match=r"block 3, mlp\.down_proj: .* stays singular .* use more or other calibration"
    ):
        _ = hessian.inverse_factor


def test_few_tokens_are_enough_with_damping():
    weight, tokens = case((4, 50))
    inputs = stats(tokens[:3])
    got = sparsegpt.prune(weight, inputs, Target(0.5))
    assert got.isfinite().all()
    assert inputs.hessian is not None and inputs.hessian.warning is None
