"""Rows that decode one by one, each as transformers' own code would: for models that cannot read them side by side.

Padding changes what state-space and hybrid models compute, and models with positions built into attention, so here
there is none. Shapes: R rows, V vocabulary.
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

# Names that transformers' models give to their cache.
CACHES = ("cache", "past_key_values", "cache_params", "state")
_PROMPT, _STEPS = 5, 4
# Tolerated difference of logits, as a share of the largest.
_FLOAT32, _HALF = 1e-3, 0.05


class Decoding(Protocol):
    """Rows that decode together, however they do it; see PaddedRows."""

    def __len__(self) -> int: ...

    def prefill(self) -> Tensor:
        """Read the prompts; (R, V) logits of what follows them."""
        ...

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one id to every row; (R, V) logits of what follows."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row named twice goes on as two."""
        ...


class SeparateRows:
    """Sequences that a model reads one after the other, with the interface of PaddedRows."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[list[int]]) -> None:
        self.model, self._prompts = model, prompts
        names = inspect.signature(type(model).forward).parameters
        self._cache = next((name for name in CACHES if name in names), None)
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self._wants_positions = "position_ids" in names
        self._read_R = [0] * len(prompts)
        self._remembered: list[Any] = [None] * len(prompts)

    def __len__(self) -> int:
        return len(self._remembered)

    def prefill(self) -> Tensor:
        """Read the prompts, each at once: some models cannot go on with more than one id."""
        return torch.stack([self._read(row, ids) for row, ids in enumerate(self._prompts)])

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one id to every row; (R, V) logits of what follows."""
        return torch.stack([self._read(row, [token]) for row, token in enumerate(tokens)])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row named twice goes on as two."""
        before, seen = self._remembered, set[int]()
        self._read_R = [self._read_R[row] for row in rows]
        self._remembered = [deepcopy(before[row]) if row in seen or seen.add(row) else before[row] for row in rows]

    def _read(self, row: int, ids: list[int]) -> Tensor:
        remembered = self._remembered[row]
        given: dict[str, Any] = {} if remembered is None else {str(self._cache): remembered}
        ids_1T = torch.tensor([ids], device=self.model.device)
        start, self._read_R[row] = self._read_R[row], self._read_R[row] + len(ids)
        # As generate of transformers has them: some models cannot tell by their caches what they have read.
        if self._wants_positions:
            given["position_ids"] = torch.arange(start, self._read_R[row], device=self.model.device)[None]
        found = self.model(input_ids=ids_1T, use_cache=True, **self._options, **given)
        self._remembered[row] = found.get(self._cache)
        if self._remembered[row] is None:
            raise PrunusError(f"{self.model.config.model_type} keeps nothing of what it has read, so it cannot decode")
        return found.logits[0, -1]


def rows_for(model: PreTrainedModel) -> Callable[[Sequence[list[int]]], Decoding]:
    """A constructor of rows for a model: PaddedRows where they give the logits of each row alone, else SeparateRows.

    Decided by decoding a few random tokens. PrunusError where the model cannot decode at all.
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
        raise PrunusError(f"{model.config.model_type} reads token by token other than at once; it cannot be trusted")
    for own_masks in (True, False):
        try:
            if _alike(_probe(PaddedRows(model, prompts, own_masks), steps), expected):
                return partial(PaddedRows, model, own_masks=own_masks)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: S112  as above: it wants another cache, other masks, or no positions
            continue
    return partial(SeparateRows, model)


@torch.inference_mode()
def _probe(rows: Decoding, steps: Sequence[int]) -> Tensor:
    """(steps, R, V) logits of two prompts, of two more ids a step; halfway the second gives way to the first's twin."""
    found = [rows.prefill()]
    for step in range(_STEPS):
        if step == _STEPS // 2:
            rows.select([0, 0])
        found.append(rows.step(steps[2 * step : 2 * step + 2]))
    return torch.stack(found)


@torch.inference_mode()
def _read_at_once(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """(1, V) logits of what follows ids, without a cache."""
    return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[:, -1]


def _alike(left: Tensor, right: Tensor) -> bool:
    """Whether most rows of logits are; a router at its edge may send one token elsewhere."""
    most = _FLOAT32 if left.dtype == torch.float32 else _HALF
    apart = (left - right).float().abs().amax(-1) / right.float().abs().amax(-1)
    return bool(apart.flatten().median() <= most) and not bool(apart.isnan().any())
