"""Sample tokens from logits with temperature, top-k and top-p, with one stream of random numbers per row.

Shapes: R rows, V vocabulary. A row's token depends only on its own logits and its own random number, not on other rows
(whose number may change its logits by rounding: docs/protocol.md). Ids are sampled in vocabulary order, not by rank,
because nearly equal logits may swap ranks between batches, which must not change a draw.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.evaluation.requests import Request, Sampling

NUCLEUS_START = 128  # candidates that top-p considers first; more only if they do not suffice
DRAWN_AT_ONCE = 64


class Uniforms:
    """An endless stream of random numbers in [0, 1), determined by a seed and the same on every device."""

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
    """The ids that each request must not sample, as numbers (0 or -inf) that are added to its logits.

    Ids that the request bans or the tokenizer does not know are never sampled; before min_new_tokens, stops are not
    either. vocabulary: number of ids of the tokenizer. logits_RV: an example, for size, dtype and device.
    """

    def __init__(self, vocabulary: int, logits_RV: Tensor) -> None:
        self._vocabulary = vocabulary
        self._kinds: dict[tuple[frozenset[int], frozenset[int]], int] = {}  # (banned, stops) -> two rows of _bias_BV
        self._bias_BV = logits_RV.new_zeros(0, logits_RV.shape[1])

    def applied(self, logits_RV: Tensor, requests: Sequence[Request], counts: Sequence[int]) -> Tensor:
        """(R, V) logits, -inf for ids that a request must not sample next. counts: number of ids sampled so far."""
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
    """(R,) sampled token ids. uniform_R: one float64 in [0, 1) per row; may be None if the temperature is 0."""
    if sampling.temperature == 0:
        return logits_RV.argmax(-1)
    assert uniform_R is not None
    probability_RV = probabilities(logits_RV, sampling)
    # In float32 the tail of a large vocabulary would be lost in the sum.
    cumulative_RV = probability_RV.double().cumsum(-1)
    goal_R1 = uniform_R[:, None] * cumulative_RV[:, -1:]
    picked_R = torch.searchsorted(cumulative_RV, goal_R1, right=True).squeeze(-1)
    return picked_R.clamp_(max=logits_RV.shape[-1] - 1)


def probabilities(logits_RV: Tensor, sampling: Sampling) -> Tensor:
    """(R, V) float32 sampling weights, 0 outside top-k and top-p; a row's sum is at most 1.

    The order is that of transformers and vLLM: temperature, top-k, then top-p of the remaining ids. Ids that tie with
    the last one kept are also kept.
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
    """(R,) log p(token) and (R,) self-certainty KL(uniform || p), in float32.

    p = softmax(logits) is the model's own distribution, before bans, temperature, top-k and top-p.
    """
    logits_RV = logits_RV.float()
    log_sum_R = logits_RV.logsumexp(-1)
    picked_R = logits_RV.gather(-1, token_R[:, None]).squeeze(-1)
    return picked_R - log_sum_R, log_sum_R - logits_RV.mean(-1) - math.log(logits_RV.shape[-1])


def _nucleus(probability_RV: Tensor, top_p: float) -> Tensor:
    """(R, 1) the smallest probability in the smallest set of ids whose probabilities sum to at least top_p."""
    size = probability_RV.shape[-1]
    candidates = min(NUCLEUS_START, size)
    while True:
        top_RC = probability_RV.topk(candidates, dim=-1).values
        # An id belongs to the set if the sum of those before it is less than top_p.
        before_RC = top_RC.cumsum(-1) - top_RC
        inside_RC = before_RC < top_p
        if candidates == size or not bool(inside_RC[:, -1].any()):
            return top_RC.masked_fill(~inside_RC, torch.inf).amin(-1, keepdim=True)
        candidates = min(size, candidates * 8)
