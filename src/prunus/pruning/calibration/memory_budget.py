"""Checks against free memory and disk: whether a block fits, and the portions in which sequences are measured.

Measurements that store the inputs of every block process the sequences in portions. A portion consists of whole
batches, which do not depend on the portions, and sums are taken in the order of the sequences. Results are therefore
bitwise the same however much memory is free.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.pruning.calibration.hidden_states import batches

# Shares of the memory and the disk that are free when the work begins.
MEMORY_SHARE, DISK_SHARE = 0.5, 0.5
_CGROUP = Path("/sys/fs/cgroup")


class Room(NamedTuple):
    """tokens: most tokens of one portion. sums: whether the sums of all blocks stay in memory between portions."""

    tokens: int
    sums: bool


def room_for(tokens: int, per_token: int, sums: int, file: Path | None) -> Room:
    """The size of a portion, and whether sums stay in memory.

    tokens: of all sequences. per_token: bytes stored per token. sums: bytes of the sums. file: where per-token data are
    stored; None is memory. If all tokens fit, there is one portion, and sums are written as they are finished. Else
    sums stay in memory if they take at most half of the memory budget.
    """
    memory = int(MEMORY_SHARE * free_memory())
    room = memory if file is None else int(DISK_SHARE * shutil.disk_usage(file.parent).free)
    if tokens * per_token <= room:
        return Room(tokens, False)
    held = 0 < sums <= memory // 2
    left = room - sums if held and file is None else room
    return Room(max(1, left // per_token), held)


def free_memory() -> int:
    """Bytes of memory that this process may still allocate: free in the system, and within its control group's limit.

    1 GiB if neither is known.
    """
    found = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):  # the file says `max` if there is no limit
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        found.append(max(0, limit - used))
    return min(found, default=1 << 30)


def check_block_fits(source: Checkpoint, dtype: torch.dtype) -> None:
    """Raise PrunusError if the largest block, in the dtype it runs in, takes more memory than is free."""
    blocks = (source.block_tensors(index).values() for index in range(source.blocks))
    largest = max(sum(stored.elements for stored in block) for block in blocks) * dtype.itemsize
    if largest > (free := free_memory()):
        raise PrunusError(
            f"{source.folder}: its largest block takes {largest / 1e9:.3g} GB of memory in"
            f" {str(dtype).removeprefix('torch.')}, and {free / 1e9:.3g} GB are free; end other programs, or use a"
            " narrower --dtype or a machine with more memory"
        )


def portions(ordered: Sequence[list[int]], tokens: int) -> Iterator[list[list[int]]]:
    """Sequences sorted by length, in portions of at most `tokens` tokens but at least one batch of HiddenStates."""
    part: list[list[int]] = []
    for batch in batches(ordered):
        if part and sum(map(len, part)) + sum(map(len, batch)) > tokens:
            yield part
            part = []
        part += batch
    yield part


class Traffic(NamedTuple):
    """passes: how often all blocks are read. read, written: bytes of disk traffic while gradients are computed."""

    passes: int
    read: int
    written: int


def traffic(tokens: int, per_token: int, blocks: int, sums: int, room: Room, on_disk: bool) -> Traffic:
    """The disk traffic of gradients, for sequences of equal length that fill the portions.

    blocks: bytes of all blocks in the checkpoint. Every portion reads all blocks twice, forwards and backwards. With
    on_disk, the inputs of blocks are written and read once. Sums are written once if they stay in memory or there is
    one portion; else every further portion reads and writes them again.
    """
    parts = ceil(tokens / room.tokens)
    again = 0 if room.sums else parts - 1
    kept = tokens * per_token if on_disk else 0
    return Traffic(2 * parts, 2 * parts * blocks + again * sums + kept, (1 + again) * sums + kept)
