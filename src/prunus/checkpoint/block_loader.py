"""Load the blocks of a checkpoint one after the other; the next block is read while the current one is used."""

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.quantised import parts_of
from prunus.prefetch import prefetch

Block = dict[str, Tensor]


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
    """The same tensors, prefetched by a thread whatever the device; blocks_on uses this for GPUs."""
    api: Any = torch.get_device_module(device)
    side = stream_of(device)

    def send(index: int) -> tuple[Block, Any]:
        tensors = source.read_block(index)
        with api.stream(side):
            sent = {name: pinned(tensor, device).to(device, non_blocking=True) for name, tensor in tensors.items()}
            return sent, side.record_event()

    with closing(prefetch(send, indices)) as blocks:
        for tensors, arrived in blocks:
            api.current_stream(device).wait_event(arrived)
            if device.type == "cuda":
                keep_until_done(tensors, api.current_stream(device))
            yield tensors
            del tensors  # freed before another block is copied


def stream_of(device: torch.device) -> Any:
    """A new stream of this device, which may be another than torch's current device."""
    api: Any = torch.get_device_module(device)
    if device.type == "cpu":
        return api.Stream()  # a stream that does nothing
    return api.Stream(device=device)


def keep_until_done(tensors: Block, stream: Any) -> None:
    """Keep the tensors' memory from being reused before the stream's work on it is done."""
    for tensor in tensors.values():
        tensor.record_stream(stream)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in pinned memory, from which a GPU copies asynchronously."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def advise_reading(source: Checkpoint, index: int) -> None:
    """Ask the system to read a block into its page cache."""
    if not hasattr(os, "posix_fadvise"):
        return
    for stored in parts_of(source.block_tensors(index)).values():
        with stored.file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), stored.start, stored.end - stored.start, os.POSIX_FADV_WILLNEED)
