"""Whether a model is a decoder: every token sees those before it alone, and nothing else is read besides the text."""

import re
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus.checkpoint.architecture import Architecture, Unstreamable
from prunus.checkpoint.linears import plain_experts

_OF_AN_ENCODER = re.compile(r"(?:^|\.)(?:encoder_attn|encoder_decoder_attention|crossattention|cross_attn)(?:\.|$)")
_LOOKS = 1e-4  # by which share of its largest number an output may move without having been looked at


def check_decoder(architecture: Architecture) -> None:
    """Raise Unstreamable for half of a model with an encoder, and for one whose first block looks ahead.

    The latter is tried: with random weights, which take no memory, another last token must change nothing before it.
    """
    first = architecture.layers[0]
    half = next((name for name, _ in first.named_modules() if _OF_AN_ENCODER.search(name)), None)
    if half is not None or getattr(architecture.model.config, "is_encoder_decoder", False):
        raise Unstreamable("it is half of a model with an encoder, which prunus does not prune")
    with torch.inference_mode(False), torch.no_grad():
        if _looks_ahead(architecture, first):
            raise Unstreamable("its tokens see later ones, so it is an encoder, which prunus does not prune")


def _looks_ahead(architecture: Architecture, first: nn.Module) -> bool:
    generator = torch.Generator().manual_seed(0)
    weights = {name: _random(parameter, generator) for name, parameter in first.named_parameters()}
    rows_NTW = torch.randn(architecture.to_rows(architecture.probe.first).shape, generator=generator)
    other_NTW = rows_NTW.clone()
    other_NTW[:, -1] = torch.randn(other_NTW[:, -1].shape, generator=generator)

    def run(input_NTW: Tensor) -> Tensor:
        def block(*args: Any, **kwargs: Any) -> Any:
            return functional_call(first, weights, args, kwargs)

        hidden = architecture.from_rows(input_NTW.to(architecture.probe.first.dtype))
        call = deepcopy(architecture.probe.calls[0])  # some blocks leave things in what they are given
        return architecture.to_rows(architecture.call_block(0, block, hidden, call, {}))[:, :-1].float()

    with plain_experts(architecture):
        before, after = run(rows_NTW), run(other_NTW)
    return bool((before - after).abs().max() > _LOOKS * before.abs().max())


def _random(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Values for a parameter: entry [i, j, k] is number i + j + k of a list, which is all that is in memory."""
    values = 0.1 * torch.randn(sum(parameter.shape) + 1, generator=generator)
    values = values + 1 if parameter.ndim == 1 else values
    return values.to(parameter.dtype).as_strided(parameter.shape, (1,) * parameter.ndim)
