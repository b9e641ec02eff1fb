"""Use transformers' Conv1D, GPT-2's form of a Linear, as a Linear; its weight is stored transposed, as (I, O)."""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class TransposedLinear(nn.Linear):
    """A Linear with the weight (O, I), as pruning needs it, whose output equals the Conv1D's bit by bit."""

    def __init__(self, conv: Conv1D) -> None:
        super().__init__(conv.nx, conv.nf, device="meta", dtype=conv.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        weight_IO = self.weight.T.contiguous()  # the memory layout of Conv1D, so that sums have the same order
        return torch.addmm(self.bias, input.reshape(-1, self.in_features), weight_IO).unflatten(0, input.shape[:-1])


def replace_conv1d(model: nn.Module) -> None:
    """Replace every Conv1D of a model by a TransposedLinear, which has no values yet, in place."""
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, Conv1D):
                setattr(owner, name, TransposedLinear(child))


def transposed_weights(model: nn.Module) -> set[str]:
    """Names of the weights that are stored as (I, O)."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, TransposedLinear)}
