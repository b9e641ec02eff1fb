"""Load the blocks of a checkpoint in turn, the next while the current one is used, or the whole model."""

import ctypes
import os
import re
from collections.abc import Generator, Iterable
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from prunus.checkpoint.architecture import skeleton
from prunus.checkpoint.checkpoint import Checkpoint, untied
from prunus.checkpoint.device import api_of, sent_all, stream_of
from prunus.checkpoint.foreign_weights import parts_of
from prunus.checkpoint.runner import dtypes_of
from prunus.disk import prefetch
from prunus.errors import PrunusError

Block = dict[str, Tensor]
NUMBER = re.compile(r"\.\d+\.")  # of a block, in the name of a tensor


def blocks_on(source: Checkpoint, indices: Iterable[int], device: torch.device) -> Generator[Block, None, None]:
    """The tensors of each of these blocks, by their names within the block, on the device.

    For a GPU a thread reads the next block and copies it from pinned memory on a stream of its own, so two blocks are
    on the device. For the CPU the system is asked to read the next block into its page cache, outside this process.
    """
    if device.type == "cuda":
        yield from prefetched_blocks(source, indices, device)
        return
    for index, upcoming in pairwise([*indices, None]):
        assert index is not None
        if upcoming is not None:
            advise_reading(source, upcoming)
        yield source.read_block(index)


def prefetched_blocks(source: Checkpoint, indices: Iterable[int], device: torch.device) -> Generator[Block, None, None]:
    """Tensors of each block, prefetched by a thread whatever the device; blocks_on uses this for GPUs."""
    api = api_of(device)
    side = stream_of(device)

    def send(index: int) -> tuple[Block, Any]:
        tensors = source.read_block(index)
        with api.stream(side):
            return sent_all(tensors, device), side.record_event()

    with closing(prefetch(send, indices)) as blocks:
        for tensors, arrived in blocks:
            api.current_stream(device).wait_event(arrived)
            if device.type == "cuda":
                for tensor in tensors.values():  # its memory is not reused before work of this stream on it is done
                    tensor.record_stream(api.current_stream(device))
            yield tensors
            del tensors  # freed before another block is copied


def advise_reading(source: Checkpoint, index: int) -> None:
    """Ask the system to read a block into its page cache."""
    if not hasattr(os, "posix_fadvise"):
        return
    for stored in parts_of(source.block_tensors(index)).values():
        with stored.file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), stored.start, stored.end - stored.start, os.POSIX_FADV_WILLNEED)


def return_freed_memory() -> None:
    """Give memory that this process has freed back to the system, where the C library can (glibc).

    After many allocations of several megabytes, such as the Hessians of routed experts, glibc would keep their memory
    wherever anything small lies behind it.
    """
    with suppress(OSError, TypeError, AttributeError):  # a system without a C library under that name, or without this
        ctypes.CDLL(None).malloc_trim(0)


def load_plain(folder: Path, dtype: torch.dtype | str) -> PreTrainedModel:
    """The model that transformers loads from a folder, checked to have the blocks, shapes and ties of its config.json.

    Raises PrunusError for a tensor that is missing or of another shape, which transformers would initialise at random,
    for a block beyond the number in config.json, which it would leave out, and for tied tensors with unequal values.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model, info = loaded
    for name, shape, wanted in sorted(info["mismatched_keys"]):
        raise PrunusError(f"{folder}: '{name}' is {tuple(shape)}, but config.json asks for {tuple(wanted)}")
    for name in sorted(info["missing_keys"]):
        raise PrunusError(f"{folder} lacks the tensor '{name}' that its config.json asks for")
    known = {NUMBER.sub(".", name, count=1) for name in model.state_dict()}
    for name in sorted(info["unexpected_keys"]):
        if NUMBER.sub(".", name, count=1) in known:
            raise PrunusError(
                f"{folder} holds '{name}', of a block more than its config.json counts: correct that number"
            )
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)  # as config.json has them
    for name, other in ties.items():
        if model.get_parameter(name) is not model.get_parameter(other):  # transformers ties only what is equal
            raise untied(folder, name, other)
    return model


def load_whole(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The transformers model of a checkpoint, on the CPU and in dtype."""
    model = skeleton(checkpoint.config, dtype)
    model.name_or_path = str(checkpoint.folder)
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    dtypes = dtypes_of(model, dtype)
    for name in [*model.state_dict()]:
        for target, tensor in checkpoint.names.read([name], checkpoint.read).items():
            path, _, inner = target.rpartition(".")
            owner = model.get_submodule(path)
            value = tensor.to(dtypes[target]) if tensor.is_floating_point() else tensor
            is_buffer = inner in owner._buffers
            setattr(owner, inner, value if is_buffer else nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    return model
