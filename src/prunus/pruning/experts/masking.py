"""A router that cannot choose some experts, because their logits are minus infinity, in a model that still has them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.pruning.experts.mixture import Mixture


class _MaskedLogits(TorchFunctionMode):
    """Meanwhile, products with the given weights are minus infinity at the removed experts. seen: how many were."""

    def __init__(self, weights: Sequence[Tensor], removed: Sequence[int]) -> None:
        super().__init__()
        self._places = {weight.data_ptr() for weight in weights}
        self._removed = list(removed)
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and args[1].data_ptr() in self._places:
            out[..., self._removed] = -torch.inf
            self.seen += 1
        return out


@contextmanager
def masked(block: nn.Module, mixture: Mixture, removed: Sequence[int]) -> Iterator[_MaskedLogits]:
    """Meanwhile, the block's router gives removed experts the logit minus infinity, also after any correction."""
    named = {name: tensor for name, tensor in block.state_dict(keep_vars=True).items() if name in mixture.routing}
    biases = {name: tensor for name, tensor in named.items() if "bias" in name}
    weights = [tensor for name, tensor in named.items() if name not in biases and tensor.dim() == 2]
    before = {name: tensor.detach().clone() for name, tensor in biases.items()}
    with torch.no_grad():
        for name, tensor in biases.items():
            tensor.index_fill_(mixture.axes[name], torch.tensor(list(removed), device=tensor.device), -torch.inf)
    try:
        with _MaskedLogits(weights, removed) as mode:
            yield mode
    finally:
        with torch.no_grad():
            for name, tensor in biases.items():
                tensor.copy_(before[name])
