"""Pick tokens from logits: temperature, top-k, top-p, with one stream of random numbers per row.

Shapes: R rows, V vocabulary. Every row is picked by its own logits and its own random number, so what a row draws does
not depend on its neighbours' (rounding may make its logits do so: docs/protocol.md). Ids stay in vocabulary order:
near-equal logits may swap ranks from one batch to another, and a draw must not notice.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.evaluation.requests import Request, Sampling

NUCLEUS_START = 128  # candidates looked at first for top-p; a full sort only where they do not suffice
DRAWN_AT_ONCE = 64


class Uniforms:
    """An endless stream of numbers in [0, 1) that follows from a seed, the same on every device."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn: list[float] = []

    def next(self) -> float:
        """The next number."""
        if not self._drawn:
            drawn = torch.rand(DRAWN_AT_ONCE, generator=self._generator, dtype=torch.float64)
            self._drawn = drawn.tolist()[::-1]
        return self._drawn.pop()


class Bans:
    """The ids that each request must not sample, as numbers to add to its logits: 0, or -inf.

    Never: what the request bans, and ids that the tokenizer does not know. Before min_new_tokens: its stops as well.
    """

    def __init__(self, vocabulary: int, logits_RV: Tensor) -> None:
        """vocabulary: how many ids the tokenizer knows. logits_RV: of which size, type and device the numbers are."""
        self._vocabulary = vocabulary
        self._kinds: dict[tuple[frozenset[int], frozenset[int]], int] = {}  # (banned, stops) -> two rows of _bias_BV
        self._bias_BV = logits_RV.new_zeros(0, logits_RV.shape[1])

    def applied(self, logits_RV: Tensor, requests: Sequence[Request], counts: Sequence[int]) -> Tensor:
        """(R, V) logits with -inf where a request's next id must not be. counts: ids sampled so far."""
        chosen = [
            2 * self._kind(request) + (count < request.min_new_tokens)
            for request, count in zip(requests, counts, strict=True)
        ]
        return logits_RV + self._bias_BV[torch.tensor(chosen, device=logits_RV.device)]

    def _kind(self, request: Request) -> int:
        key = request.banned, request.stops
        if key not in self._kinds:
            self._kinds[key] = len(self._kinds)
            bias_2V = self._bias_BV.new_zeros(2, self._bias_BV.shape[1], device="cpu")
            bias_2V[:, self._vocabulary :] = -torch.inf
            bias_2V[0, sorted(request.banned)] = -torch.inf
            bias_2V[1, sorted(request.banned | request.stops)] = -torch.inf
            self._bias_BV = torch.cat([self._bias_BV, bias_2V.to(self._bias_BV.device)])
        return self._kinds[key]


def pick(logits_RV: Tensor, sampling: Sampling, uniform_R: Tensor | None) -> Tensor:
    """(R,) token ids. uniform_R: float64 in [0, 1), one a row; not used, so may be None, where temperature is 0."""
    if sampling.temperature == 0:
        return logits_RV.argmax(-1)
    assert uniform_R is not None
    probability_RV = probabilities(logits_RV, sampling)
    # Float64, or the tail of a large vocabulary would be lost in the sum.
    cumulative_RV = probability_RV.double().cumsum(-1)
    goal_R1 = uniform_R[:, None] * cumulative_RV[:, -1:]
    picked_R = torch.searchsorted(cumulative_RV, goal_R1, right=True).squeeze(-1)
    return picked_R.clamp_(max=logits_RV.shape[-1] - 1)


def probabilities(logits_RV: Tensor, sampling: Sampling) -> Tensor:
    """(R, V) float32 weights of the ids, 0 outside top-k and top-p; they add up to at most 1.

    The order is that of transformers and vLLM: temperature, top-k, then top-p over what is left. Ids that tie with the
    last one kept are kept.
    """
    scaled_RV = logits_RV.float() / sampling.temperature
    if 0 < sampling.top_k < scaled_RV.shape[-1]:
        least_R1 = scaled_RV.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled_RV = scaled_RV.masked_fill(scaled_RV < least_R1, -torch.inf)
    probability_RV = scaled_RV.softmax(-1)
    if sampling.top_p < 1:
        probability_RV = probability_RV.masked_fill(probability_RV < _nucleus(probability_RV, sampling.top_p), 0.0)
    return probability_RV


def confidence(logits_RV: Tensor, token_R: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) log p(token) and (R,) KL(uniform || p), in float32, with p = softmax(logits): of the model itself, whatever
    was banned, cut off or made warmer to pick the token."""
    logits_RV = logits_RV.float()
    log_sum_R = logits_RV.logsumexp(-1)
    picked_R = logits_RV.gather(-1, token_R[:, None]).squeeze(-1)
    return picked_R - log_sum_R, log_sum_R - logits_RV.mean(-1) - math.log(logits_RV.shape[-1])


def _nucleus(probability_RV: Tensor, top_p: float) -> Tensor:
    """(R, 1) the least probability inside the smallest set whose sum reaches top_p."""
    size = probability_RV.shape[-1]
    candidates = min(NUCLEUS_START, size)
    while True:
        top_RC = probability_RV.topk(candidates, dim=-1).values
        # An id belongs to the set if those before it have not reached top_p yet.
        before_RC = top_RC.cumsum(-1) - top_RC
        inside_RC = before_RC < top_p
        if candidates == size or not bool(inside_RC[:, -1].any()):
            return top_RC.masked_fill(~inside_RC, torch.inf).amin(-1, keepdim=True)
        candidates = min(size, candidates * 8)
