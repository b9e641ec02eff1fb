"""Rows that decode together: padded to one batch, or one by one where padding would change the results.

Models whose results padding would change are state-space and hybrid models, and models with positions built into
attention; they decode as in transformers' own code. Shapes: R rows, T tokens of a call, K columns of the cache,
H key-value heads, D head width, V vocabulary.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import deepcopy
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicLayer, PreTrainedConfig, PreTrainedModel

from prunus.checkpoint.device import sent
from prunus.checkpoint.resolve import one_line
from prunus.errors import PrunusError
from prunus.evaluation.requests import Request, Sampling, no_progress

GROW_BY = 256  # columns by which a full cache grows
# Limits of one forward pass over prompts: columns, which limits the memory of activations, and on a CPU tokens of all
# rows, so that a slow model shows progress every few seconds.
PREFILL_COLUMNS, PREFILL_TOKENS = 512, 1024


class GrowingLayer(DynamicLayer):
    """Keys and values of a block, in buffers with spare columns: a step writes one column and copies nothing."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append columns; returns all keys and values so far, without the spare columns."""
        both = key_states, value_states
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._buffers = [states[:, :, :0] for states in both]
            self._set_views(0)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if (lacking := end - self._buffers[0].shape[2]) > 0:
            more = -(-lacking // GROW_BY) * GROW_BY
            self._buffers = [functional.pad(buffer, (0, 0, 0, more)) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, both, strict=True):
            buffer[:, :, start:end] = states
        return self._set_views(end)

    def select(self, index_R: Tensor) -> None:
        """Keep these rows, in this order; a row that occurs more than once is copied."""
        self._buffers = [buffer.index_select(0, index_R) for buffer in self._buffers]
        self._set_views(self.get_seq_length())

    def _set_views(self, columns: int) -> tuple[Tensor, Tensor]:
        """Make keys and values views of the used columns of the buffers, and return them."""
        self.keys, self.values = keys, values = tuple(buffer[:, :, :columns] for buffer in self._buffers)
        return keys, values


class PaddedRows:
    """Sequences that a model reads as one batch, padded on the left; one step appends one id to each.

    own_masks: for models with full attention in every block, pass our own masks, which is faster than transformers'.
    on_tokens: as in Completer. most_columns: of the prompts per forward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[list[int]],
        own_masks: bool = True,
        on_tokens: Callable[[int, int], None] = no_progress,
        most_columns: int = PREFILL_COLUMNS,
    ) -> None:
        self.model, self.on_tokens = model, on_tokens
        self.device = model.device
        fitting = PREFILL_TOKENS // len(prompts) if self.device.type == "cpu" else PREFILL_COLUMNS
        self._prefill_columns = min(most_columns, max(1, fitting))
        config = model.config.get_text_config(decoder=True)
        self.layers = [GrowingLayer() for _ in range(config.num_hidden_layers)]
        # transformers 5.2x renamed this argument; the old name still works but raises a warning.
        names = inspect.signature(type(model).forward).parameters
        self._cache = {("cache" if "cache" in names else "past_key_values"): Cache(layers=[*self.layers])}
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self._wants_positions = "position_ids" in names
        # For other kinds of attention transformers makes the masks, which costs more per step.
        self._own_masks = own_masks and has_full_attention(config)
        width = max(map(len, prompts))
        ids_of_rows = [torch.tensor(ids, dtype=torch.long) for ids in prompts]
        self._prompt_RT = pad_sequence(ids_of_rows, batch_first=True, padding_side="left").to(self.device)
        self._pads_R = torch.tensor([width - len(ids) for ids in prompts], device=self.device)
        self._columns = 0
        self._bias_RK = self._padding_bias(width)

    def prefill(self) -> Tensor:
        """Read the prompts; returns (R, V) logits of the next tokens."""
        logits_RV = torch.empty(0)
        for ids_RT in self._prompt_RT.split(self._prefill_columns, dim=1):
            logits_RV = self._read(ids_RT)
            self.on_tokens(ids_RT.numel(), 0)
        del self._prompt_RT
        return logits_RV

    def step(self, tokens: Sequence[int | None]) -> Tensor:
        """Append one id to every row; returns (R, V) logits of the next tokens. None: for a row that is finished."""
        logits_RV = self._read(ids_of(tokens, self.device))
        self.on_tokens(0, sum(token is not None for token in tokens))
        return logits_RV

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row that occurs twice is copied."""
        index_R = sent(torch.tensor(rows), self.device)
        self._pads_R, self._bias_RK = self._pads_R[index_R], self._bias_RK[index_R]
        for layer in self.layers:
            if layer.is_initialized:  # the others use the keys and values of an earlier block
                layer.select(index_R)

    def _read(self, ids_RT: Tensor) -> Tensor:
        """Append these ids to every row; returns (R, V) logits of the next tokens."""
        start, end = self._columns, self._columns + ids_RT.shape[1]
        given = {**self._cache, **self._last_only, "attention_mask": self._mask(start, end)}
        if self._wants_positions:
            position_RT = torch.arange(start, end, device=self.device) - self._pads_R[:, None]
            given["position_ids"] = position_RT.clamp_(min=0)
        logits_RTV = self.model(input_ids=ids_RT, use_cache=True, **given).logits
        self._columns = end
        return logits_RTV[:, -1]

    def _mask(self, start: int, end: int) -> Tensor:
        """The attention mask of columns start to end: (R, 1, T, K) of our own, or (R, K) for transformers to expand."""
        if end > self._bias_RK.shape[1]:
            self._bias_RK = functional.pad(self._bias_RK, (0, GROW_BY))
        bias_RK = self._bias_RK[:, :end]
        if not self._own_masks:
            return bias_RK == 0
        if end - start == 1:
            return bias_RK[:, None, None]
        column_T, column_K = torch.arange(start, end, device=self.device), torch.arange(end, device=self.device)
        # A padding token attends to itself, because a token that attends to nothing would give NaN.
        seen_RTK = (column_K <= column_T[:, None]) & ((bias_RK == 0)[:, None] | (column_K == column_T[:, None]))
        return seen_RTK[:, None]

    def _padding_bias(self, columns: int) -> Tensor:
        """(R, K) numbers to add to attention scores: 0, and the lowest finite number for padding."""
        is_pad_RK = torch.arange(columns, device=self.device) < self._pads_R[:, None]
        dtype = self.model.dtype
        lowest = torch.finfo(dtype).min
        return torch.zeros(is_pad_RK.shape, dtype=dtype, device=self.device).masked_fill_(is_pad_RK, lowest)


def has_full_attention(config: PreTrainedConfig) -> bool:
    """Whether, according to the configuration, every block attends to all earlier tokens."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return all(getattr(config, name, None) is None for name in ("sliding_window", "attention_chunk_size"))


# Names of the cache argument in transformers' models.
CACHES = ("cache", "past_key_values", "cache_params", "state")
_PROMPT, _STEPS, _COLUMNS = 5, 4, 4
# Tolerated difference of logits relative to the largest logit, in float32 and in 16 bits.
_FLOAT32, _SIXTEEN_BITS = 1e-3, 0.05


class SeparateRows:
    """Sequences that a model reads in turn, without padding. on_tokens: as in Completer."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[list[int]],
        on_tokens: Callable[[int, int], None] = no_progress,
    ) -> None:
        self.model, self._prompts, self.on_tokens = model, prompts, on_tokens
        names = inspect.signature(type(model).forward).parameters
        self._cache = next((name for name in CACHES if name in names), None)
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self._wants_positions = "position_ids" in names
        self._lengths = [0] * len(prompts)
        self._caches: list[Any] = [None] * len(prompts)

    def prefill(self) -> Tensor:
        """Read the prompts; returns (R, V) logits of the next tokens.

        Each prompt is read in one pass, because some models cannot append more than one id to a cache.
        """
        logits: list[Tensor] = []
        for row, ids in enumerate(self._prompts):
            logits.append(self._read(row, sent(torch.tensor([ids]), self.model.device)))
            self.on_tokens(len(ids), 0)
        return torch.stack(logits)

    def step(self, tokens: Sequence[int | None]) -> Tensor:
        """Append one id to every row; returns (R, V) logits of the next tokens.

        None: for a row that is finished, which the model does not read; its logits are zeros.
        """
        logits: dict[int, Tensor] = {}
        ids_R1 = ids_of(tokens, self.model.device)
        for row, token in enumerate(tokens):
            if token is not None:
                logits[row] = self._read(row, ids_R1[row : row + 1])
                self.on_tokens(0, 1)
        none = torch.zeros_like(next(iter(logits.values())))
        return torch.stack([logits.get(row, none) for row in range(len(tokens))])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row that occurs twice is copied."""
        before, seen = self._caches, set[int]()
        self._lengths = [self._lengths[row] for row in rows]
        self._caches = [deepcopy(before[row]) if row in seen or seen.add(row) else before[row] for row in rows]

    def _read(self, row: int, ids_1T: Tensor) -> Tensor:
        """Append ids to a row; returns (V,) logits of the next token. PrunusError if the model returns no cache."""
        cache = self._caches[row]
        given = {} if cache is None else {str(self._cache): cache}
        start, self._lengths[row] = self._lengths[row], self._lengths[row] + ids_1T.shape[1]
        # As transformers' generate does, since some models cannot derive positions from their caches.
        if self._wants_positions:
            given["position_ids"] = torch.arange(start, self._lengths[row], device=self.model.device)[None]
        output = self.model(input_ids=ids_1T, use_cache=True, **self._options, **given)
        self._caches[row] = output.get(self._cache)
        if self._caches[row] is None:
            raise PrunusError(f"{self.model.config.model_type} returns no cache, so it cannot decode")
        return output.logits[0, -1]


Decoding = PaddedRows | SeparateRows  # sequences that decode together


def ids_of(tokens: Sequence[int | None], device: torch.device) -> Tensor:
    """(R, 1) the ids that rows read next, on the device; 0 for a finished row."""
    return sent(torch.tensor([token or 0 for token in tokens]), device)[:, None]


def rows_for(model: PreTrainedModel) -> Callable[..., Decoding]:
    """A constructor of rows for a model: PaddedRows if padding does not change the logits, else SeparateRows.

    The constructor takes prompts and on_tokens. The choice is made by decoding a few random tokens, with prompts in
    parts. Raises PrunusError if the model cannot decode at all, or if its logits with a cache differ from those
    without.
    """
    config, generator = model.config.get_text_config(decoder=True), torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (2 * _PROMPT + 2 * _STEPS,), generator=generator).tolist()
    prompts, steps = [ids[:_PROMPT], ids[_PROMPT : 2 * _PROMPT] + ids[:_PROMPT]], ids[2 * _PROMPT :]
    try:
        expected = _probe(SeparateRows(model, prompts), steps)
        whole = _read_at_once(model, prompts[0] + steps[::2])
    except (PrunusError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the model's own code
        raise PrunusError(f"{model.config.model_type} cannot decode token by token: {one_line(error)}") from error
    if not _alike(expected[-1, :1], whole):
        raise PrunusError(
            f"{model.config.model_type} computes other logits with a cache than without; its results cannot be trusted"
        )
    for own_masks in (True, False):
        try:
            if _alike(_probe(PaddedRows(model, prompts, own_masks, most_columns=_COLUMNS), steps), expected):
                return partial(PaddedRows, model, own_masks=own_masks)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: S112  the model's own code needs another cache, other masks, or no positions
            continue
    return partial(SeparateRows, model)


@torch.inference_mode()
def _probe(rows: Decoding, steps: Sequence[int]) -> Tensor:
    """(steps, R, V) logits of two rows, each extended by one id per step.

    Halfway the second row is replaced by a copy of the first.
    """
    logits = [rows.prefill()]
    for step in range(_STEPS):
        if step == _STEPS // 2:
            rows.select([0, 0])
        logits.append(rows.step(steps[2 * step : 2 * step + 2]))
    return torch.stack(logits)


@torch.inference_mode()
def _read_at_once(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """(1, V) logits of the token after ids, without a cache."""
    return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[:, -1]


def _alike(left: Tensor, right: Tensor) -> bool:
    """Whether the logits agree in most rows. Not all must: a router may send a token to another expert by rounding."""
    most = _FLOAT32 if left.dtype == torch.float32 else _SIXTEEN_BITS
    apart = (left - right).float().abs().amax(-1) / right.float().abs().amax(-1)
    return bool(apart.flatten().median() <= most) and not bool(apart.isnan().any())


# Sample tokens from logits with temperature, top-k and top-p, with one exponential number per token id.
# Shapes: R rows, V vocabulary, N ids of a row that may be sampled. The id with the least E / p is sampled, where E is
# an exponential number and p the probability of the id; each id then has the probability p. The numbers are a hash of
# the request's seed, the place in it, and the id, so a row's token depends only on its own logits, not on other rows
# (whose number may change its logits by rounding: docs/protocol.md). Two models, or two roundings of one, whose
# distributions differ by d in total variation sample different ids with a probability of at most 2 d / (1 + d);
# inverting cumulative sums has no such bound, since a change of one probability moves the boundaries of later ids.

NUCLEUS_START = 128  # candidates that top-p considers first; more only if they do not suffice
# SplitMix64 (Steele, Lea and Flood 2014): the step between numbers, and the factors of the function that mixes bits.
STEP, FIRST, SECOND = (n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def key_of(seed: int, place: int) -> int:
    """The key of the random numbers at a place of a request with this seed, 64 bits with a sign."""
    digest = hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def exponentials(key_R1: Tensor, id_RN: Tensor) -> Tensor:
    """(R, N) float64 exponential numbers of these ids, the same on every device but for last bits of the logarithm."""
    bits_RN = key_R1 + (id_RN + 1) * STEP  # integers of 64 bits wrap
    for shift, factor in ((30, FIRST), (27, SECOND), (31, None)):
        bits_RN ^= (bits_RN >> shift) & ((1 << (64 - shift)) - 1)  # >> repeats the sign
        bits_RN = bits_RN if factor is None else bits_RN.mul_(factor)
    bits_RN = (bits_RN >> 12) & ((1 << 52) - 1)
    return bits_RN.double().add_(0.5).mul_(2.0**-52).log_().neg_()


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
        return logits_RV + self._bias_BV[sent(torch.tensor(chosen), logits_RV.device)]

    def _kind(self, request: Request) -> int:
        key = request.banned, request.stops
        if key not in self._kinds:
            self._kinds[key] = len(self._kinds)
            bias_2V = self._bias_BV.new_zeros(2, self._bias_BV.shape[1], device="cpu")
            bias_2V[:, self._vocabulary :] = -torch.inf
            bias_2V[0, sorted(request.banned)] = -torch.inf
            bias_2V[1, sorted(request.banned | request.stops)] = -torch.inf
            self._bias_BV = torch.cat([self._bias_BV, sent(bias_2V, self._bias_BV.device)])
        return self._kinds[key]


def penalised(
    logits_RV: Tensor,
    repetition: float,
    presence: float,
    prompts: Sequence[Collection[int]],
    sampled: Sequence[Collection[int]],
) -> Tensor:
    """(R, V) float32 logits after the penalties of transformers and vLLM, in their order.

    repetition: of ids in prompt or completion, whose logits are divided by it, negative ones multiplied (Keskar et al.
    2019, arXiv:1909.05858). presence: taken off the logits of ids of the completion. prompts, sampled: of each row.
    """
    logits_RV = logits_RV.float()
    if repetition != 1:
        seen_RV = occurring(prompts, logits_RV) | occurring(sampled, logits_RV)
        less_RV = torch.where(logits_RV < 0, logits_RV * repetition, logits_RV / repetition)
        logits_RV = torch.where(seen_RV, less_RV, logits_RV)
    return logits_RV - presence * occurring(sampled, logits_RV) if presence else logits_RV


def occurring(ids: Sequence[Collection[int]], logits_RV: Tensor) -> Tensor:
    """(R, V) whether an id is among those of a row."""
    places = [row for row, of_row in enumerate(ids) for _ in of_row], list(chain.from_iterable(ids))
    row_N, id_N = sent(torch.tensor(places, dtype=torch.long), logits_RV.device)
    occurs_RV = torch.zeros_like(logits_RV, dtype=torch.bool)
    occurs_RV[row_N, id_N] = True
    return occurs_RV


def candidates_of_top_p(vocabulary: int) -> Iterator[int]:
    """Yield growing numbers of most likely ids among which top-p looks, for callers that stop once these suffice."""
    candidates = min(NUCLEUS_START, vocabulary)
    while candidates < vocabulary:
        yield candidates
        candidates = min(vocabulary, candidates * 8)
    yield vocabulary


def pick(
    logits_RV: Tensor, sampling: Sampling, key_R: Tensor | None, candidates: int, min_p: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """(R,) sampled token ids. key_R: of each row, by key_of; may be None if the temperature is 0.

    The other arguments and the second tensor are as for probabilities.
    """
    if sampling.temperature == 0:
        return logits_RV.argmax(-1), None
    assert key_R is not None
    probability_RV, enough_R = probabilities(logits_RV, sampling, candidates, min_p)
    if logits_RV.device.type != "cpu":
        id_1V = torch.arange(logits_RV.shape[-1], device=logits_RV.device)[None]
        return (probability_RV.double() / exponentials(key_R[:, None], id_1V)).argmax(-1), enough_R
    picked = []
    for probability_V, key in zip(probability_RV, key_R, strict=True):  # a row fits the cache; few ids may be left
        id_N = probability_V.nonzero().squeeze(-1)
        ratio_N = probability_V[id_N].double() / exponentials(key[None, None], id_N[None])[0]
        picked.append(id_N[ratio_N.argmax()])
    return torch.stack(picked), enough_R


def probabilities(
    logits_RV: Tensor, sampling: Sampling, candidates: int, min_p: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """(R, V) float32 sampling weights, 0 outside min-p, top-k and top-p; a row's sum is at most 1.

    The order is that of vLLM: temperature, min-p, top-k, then top-p of the remaining ids (transformers has min-p last).
    Ids that tie with the last kept id are also kept. candidates: the number of ids among which top-p looks. min_p: the
    smallest share of the highest probability. The second tensor (R,) says in which rows the candidates sufficed, so
    that values are copied from a GPU only once for a token; None: in all.
    """
    scaled_RV = logits_RV.float() / sampling.temperature
    if min_p > 0:
        probability_RV = scaled_RV.softmax(-1)
        least_R1 = min_p * probability_RV.amax(-1, keepdim=True)
        scaled_RV = scaled_RV.masked_fill(probability_RV < least_R1, -torch.inf)
    if 0 < sampling.top_k < scaled_RV.shape[-1]:
        least_R1 = scaled_RV.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled_RV = scaled_RV.masked_fill(scaled_RV < least_R1, -torch.inf)
    probability_RV = scaled_RV.softmax(-1)
    if sampling.top_p >= 1:
        return probability_RV, None
    least_R1, enough_R = _nucleus(probability_RV, sampling.top_p, candidates)
    return probability_RV.masked_fill(probability_RV < least_R1, 0.0), enough_R


def confidence(logits_RV: Tensor, token_R: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) log p(token) and (R,) self-certainty KL(uniform || p), in float32.

    p = softmax(logits) is the model's own distribution, before bans, temperature, top-k and top-p.
    """
    logits_RV = logits_RV.float()
    log_sum_R = logits_RV.logsumexp(-1)
    picked_R = logits_RV.gather(-1, token_R[:, None]).squeeze(-1)
    return picked_R - log_sum_R, log_sum_R - logits_RV.mean(-1) - math.log(logits_RV.shape[-1])


def _nucleus(probability_RV: Tensor, top_p: float, candidates: int) -> tuple[Tensor, Tensor | None]:
    """(R, 1) the smallest probability in the smallest set of ids whose probabilities sum to at least top_p.

    The second is as for probabilities.
    """
    top_RC = probability_RV.topk(candidates, dim=-1).values
    # An id belongs to the set if the sum of those before it is less than top_p.
    before_RC = top_RC.cumsum(-1) - top_RC
    inside_RC = before_RC < top_p
    least_R1 = top_RC.masked_fill(~inside_RC, torch.inf).amin(-1, keepdim=True)
    return least_R1, None if candidates == probability_RV.shape[-1] else ~inside_RC[:, -1]
