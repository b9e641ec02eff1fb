"""Check that a model is a decoder: a token attends only to itself and earlier tokens, and there is no encoder."""

import re
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus.checkpoint.architecture import Architecture, Unstreamable
from prunus.checkpoint.linears import plain_experts

_OF_AN_ENCODER = re.compile(r"(?:^|\.)(?:encoder_attn|encoder_decoder_attention|crossattention|cross_attn)(?:\.|$)")
_TOLERANCE = 1e-4  # a change of an output up to this share of the largest one counts as rounding


def check_decoder(architecture: Architecture) -> None:
    """Raise Unstreamable for the decoder of an encoder-decoder model, and for a model whose first block is not causal.

    Causality is tested with random weights, which take almost no memory: when the last token changes, the outputs of
    the tokens before it must not.
    """
    first = architecture.layers[0]
    half = next((name for name, _ in first.named_modules() if _OF_AN_ENCODER.search(name)), None)
    if half is not None or getattr(architecture.model.config, "is_encoder_decoder", False):
        raise Unstreamable("it is part of an encoder-decoder model, which prunus does not prune")
    with torch.inference_mode(False), torch.no_grad():
        if _attends_to_later(architecture, first):
            raise Unstreamable("its tokens attend to later ones, so it is an encoder, which prunus does not prune")


def _attends_to_later(architecture: Architecture, first: nn.Module) -> bool:
    """Whether the first block's outputs depend on later tokens."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: _random(parameter, generator) for name, parameter in first.named_parameters()}
    rows_NTW = torch.randn(architecture.to_rows(architecture.probe.first).shape, generator=generator)
    other_NTW = rows_NTW.clone()
    other_NTW[:, -1] = torch.randn(other_NTW[:, -1].shape, generator=generator)

    def run(input_NTW: Tensor) -> Tensor:
        def block(*args: Any, **kwargs: Any) -> Any:
            return functional_call(first, weights, args, kwargs)

        hidden = architecture.from_rows(input_NTW.to(architecture.probe.first.dtype))
        call = deepcopy(architecture.probe.calls[0])  # some blocks write to their arguments
        return architecture.to_rows(architecture.call_block(0, block, hidden, call, {}))[:, :-1].float()

    with plain_experts(architecture):
        before, after = run(rows_NTW), run(other_NTW)
    return bool((before - after).abs().max() > _TOLERANCE * before.abs().max())


def _random(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Random values for a parameter, as a view of a short list: entry [i, j, k] is element i + j + k of the list."""
    values = 0.1 * torch.randn(sum(parameter.shape) + 1, generator=generator)
    values = values + 1 if parameter.ndim == 1 else values
    return values.to(parameter.dtype).as_strided(parameter.shape, (1,) * parameter.ndim)
