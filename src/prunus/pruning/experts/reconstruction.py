"""How much the output of an expert layer changes without some experts, and the sets of experts that change it least.

The layer's own router, with the removed experts' logits at minus infinity, sends tokens to the remaining experts, as it
does in the model that is written. The error is the sum over some calibration tokens of |output - dense output|^2, as a
share of that of |dense output|^2. All experts are run on these tokens once, and every set is computed from the results.
Shapes: S tokens, K experts per token, E experts, D width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, combinations, product
from math import comb
from typing import Any

import torch
from torch import Tensor, nn

from prunus.checkpoint.experts import run_expert
from prunus.pruning.experts.criteria import Reconstruction
from prunus.pruning.experts.mixture import Mixture, Unremovable, masked

MOST_SETS = 1000  # of one size, that are all tried
TOKENS = 256  # on which outputs are compared


def reconstruct(
    block: nn.Module, mixture: Mixture, input_SD: Tensor, weight_S: Tensor, counts: Iterable[int]
) -> Reconstruction:
    """The best sets of these numbers of experts, and the greedy order, of which scores are the errors after removal.

    Experts that the smallest of these numbers leaves have a higher score than all others.

    input_SD: what the layer reads. weight_S: how much each token counts.
    """
    error = error_of(block, mixture, input_SD, weight_S)
    counts = sorted(set(counts))
    order, errors = greedy(mixture, error, min(counts))
    rising = torch.tensor(errors, dtype=torch.float64).cummax(0).values
    score_E = torch.full((mixture.count,), max(1.0, 2 * float(rising[-1])), dtype=torch.float64)
    score_E[order] = rising
    kept: dict[int, list[int]] = {}
    for count in counts:
        by_order = sorted(set(range(mixture.count)) - set(order[: mixture.count - count]))
        kept[count] = exact(mixture, error, count, by_order) if sets_of(mixture, count) <= MOST_SETS else by_order
    return Reconstruction(score_E, kept)


def greedy(mixture: Mixture, error: Callable[[Sequence[int]], float], least: int) -> tuple[list[int], list[float]]:
    """(experts in the order of their removal, until `least` are left; the error after each removal).

    With groups, one is removed from each group before another one is removed from any.
    """
    left, order, errors = list(range(mixture.count)), [], []
    size = mixture.count // mixture.groups
    while len(left) > least:
        sizes = [sum(e // size == group for e in left) for group in range(mixture.groups)]
        able = [expert for expert in left if sizes[expert // size] == max(sizes)]
        trials = {expert: error([e for e in left if e != expert]) for expert in able}
        worst = min(able, key=trials.__getitem__)
        left.remove(worst)
        order.append(worst)
        errors.append(trials[worst])
    return order, errors


def exact(mixture: Mixture, error: Callable[[Sequence[int]], float], count: int, first: Sequence[int]) -> list[int]:
    """The set of `count` experts with the least error; of equal ones the first set, then lower numbers."""
    return list(min((tuple(first), *all_sets(mixture, count)), key=error))


def all_sets(mixture: Mixture, count: int) -> Iterator[tuple[int, ...]]:
    """All sets of `count` experts with the same number in each group."""
    size, each = mixture.count // mixture.groups, count // mixture.groups
    starts = range(0, mixture.count, size)
    parts = [combinations(range(start, start + size), each) for start in starts]
    return (tuple(chain.from_iterable(part)) for part in product(*parts))


def sets_of(mixture: Mixture, count: int) -> int:
    """Number of such sets."""
    return comb(mixture.count // mixture.groups, count // mixture.groups) ** mixture.groups


def error_of(
    block: nn.Module, mixture: Mixture, input_SD: Tensor, weight_S: Tensor
) -> Callable[[Sequence[int]], float]:
    """The relative error of the layer's output as a function of the experts that are kept."""
    layer, experts = block.get_submodule(mixture.layer), block.get_submodule(mixture.experts)
    with _routing_only(experts) as seen:
        layer(input_SD[None])
    hidden_SD, index_SK, gate_SK = seen.pop()
    table_ESD = torch.stack([run_expert(experts, e, hidden_SD)[1].float() for e in range(mixture.count)])
    token_S1 = torch.arange(len(hidden_SD), device=hidden_SD.device)[:, None]

    def output(index_SK: Tensor, gate_SK: Tensor) -> Tensor:
        return (table_ESD[index_SK, token_S1] * gate_SK.float()[..., None]).sum(1).double()

    dense_SD, weight_S = output(index_SK, gate_SK), weight_S.double().to(hidden_SD.device)
    energy = float((dense_SD.square().sum(1) * weight_S).sum())

    def error(kept: Sequence[int]) -> float:
        removed = sorted(set(range(mixture.count)) - set(kept))
        with _routing_only(experts) as seen, masked(block, mixture, removed) as mode:
            layer(input_SD[None])
        if not mode.seen:
            raise Unremovable(f"block {mixture.index}: its router's logits cannot be observed; use another method")
        difference_SD = output(*seen[0][1:]) - dense_SD
        return float((difference_SD.square().sum(1) * weight_S).sum()) / max(energy, 1e-30)

    return error


@contextmanager
def _routing_only(experts: Any) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Meanwhile, the experts compute nothing, and the arguments of each call are collected."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(hidden_SD: Tensor, index_SK: Tensor, gate_SK: Tensor) -> Tensor:
        seen.append((hidden_SD, index_SK, gate_SK))
        return torch.zeros_like(hidden_SD)

    experts.forward = forward
    try:
        yield seen
    finally:
        del experts.__dict__["forward"]
