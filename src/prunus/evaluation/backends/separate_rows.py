"""Decode sequences one by one, as transformers' own code does, for models whose results padding would change.

Such models are state-space and hybrid models, and models with positions built into attention. Shapes: R rows,
V vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunus.checkpoint.resolve import one_line
from prunus.errors import PrunusError
from prunus.evaluation.backends.padded_rows import PaddedRows
from prunus.evaluation.requests import unheard

# Names of the cache argument in transformers' models.
CACHES = ("cache", "past_key_values", "cache_params", "state")
_PROMPT, _STEPS, _COLUMNS = 5, 4, 4
# Tolerated difference of logits relative to the largest one, in float32 and in 16 bits.
_FLOAT32, _SIXTEEN_BITS = 1e-3, 0.05


class Decoding(Protocol):
    """The interface of PaddedRows and SeparateRows: sequences that decode together."""

    def __len__(self) -> int: ...

    def prefill(self) -> Tensor:
        """Read the prompts; returns (R, V) logits of the next tokens."""
        ...

    def step(self, tokens: Sequence[int | None]) -> Tensor:
        """Append one id to every row; returns (R, V) logits of the next tokens. None: for a row that is finished."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row that occurs twice is copied."""
        ...


class SeparateRows:
    """Sequences that a model reads one after the other, without padding. on_tokens: as in Backend."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[list[int]],
        on_tokens: Callable[[int, int], None] = unheard,
    ) -> None:
        self.model, self._prompts, self.on_tokens = model, prompts, on_tokens
        names = inspect.signature(type(model).forward).parameters
        self._cache = next((name for name in CACHES if name in names), None)
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self._wants_positions = "position_ids" in names
        self._lengths = [0] * len(prompts)
        self._caches: list[Any] = [None] * len(prompts)

    def __len__(self) -> int:
        return len(self._caches)

    def prefill(self) -> Tensor:
        """Read the prompts; returns (R, V) logits of the next tokens.

        Each prompt is read in one pass, because some models cannot append more than one id to a cache.
        """
        logits: list[Tensor] = []
        for row, ids in enumerate(self._prompts):
            logits.append(self._read(row, ids))
            self.on_tokens(len(ids), 0)
        return torch.stack(logits)

    def step(self, tokens: Sequence[int | None]) -> Tensor:
        """Append one id to every row; returns (R, V) logits of the next tokens.

        None: for a row that is finished, which the model does not read; its logits are zeros.
        """
        logits: dict[int, Tensor] = {}
        for row, token in enumerate(tokens):
            if token is not None:
                logits[row] = self._read(row, [token])
                self.on_tokens(0, 1)
        none = torch.zeros_like(next(iter(logits.values())))
        return torch.stack([logits.get(row, none) for row in range(len(tokens))])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row that occurs twice is copied."""
        before, seen = self._caches, set[int]()
        self._lengths = [self._lengths[row] for row in rows]
        self._caches = [deepcopy(before[row]) if row in seen or seen.add(row) else before[row] for row in rows]

    def _read(self, row: int, ids: list[int]) -> Tensor:
        """Append ids to a row; returns (V,) logits of the next token. PrunusError if the model returns no cache."""
        cache = self._caches[row]
        given: dict[str, Any] = {} if cache is None else {str(self._cache): cache}
        ids_1T = torch.tensor([ids], device=self.model.device)
        start, self._lengths[row] = self._lengths[row], self._lengths[row] + len(ids)
        # As transformers' generate does, since some models cannot derive positions from their caches.
        if self._wants_positions:
            given["position_ids"] = torch.arange(start, self._lengths[row], device=self.model.device)[None]
        found = self.model(input_ids=ids_1T, use_cache=True, **self._options, **given)
        self._caches[row] = found.get(self._cache)
        if self._caches[row] is None:
            raise PrunusError(f"{self.model.config.model_type} returns no cache, so it cannot decode")
        return found.logits[0, -1]


def rows_for(model: PreTrainedModel) -> Callable[..., Decoding]:
    """A constructor of rows for a model: PaddedRows if padding does not change the logits, else SeparateRows.

    It takes prompts and on_tokens. This is decided by decoding a few random tokens, with prompts in parts. Raises
    PrunusError if the model cannot decode at all, or if its logits with a cache differ from those without.
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
    found = [rows.prefill()]
    for step in range(_STEPS):
        if step == _STEPS // 2:
            rows.select([0, 0])
        found.append(rows.step(steps[2 * step : 2 * step + 2]))
    return torch.stack(found)


@torch.inference_mode()
def _read_at_once(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """(1, V) logits of the token after ids, without a cache."""
    return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[:, -1]


def _alike(left: Tensor, right: Tensor) -> bool:
    """Whether the logits agree in most rows. Not all must: a router may send a token to another expert by rounding."""
    most = _FLOAT32 if left.dtype == torch.float32 else _SIXTEEN_BITS
    apart = (left - right).float().abs().amax(-1) / right.float().abs().amax(-1)
    return bool(apart.flatten().median() <= most) and not bool(apart.isnan().any())
