"""ALPS: least squares with a limit on how many weights there are, by ADMM and then conjugate gradients on what is kept.

Meng et al. 2024, arXiv:2406.07831; authors' code alps.py. O: output features, I: input features. Weights are transposed
and scaled so that the Hessian has a unit diagonal. The search for what to keep runs in float32 (on a real LLM it ends
at the same error, in two thirds of the time), the rest in float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from prunus.declarations import Method
from prunus.pruning.calibration.hessian import DAMPING
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target, lowest_in_tensor, lowest_per_pattern, zeros_of

FIRST_RHO, MOST_RHO = 0.1, 1e6
ITERATIONS, CHECK_EVERY, POLISHING = 300, 3, 10
SETTLED_AFTER, SETTLED, TOLERANCE = 30, 3e-4, 1e-4


def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
    """New weight with round(O * I * sparsity) zeros that nearly has the least squared output error.

    Dead inputs go first, but no more of them than wanted. Rounding `reference` rounds the count down.
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
        """True at what is kept."""
        score_OI = value_IO.square().masked_fill(dead_I[:, None], 0).T.contiguous().float()
        if target.pattern is None:
            return ~lowest_in_tensor(score_OI, zeros).T
        keep, width = target.pattern
        covered = len(value_IO) // width * width
        kept_IO = torch.ones_like(value_IO, dtype=torch.bool)
        kept_IO[:covered] = ~lowest_per_pattern(score_OI[:, :covered], width - keep, width).T
        return kept_IO

    wanted_IO = hessian_II @ dense_IO
    kept_IO, start_IO = _admm(hessian_II, dense_IO, wanted_IO, support)
    best_IO = _polished(hessian_II, wanted_IO, start_IO.double() * kept_IO, kept_IO)
    return (best_IO / size_I[:, None]).T.contiguous().to(weight_OI.dtype)


def _admm(
    hessian_II: Tensor, dense_IO: Tensor, wanted_IO: Tensor, support: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """What to keep, and the values (I, O) that it was chosen by.

    rho pulls the free solution to the sparse one: it grows while what is kept still changes, and the search ends when
    that has settled. Where rho begins so large that nothing ever changed, it begins anew with a fifth.
    """
    values_I, vectors_II = (part.float() for part in torch.linalg.eigh(hessian_II))
    dense_IO, wanted_IO = dense_IO.float(), wanted_IO.float()
    rho, raised = FIRST_RHO, False
    free_IO, dual_IO = dense_IO, torch.zeros_like(dense_IO)
    kept_IO = before_IO = support(dense_IO)
    count = max(1, int(kept_IO.count_nonzero()))
    sparse_IO = dense_IO * kept_IO
    for iteration in range(1, ITERATIONS + 1):
        right_IO = wanted_IO - dual_IO + rho * sparse_IO
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
            rho, raised = min(rho * (1.3 if changed > 0.1 * count else 1.2), MOST_RHO), True
        elif changed and raised:
            rho = min(rho * 1.1, MOST_RHO)
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


def _polished(hessian_II: Tensor, wanted_IO: Tensor, start_IO: Tensor, kept_IO: Tensor) -> Tensor:
    """Conjugate gradient steps on the kept weights alone, all columns as one system."""
    value_IO = start_IO
    residual_IO = (wanted_IO - hessian_II @ value_IO) * kept_IO
    direction_IO, energy = residual_IO, residual_IO.square().sum()
    enough = TOLERANCE**2 * energy
    for _ in range(POLISHING):
        if not bool(energy > enough):
            break
        image_IO = (hessian_II @ direction_IO) * kept_IO
        step = energy / (direction_IO * image_IO).sum()
        value_IO = value_IO + step * direction_IO
        residual_IO = residual_IO - step * image_IO
        energy, before = residual_IO.square().sum(), energy
        direction_IO = residual_IO + energy / before * direction_IO
    return value_IO


DECLARATION = Method(
    name="alps",
    source="Meng et al. 2024, arXiv:2406.07831",
    description="least squares under a limit on weights, by ADMM; slow (eigenvalues in float64)",
    needs="hessian",
    group="tensor",
    ranks=False,
    updates=True,
    prune=prune,
)
