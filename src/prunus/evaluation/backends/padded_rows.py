"""Decode several sequences as one left-padded batch: key-value cache, positions and masks.

Shapes: R rows, T tokens of one call, K columns of the cache, H key-value heads, D head width, V vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicLayer, PreTrainedConfig, PreTrainedModel

from prunus.evaluation.requests import unheard
from prunus.sparse.sixteen_bits import compute_dtype

GROW_BY = 256  # columns by which a full cache grows
# Of prompts, per forward pass: the largest number of columns, which limits the activations, and on a CPU that of tokens
# in all rows, by which a slow model shows progress every few seconds.
PREFILL_COLUMNS, PREFILL_TOKENS = 512, 1024


class GrowingLayer(DynamicLayer):
    """Keys and values of one block, in a buffer with spare columns: a step writes one column and copies nothing."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers; transformers calls this with the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, heads, _, width = key_states.shape
        self._keys_RHKD = key_states.new_empty(rows, heads, 0, width)
        self._values_RHKD = value_states.new_empty(rows, heads, 0, value_states.shape[-1])
        self._set_views(0)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns; returns all keys and values so far, without the spare columns."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self._keys_RHKD.shape[2]:
            more = -(-(end - self._keys_RHKD.shape[2]) // GROW_BY) * GROW_BY
            self._keys_RHKD = functional.pad(self._keys_RHKD, (0, 0, 0, more))
            self._values_RHKD = functional.pad(self._values_RHKD, (0, 0, 0, more))
        self._keys_RHKD[:, :, start:end] = key_states
        self._values_RHKD[:, :, start:end] = value_states
        self._set_views(end)
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def select(self, index_R: Tensor) -> None:
        """Keep these rows, in this order; a row that occurs more than once is copied."""
        used = self.get_seq_length()
        self._keys_RHKD = self._keys_RHKD.index_select(0, index_R)
        self._values_RHKD = self._values_RHKD.index_select(0, index_R)
        self._set_views(used)

    def _set_views(self, columns: int) -> None:
        """Make keys and values views of the used columns of the buffers."""
        self.keys, self.values = self._keys_RHKD[:, :, :columns], self._values_RHKD[:, :, :columns]


class PaddedRows:
    """Sequences that a model reads as one batch, padded on the left; one step appends one id to each.

    own_masks: for models with full attention in every block, pass our own masks, which is faster than transformers'.
    on_tokens: as in Backend. most_columns: of the prompts per forward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[list[int]],
        own_masks: bool = True,
        on_tokens: Callable[[int, int], None] = unheard,
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
        self._cache: dict[str, Any] = {
            ("cache" if "cache" in names else "past_key_values"): Cache(layers=[*self.layers])
        }
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self._wants_positions = "position_ids" in names
        # For other kinds of attention transformers makes the masks, which costs more per step.
        self._own_masks = own_masks and has_full_attention(config)
        width = max(map(len, prompts))
        self._prompt_RT = torch.zeros(len(prompts), width, dtype=torch.long)
        self._pads_R = torch.tensor([width - len(ids) for ids in prompts])
        for row, ids in enumerate(prompts):
            self._prompt_RT[row, width - len(ids) :] = torch.tensor(ids)
        self._prompt_RT, self._pads_R = self._prompt_RT.to(self.device), self._pads_R.to(self.device)
        self._columns = 0
        self._bias_RK = self._padding_bias(width)

    def __len__(self) -> int:
        return len(self._pads_R)

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
        logits_RV = self._read(torch.tensor([token or 0 for token in tokens], device=self.device)[:, None])
        self.on_tokens(0, sum(token is not None for token in tokens))
        return logits_RV

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row that occurs twice is copied."""
        index_R = torch.tensor(rows, device=self.device)
        self._pads_R, self._bias_RK = self._pads_R[index_R], self._bias_RK[index_R]
        for layer in self.layers:
            if layer.is_initialized:  # the others use the keys and values of an earlier block
                layer.select(index_R)

    def _read(self, ids_RT: Tensor) -> Tensor:
        """Append these ids to every row; returns (R, V) logits of the next tokens."""
        start, end = self._columns, self._columns + ids_RT.shape[1]
        given = self._cache | self._last_only
        if self._wants_positions:
            position_RT = torch.arange(start, end, device=self.device) - self._pads_R[:, None]
            given["position_ids"] = position_RT.clamp_(min=0)
        logits_RTV = self.model(input_ids=ids_RT, attention_mask=self._mask(start, end), use_cache=True, **given).logits
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
        dtype = compute_dtype(self.model)
        lowest = torch.finfo(dtype).min
        return torch.zeros(is_pad_RK.shape, dtype=dtype, device=self.device).masked_fill_(is_pad_RK, lowest)


def has_full_attention(config: PreTrainedConfig) -> bool:
    """Whether, according to the configuration, every block attends to all earlier tokens."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return all(getattr(config, name, None) is None for name in ("sliding_window", "attention_chunk_size"))
