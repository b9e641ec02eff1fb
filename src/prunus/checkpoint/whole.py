"""Load a whole transformers model into memory, one tensor of a checkpoint at a time."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from prunus.checkpoint.architecture import skeleton
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.runner import dtypes_of


def load_whole(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The transformers model of a checkpoint, on the CPU and in dtype."""
    model = whole_skeleton(checkpoint, dtype)
    give_values(model, checkpoint, list(model.state_dict()), dtype)
    return model


def whole_skeleton(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The transformers model of a checkpoint, without the values of its parameters; computed buffers have values."""
    model = skeleton(checkpoint.config, dtype)
    model.name_or_path = str(checkpoint.folder)
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    return model


def give_values(model: PreTrainedModel, checkpoint: Checkpoint, names: Iterable[str], dtype: torch.dtype) -> None:
    """Set the tensors of a model with these names, and those tied to them, to their values in the checkpoint."""
    dtypes = dtypes_of(model, dtype)
    for name in names:
        for found, tensor in checkpoint.names.read([name], checkpoint.read).items():
            owner, inner = owner_of(model, found)
            value = tensor.to(dtypes[found]) if tensor.is_floating_point() else tensor
            is_buffer = inner in owner._buffers
            setattr(owner, inner, value if is_buffer else nn.Parameter(value, requires_grad=False))
    model.tie_weights()


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """(module, attribute name) of the tensor or module with this dotted name."""
    path, _, local = name.rpartition(".")
    return model.get_submodule(path), local
