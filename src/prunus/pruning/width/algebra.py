"""Which channels of a feed-forward network are removed, and the fit of what is left: pure functions.

A channel is one input of the network's last Linear, down. What its removal costs is measured by H, the weighted sum
over tokens of x x^T of that input, and W, the Linear's weight. Shapes: I channels, K kept ones, B of a batch; O
outputs.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prunus.errors import PrunusError

# Channels up to which matrices are float64; wider ones take float32: half of the memory and time. The damped H has a
# condition number of at most 100 I. Up to 4,864 channels both choose the same (docs/measurements/width.md).
WIDEST = 8_192
DAMPING = 0.01  # share of the mean diagonal of H that is added to its diagonal
RETRIES = 3  # how many times damping is multiplied by 10 where H stays singular
# Updates are exact after every 256th part of the channels; after more, choices are worse (docs/measurements/width.md).
BATCHES = 256


class Inputs(NamedTuple):
    """What calibration tells of the inputs of a down Linear.

    hessian_II: H. sum_I: weighted sum of the inputs. weight: sum of the weights of tokens. tokens: their number.
    error_OI: sum of e x^T and error_O: sum of e, where e is what a token's output lacks from its target; None where
    the target is the Linear's own output. energy: sum of |e|^2.
    """

    hessian_II: Tensor
    sum_I: Tensor
    weight: float
    tokens: int
    error_OI: Tensor | None = None
    error_O: Tensor | None = None
    energy: float = 0.0

    def centred(self) -> "Inputs":
        """The same without the means, which an intercept makes up for."""
        count = max(self.weight, 1e-300)
        hessian_II = self.hessian_II - torch.outer(self.sum_I, self.sum_I / count)
        if self.error_OI is None or self.error_O is None:
            return self._replace(hessian_II=hessian_II)
        error_OI = self.error_OI - torch.outer(self.error_O, self.sum_I / count)
        energy = self.energy - float(self.error_O.square().sum()) / count
        return self._replace(hessian_II=hessian_II, error_OI=error_OI, energy=energy)


def precision(channels: int) -> torch.dtype:
    """The dtype in which matrices with this number of channels are computed."""
    return torch.float64 if channels <= WIDEST else torch.float32


def damped(hessian_II: Tensor, damping: float = DAMPING) -> Tensor:
    """A copy of H with a share of its mean diagonal added to the diagonal; the identity where H is all 0.

    A channel that is 0 on every token thus costs least of all.
    """
    mean = float(hessian_II.diagonal().mean())
    if not mean:
        return torch.eye(len(hessian_II), dtype=hessian_II.dtype, device=hessian_II.device)
    hessian_II = hessian_II.clone()
    hessian_II.diagonal().add_(damping * mean)
    return hessian_II


def factor(hessian_II: Tensor) -> Tensor:
    """The lower Cholesky factor of the damped H, with up to 1000 times the damping where H is singular."""
    for attempt in range(RETRIES + 1):
        lower_II, failed = torch.linalg.cholesky_ex(damped(hessian_II, DAMPING * 10**attempt))
        if not int(failed):
            return lower_II
    raise PrunusError(
        f"the Hessian of {len(hessian_II)} channels stays singular even with damping {DAMPING * 10**RETRIES:g}; use"
        " more or other calibration text, or --method wanda --no-fit"
    )


def by_obs(hessian_II: Tensor, weight_OI: Tensor, count: int, batch: int | None = None) -> Tensor:
    """The first `count` channels to remove, each the one whose removal costs least once all others are updated.

    This is Optimal Brain Surgeon (Hassibi & Stork 1992) for columns, as in ZipLM (Kurtic et al. 2023,
    arXiv:2302.04089): without channel j the output changes by |w_j|^2 / (H^-1)_jj, if the weights of all other channels
    are updated. The order is nested: that of a smaller count is the beginning of that of a larger one. Between two
    updates the `batch` channels with the least cost are removed; None: one in BATCHES.
    """
    batch = batch or max(1, len(hessian_II) // BATCHES)
    inverse_II = torch.cholesky_inverse(factor(hessian_II))
    weight_OI = weight_OI.to(inverse_II.dtype, copy=True)
    alive_I = torch.ones(len(inverse_II), dtype=torch.bool, device=inverse_II.device)
    order: list[Tensor] = []
    for done in range(0, count, batch):
        cost_I = weight_OI.square().sum(0) / inverse_II.diagonal().clamp(min=torch.finfo(inverse_II.dtype).tiny)
        cost_I[~alive_I] = torch.inf
        order.append(cost_I.argsort(stable=True)[: min(batch, count - done)])
        alive_I[order[-1]] = False
        if done + batch < count:
            _remove(inverse_II, weight_OI, order[-1])
    return torch.cat(order) if order else torch.zeros(0, dtype=torch.long)


def _remove(inverse_II: Tensor, weight_OI: Tensor, gone_B: Tensor) -> None:
    """Update the inverse of H and the weights for the removal of some channels, in place."""
    rows_BI = torch.linalg.solve(inverse_II[gone_B][:, gone_B], inverse_II[gone_B])
    weight_OI.addmm_(weight_OI[:, gone_B], rows_BI, alpha=-1)
    inverse_II.addmm_(inverse_II[:, gone_B], rows_BI, alpha=-1)
    inverse_II[gone_B, gone_B] = 1.0  # of channels that are gone, which would be 0


def by_contribution(hessian_II: Tensor, weight_OI: Tensor) -> Tensor:
    """(I,) norm over all tokens of what a channel adds to the output: Wanda for structures (An et al. 2024)."""
    return hessian_II.diagonal().sqrt() * weight_OI.norm(dim=0)


def by_fluctuation(inputs: Inputs, weight_OI: Tensor) -> Tensor:
    """(I,) variance of a channel times the square of its weights: FLAP (An et al. 2024, arXiv:2312.11983)."""
    count = max(inputs.weight, 1e-300)
    variance_I = inputs.hessian_II.diagonal() / count - (inputs.sum_I / count).square()
    return variance_I.clamp(min=0) * weight_OI.square().sum(0)


def lowest(score_I: Tensor, count: int) -> Tensor:
    """The `count` channels with the lowest scores, the lowest first, and of equal ones the first."""
    return score_I.argsort(stable=True)[:count]


def by_chance(channels: int, count: int, seed: str) -> Tensor:
    """`count` channels at random. seed: any text; orders of the same seed are nested."""
    return torch.tensor(random.Random(seed).sample(range(channels), channels)[:count], dtype=torch.long)


def kept_of(channels: int, removed: Sequence[int] | Tensor) -> list[int]:
    """The channels that stay, ascending."""
    gone = set(torch.as_tensor(removed).tolist())
    return [channel for channel in range(channels) if channel not in gone]


class Fitted(NamedTuple):
    """weight_OK, bias_O: of the down Linear; bias_O is None where it has none."""

    weight_OK: Tensor
    bias_O: Tensor | None


def fit(inputs: Inputs, weight_OI: Tensor, bias_O: Tensor | None, kept: Sequence[int]) -> Fitted:
    """The down Linear of the kept channels whose output is nearest to its target, damped towards its old weights.

    It minimises the sum over tokens of |W' x_K + b' - target|^2 + damping * |W' - W_K|^2, where the target is
    W x + b + e, and e what the output lacks (see Inputs). The intercept, where there is one, is not damped.
    """
    seen = inputs if bias_O is None else inputs.centred()
    kept_K = torch.tensor(kept, device=weight_OI.device)
    # What the output would lack with the old weights, times the kept inputs.
    gone_OI = weight_OI.index_fill(1, kept_K, 0)
    lacks_OK = (gone_OI @ seen.hessian_II)[:, kept_K]
    if seen.error_OI is not None:
        lacks_OK += seen.error_OI[:, kept_K]
    lower_KK = factor(seen.hessian_II[kept_K[:, None], kept_K])
    weight_OK = weight_OI[:, kept_K] + torch.cholesky_solve(lacks_OK.mT, lower_KK).mT
    return Fitted(weight_OK, intercept(inputs, weight_OI, bias_O, weight_OK, kept_K))


def cut(weight_OI: Tensor, bias_O: Tensor | None, kept: Sequence[int]) -> Fitted:
    """The down Linear of the kept channels as it is."""
    return Fitted(weight_OI[:, torch.tensor(kept, device=weight_OI.device)], bias_O)


def intercept(
    inputs: Inputs, weight_OI: Tensor, bias_O: Tensor | None, weight_OK: Tensor, kept_K: Tensor
) -> Tensor | None:
    """The bias with which the mean output is that of the target; None where the Linear has none."""
    if bias_O is None or not inputs.weight:
        return bias_O
    mean_I = inputs.sum_I / inputs.weight
    bias_O = bias_O + weight_OI @ mean_I - weight_OK @ mean_I[kept_K]
    return bias_O if inputs.error_O is None else bias_O + inputs.error_O / inputs.weight


def relative_error(
    inputs: Inputs, weight_OI: Tensor, bias_O: Tensor | None, fitted: Fitted, kept: Sequence[int]
) -> float:
    """Sum over tokens of |output - target|^2, as a share of that of the |output|^2 which the Linear gave.

    Outputs are taken without biases; of a Linear that has one, both are taken without their means.
    """
    seen = inputs if bias_O is None else inputs.centred()
    change_OI = -weight_OI
    change_OI[:, torch.tensor(kept, device=weight_OI.device)] += fitted.weight_OK
    change_OI = change_OI.contiguous()
    squared = (change_OI @ seen.hessian_II * change_OI).sum()
    if seen.error_OI is not None:
        squared = squared - 2 * (change_OI * seen.error_OI).sum() + seen.energy
    before = (weight_OI @ seen.hessian_II * weight_OI).sum()
    return float(squared / before) if before else 0.0
