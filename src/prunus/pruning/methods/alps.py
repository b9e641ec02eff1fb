"""ALPS: least squares with a limited number of weights. ADMM finds the support, conjugate gradients refine the values.

Meng et al. 2024, arXiv:2406.07831; authors' code alps.py. O: output features, I: input features. Weights are transposed
and scaled so that the Hessian has a unit diagonal. ADMM runs in float32 (on a real LLM it reaches the same error in two
thirds of the time), the rest in float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from prunus.pruning.calibration.statistics import DAMPING, InputStats
from prunus.pruning.masks import Target, check_result, lowest_in_tensor, lowest_per_pattern, zeros_of

ITERATIONS = 300  # at most
RHO, MAX_RHO = 0.1, 1e6  # at first, and at most
CHECK_EVERY = 3  # iterations between updates of rho
SETTLED_AFTER, SETTLED = 30, 3e-4  # from this iteration on, stop if this share of the support changes, or less
CG_STEPS, CG_TOLERANCE = 10, 1e-4  # conjugate gradients: steps at most, and the relative residual at which they stop


def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
    """New weight with round(O * I * sparsity) zeros that approximately minimises the squared output error.

    Weights of dead inputs are zeroed first, up to that count. Rounding `reference` rounds the count down.
    """
    if inputs is None or inputs.hessian is None:
        raise ValueError("ALPS needs the Hessian of the inputs")
    zeros = zeros_of(target, tuple(weight_OI.shape), "tensor")
    if zeros == 0:
        return weight_OI.clone()
    hessian_II = inputs.hessian.damped(DAMPING, torch.float64)
    size_I = hessian_II.diagonal().sqrt()
    hessian_II /= torch.outer(size_I, size_I)
    dense_IO = (weight_OI.double() * size_I).T.contiguous()
    dead_I = inputs.hessian.dead_I

    def support(value_IO: Tensor) -> Tensor:
        """(I, O) true at the weights to keep: all but the `zeros` of smallest value."""
        score_OI = value_IO.square().masked_fill(dead_I[:, None], 0).T.contiguous().float()
        if target.pattern is None:
            return ~lowest_in_tensor(score_OI, zeros).T
        keep, width = target.pattern
        covered = len(value_IO) // width * width
        kept_IO = torch.ones_like(value_IO, dtype=torch.bool)
        kept_IO[:covered] = ~lowest_per_pattern(score_OI[:, :covered], width - keep, width).T
        return kept_IO

    target_IO = hessian_II @ dense_IO
    kept_IO, start_IO = _admm(hessian_II, dense_IO, target_IO, support)
    best_IO = _conjugate_gradients(hessian_II, target_IO, start_IO.double() * kept_IO, kept_IO)
    check_result(best_IO)
    return (best_IO / size_I[:, None]).T.contiguous().to(weight_OI.dtype)


def _admm(
    hessian_II: Tensor, dense_IO: Tensor, target_IO: Tensor, support: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The support (I, O; true: kept) and the dense solution (I, O) that it was chosen from.

    rho penalises the distance between the dense and the sparse solution. It grows while the support still changes, and
    the search ends once the support is stable. While rho has not been raised yet and the support hardly changes, the
    initial rho was too large: it is divided by 5, and the search starts again if the support has changed at all.
    """
    values_I, vectors_II = (part.float() for part in torch.linalg.eigh(hessian_II))
    dense_IO, target_IO = dense_IO.float(), target_IO.float()
    raised, rho = False, RHO
    free_IO, dual_IO = dense_IO, torch.zeros_like(dense_IO)
    kept_IO = before_IO = support(dense_IO)
    count = max(1, int(kept_IO.count_nonzero()))
    sparse_IO = dense_IO * kept_IO
    for iteration in range(1, ITERATIONS + 1):
        right_IO = target_IO - dual_IO + rho * sparse_IO
        free_IO = vectors_II @ ((vectors_II.T @ right_IO) / (values_I + rho)[:, None])
        pulled_IO = free_IO + dual_IO / rho
        kept_IO = support(pulled_IO)
        sparse_IO = pulled_IO * kept_IO
        dual_IO = dual_IO + rho * (free_IO - sparse_IO)
        if iteration % CHECK_EVERY:
            continue
        changed = int((kept_IO ^ before_IO).count_nonzero())
        before_IO = kept_IO
        if changed > 0.005 * count:
            rho, raised = min(rho * (1.3 if changed > 0.1 * count else 1.2), MAX_RHO), True
        elif changed and raised:
            rho = min(rho * 1.1, MAX_RHO)
        elif raised:
            break
        else:
            rho /= 5
            if changed:
                free_IO, dual_IO = dense_IO, torch.zeros_like(dense_IO)
                kept_IO = before_IO = support(dense_IO)
                sparse_IO = dense_IO * kept_IO
        if iteration >= SETTLED_AFTER and changed < SETTLED * count:
            break
    return support(free_IO), free_IO


def _conjugate_gradients(hessian_II: Tensor, target_IO: Tensor, start_IO: Tensor, kept_IO: Tensor) -> Tensor:
    """(I, O) start_IO improved by conjugate gradient steps on the kept weights, with all columns as one system."""
    value_IO = start_IO
    residual_IO = (target_IO - hessian_II @ value_IO) * kept_IO
    direction_IO, energy = residual_IO, residual_IO.square().sum()
    enough = CG_TOLERANCE**2 * energy
    for _ in range(CG_STEPS):
        if not bool(energy > enough):
            break
        image_IO = (hessian_II @ direction_IO) * kept_IO
        step = energy / (direction_IO * image_IO).sum()
        value_IO = value_IO + step * direction_IO
        residual_IO = residual_IO - step * image_IO
        energy, before = residual_IO.square().sum(), energy
        direction_IO = residual_IO + energy / before * direction_IO
    return value_IO
