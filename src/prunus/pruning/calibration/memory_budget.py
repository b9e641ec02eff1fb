"""What free memory and disk allow: whether a block fits, and how many sequences are measured at once.

Sequences are measured in portions where something must be kept of every block. A portion is made of whole batches,
which are the same however they are shared out, and sums are taken in the order of the sequences: results are the same
bit for bit, however much memory was free.
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

# Of what is free when the work begins.
MEMORY_SHARE, DISK_SHARE = 0.5, 0.5
_CGROUP = Path("/sys/fs/cgroup")


class Room(NamedTuple):
    """tokens: of one portion. sums: whether sums of all blocks stay in memory from portion to portion."""

    tokens: int
    sums: bool


def room_for(tokens: int, per_token: int, sums: int, file: Path | None) -> Room:
    """What to do at once with so many tokens, of which per_token bytes each are kept, and with so many bytes of sums.

    file: where to keep the former instead of in memory. All at once where that fits: then sums are written as they are
    finished. Else they stay in memory if they take no more than half of the room there.
    """
    memory = int(MEMORY_SHARE * free_memory())
    room = memory if file is None else int(DISK_SHARE * shutil.disk_usage(file.parent).free)
    if tokens * per_token <= room:
        return Room(tokens, False)
    held = 0 < sums <= memory // 2
    left = room - sums if held and file is None else room
    return Room(max(1, left // per_token), held)


def free_memory() -> int:
    """Bytes that this process may still take: the system's, within the limits of its control group.

    1 GiB where the system does not say.
    """
    found = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):  # `max` where there is no limit
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        found.append(max(0, limit - used))
    return min(found, default=1 << 30)


def check_block_fits(source: Checkpoint, dtype: torch.dtype) -> None:
    """Raise PrunusError where the largest block alone, as it runs in dtype, takes more memory than is free."""
    blocks = (source.block_tensors(index).values() for index in range(source.blocks))
    largest = max(sum(stored.elements for stored in block) for block in blocks) * dtype.itemsize
    if largest > (free := free_memory()):
        raise PrunusError(
            f"{source.folder}: its largest block takes {largest / 1e9:.3g} GB of memory in"
            f" {str(dtype).removeprefix('torch.')}, and {free / 1e9:.3g} GB are free; end other programs, or take a"
            " narrower --dtype or a machine with more"
        )


def portions(ordered: Sequence[list[int]], tokens: int) -> Iterator[list[list[int]]]:
    """Sequences, sorted by length, in portions of at most so many tokens, but at least one batch of HiddenStates."""
    part: list[list[int]] = []
    for batch in batches(ordered):
        if part and sum(map(len, part)) + sum(map(len, batch)) > tokens:
            yield part
            part = []
        part += batch
    yield part


class Traffic(NamedTuple):
    """Bytes that gradients of one model move to and from the disk, and how often all blocks are read."""

    passes: int
    read: int
    written: int


def traffic(tokens: int, per_token: int, blocks: int, sums: int, room: Room, on_disk: bool) -> Traffic:
    """The count for sequences of equal length that fill portions. blocks: bytes of all blocks in the checkpoint.

    Every portion reads the blocks there and back. What blocks read is written and read once, where it is on the disk.
    Sums are written once where they are held or there is one portion, else read and written again by all the others.
    """
    parts = ceil(tokens / room.tokens)
    again = 0 if room.sums else parts - 1
    kept = tokens * per_token if on_disk else 0
    return Traffic(2 * parts, 2 * parts * blocks + again * sums + kept, (1 + again) * sums + kept)
