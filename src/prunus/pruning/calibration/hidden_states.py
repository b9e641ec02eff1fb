"""Hidden states of all calibration tokens between two blocks, in memory or in a memory-mapped file.

Shapes: N sequences, T tokens, S tokens of all sequences concatenated, W numbers per token between two blocks (the
hidden width in nearly all families).
"""

import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from itertools import chain, groupby
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.device import api_of, pinned, sent, stream_of
from prunus.checkpoint.resolve import one_line
from prunus.checkpoint.runner import Batch, Runner
from prunus.disk import show_bytes
from prunus.errors import PrunusError
from prunus.progress import say

Item = TypeVar("Item")
# Tokens of a batch: enough to use the processor fully. A longer sequence is a batch of its own.
BATCH_TOKENS = 2048


class HiddenStates:
    """The input of the next block for every calibration token: the embeddings at first, then updated in place.

    Sequences are grouped by length, so batches need neither padding nor a mask. file: where to store them instead of
    memory; its space is allocated at once, so a full disk is noticed here. room: largest width of the second table
    (`room`). counted: whether each token counts, per sequence; None: all do. batch_tokens: most tokens of a batch,
    unless a sequence has more.
    """

    def __init__(
        self,
        runner: Runner,
        sequences: Sequence[list[int]],
        file: Path | None,
        room: int = 0,
        counted: Sequence[Sequence[bool]] | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self._batches = [Batch(torch.tensor(part)) for part in batches(sorted(sequences, key=len), batch_tokens)]
        self.tokens = sum(map(len, sequences))
        width = runner.width
        both, self._mapped = _allocate(self.tokens * (width + room), runner.dtype, file, runner.device)
        self.states_SW = both[: self.tokens * width].view(self.tokens, width)
        self._room = both[self.tokens * width :]
        if counted is not None:  # sorted is stable, so they are in the order of the sequences
            table_S1 = pinned(torch.tensor([*chain(*sorted(counted, key=len))])[:, None], runner.device)
            for batch, counted_NT1 in zip(self._batches, self.views(table_S1), strict=True):
                batch.counted_NT1 = counted_NT1
        for batch, rows_NTW in self.batches():
            rows_NTW.copy_(runner.embed(batch))

    def batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """Every batch with its (N, T, W) hidden states, always in the same order.

        These are views: writing the block's output into them makes them the next block's input. All sequences of a
        batch have the same length.
        """
        return zip(self._batches, self.views(self.states_SW), strict=True)

    def batches_on(self, device: torch.device) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Every batch with its view and its copy on device; a GPU receives the next batch during the work."""
        views = self.views(self.states_SW)
        pairs = ((rows, rows) for rows in views) if device.type == "cpu" else sent_ahead(views, device)
        return ((batch, *pair) for batch, pair in zip(self._batches, pairs, strict=True))

    def batches_with(self, kept_SX: Tensor) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Every batch with its view and the (N, T, X) view of the same tokens in another table."""
        return zip(self._batches, self.views(self.states_SW), self.views(kept_SX), strict=True)

    def room(self, width: int) -> Tensor:
        """A second table (S, width) for other values of the same tokens. Every call returns the same memory."""
        return self._room[: self.tokens * width].view(self.tokens, width)

    def views(self, table_SX: Tensor) -> Iterator[Tensor]:
        """(N, T, X) views of the batches in a table (S, X) of the same tokens."""
        begin = 0
        for batch in self._batches:
            end = begin + batch.ids_NT.numel()
            yield table_SX[begin:end].view(*batch.ids_NT.shape, -1)
            begin = end
            self.release_pages()

    def of_another(self, runner: Runner) -> "HiddenStates":
        """The hidden states of another model for the same tokens, in the second table."""
        twin = copy(self)
        twin.states_SW, twin._batches = self.room(runner.width), [batch.copy() for batch in self._batches]
        for batch, rows_NTW in twin.batches():
            rows_NTW.copy_(runner.embed(batch))
        return twin

    def copy(self, room: int = 0) -> "HiddenStates":
        """A copy of the hidden states in memory. room: as for the class; 0: the second table is shared."""
        twin = copy(self)
        twin.states_SW, twin._batches = self.states_SW.clone(), [batch.copy() for batch in self._batches]
        if room:
            twin._room = torch.empty(self.tokens * room, dtype=self.states_SW.dtype)
        return twin

    def release_pages(self) -> None:
        """Release mapped pages of the file, which the system's cache keeps, from this process's memory."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def batches(ordered: Sequence[list[int]], tokens: int | None = None) -> Iterator[list[list[int]]]:
    """Sequences sorted by length, in batches of one length and of at most `tokens` tokens but at least one sequence.

    tokens: None: BATCH_TOKENS.
    """
    for length, group in groupby(ordered, key=len):
        alike, most = list(group), max(1, (tokens or BATCH_TOKENS) // length)
        yield from (alike[begin : begin + most] for begin in range(0, len(alike), most))


def propagate(runner: Runner, block: nn.Module, hidden: HiddenStates, number: int | None = None) -> None:
    """Replace hidden, the input of a block, by the block's output. number: the block's, for `finite`."""
    for batch, rows_NTW, input_NTW in hidden.batches_on(runner.device):
        rows_NTW.copy_(finite(runner.run_block(block, input_NTW, batch), number))


def finite(output_NTW: Tensor, number: int | None) -> Tensor:
    """The output of a block, unchanged. Raises PrunusError if it holds NaN or infinity.

    number: the block's, for the message; None: the output is not checked.
    """
    if number is not None and not bool(output_NTW.isfinite().all()):
        raise PrunusError(f"block {number}: its output holds NaN or infinity on the calibration text; try another")
    return output_NTW


def sent_ahead(batches: Iterable[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each batch with its copy on device, made by a separate stream during work on the batch before.

    The caller may write results back into a batch: the copy in progress is of other rows.
    """
    api = api_of(device)
    side, ahead = stream_of(device), None
    for batch in chain(batches, (None,)):
        api.current_stream(device).wait_stream(side)  # for the copies issued so far, not for the next
        ready = ahead
        if batch is not None:
            with api.stream(side):
                ahead = batch, batch.to(device, non_blocking=True)
        if ready is not None:
            if ready[1].is_cuda:  # the allocator must not reuse its memory before the work on it is done
                ready[1].record_stream(api.current_stream(device))
            yield ready


def _allocate(
    elements: int, dtype: torch.dtype, file: Path | None, device: torch.device
) -> tuple[Tensor, mmap.mmap | None]:
    """An uninitialised table, and its memory mapping if it is in a file. device: where its rows will be copied to."""
    if file is None:
        return unfilled(elements, dtype, device), None
    with file.open("w+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, elements * dtype.itemsize)
        mapped = mmap.mmap(stream.fileno(), 0)
    return torch.frombuffer(mapped, dtype=dtype, count=elements), mapped


def unfilled(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory, pinned if possible for a GPU, so that copies to it are asynchronous."""
    if device.type == "cuda":
        try:
            with torch.get_device_module(device).device(device):  # else a context is created on the first GPU
                return torch.empty(elements, dtype=dtype, pin_memory=True)
        except RuntimeError as error:
            size = show_bytes(elements * dtype.itemsize)
            say(f"{size} of hidden states cannot be pinned ({one_line(error)}): copying them to {device} is slower")
    return torch.empty(elements, dtype=dtype)


# The negative log-likelihood of token sequences, from the output of the last block.
# X: features at the input of the output head. V: vocabulary.

# Logits are computed for this many tokens at a time; with a vocabulary of 150,000 they take 150 MB.
LOGIT_TOKENS = 256


def negative_log_likelihood(runner: Runner, rows_NTW: Tensor, batch: Batch) -> float:
    """Negative log-likelihood in nats, summed over all tokens but the first of each sequence.

    rows_NTW: output of the last block.
    """
    states_SX = runner.states(rows_NTW, batch)[:, :-1].flatten(0, 1)
    return summed_loss(runner.logits, states_SX, sent(batch.ids_NT[:, 1:].flatten(), runner.device))


def summed_loss(logits: Callable[[Tensor], Tensor], states_SX: Tensor, targets_S: Tensor) -> float:
    """Cross-entropy in nats, summed over tokens. logits: computes those of (1, S, X) states, LOGIT_TOKENS at a time."""
    total = torch.zeros((), dtype=torch.float64, device=states_SX.device)
    for part_SX, target_S in zip(states_SX.split(LOGIT_TOKENS), targets_S.split(LOGIT_TOKENS), strict=True):
        logits_SV = logits(part_SX[None])[0].float()
        total += functional.cross_entropy(logits_SV, target_S, reduction="none").double().sum()
    return float(total)


# Checks against free memory and disk: whether a block fits, and the portions in which sequences are measured.
# Measurements that store the inputs of every block process the sequences in portions. A portion consists of whole
# batches, which do not depend on the portions, and sums are taken in the order of the sequences. Results are therefore
# bitwise the same however much memory is free.

# Shares of the memory and the disk that are free when the work begins.
MEMORY_SHARE, DISK_SHARE = 0.5, 0.5
_CGROUP = Path("/sys/fs/cgroup")


def portion_tokens(per_token: int, file: Path | None) -> int:
    """The most tokens of a portion.

    per_token: bytes stored per token. file: where these are stored; None is memory.
    """
    memory = MEMORY_SHARE * free_memory()
    room = memory if file is None else DISK_SHARE * shutil.disk_usage(file.parent).free
    return max(1, int(room) // per_token)


def free_memory() -> int:
    """Bytes of memory that this process may still allocate: free in the system, and within its control group's limit.

    1 GiB if neither is known.
    """
    limits = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):  # the file says `max` if there is no limit
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        limits.append(max(0, limit - used))
    return min(limits, default=1 << 30)


def largest_block(source: Checkpoint) -> int:
    """Elements of the tensors of the largest block."""
    return max(sum(s.elements for s in source.block_tensors(index).values()) for index in range(source.blocks))


def free_on(device: torch.device) -> int:
    """Bytes that this process may still take on a device; of a device that does not say, those of the CPU."""
    if device.type == "cpu" or not hasattr(api := torch.get_device_module(device), "mem_get_info"):
        return free_memory()
    return api.mem_get_info(device)[0]


def check_free(what: str, needed: int, device: torch.device, advice: str) -> None:
    """Raise PrunusError if more bytes are needed than are free on a device.

    what: that which needs them. advice: what helps besides the end of other programs. Both are for the message.
    """
    if needed > (free := free_on(device)):
        where = "memory" if device.type == "cpu" else f"memory of {device}"
        raise PrunusError(
            f"{what} takes {show_bytes(needed)} of {where}, and {show_bytes(free)} are free; end other programs,"
            f" {advice}"
        )


def check_block_fits(source: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    """Raise PrunusError if the largest block, in the dtype it runs in, takes more memory than is free.

    On another device than the CPU it is there twice, since the next block is loaded while one is used.
    """
    what, needed = f"in {str(dtype).removeprefix('torch.')}", largest_block(source) * dtype.itemsize
    advice = "or use a narrower --dtype or a machine with more memory"
    check_free(f"{source.folder}: its largest block {what}", needed, torch.device("cpu"), advice)
    if device.type != "cpu":
        advice = "or use a narrower --dtype or another --device"
        check_free(f"{source.folder}: twice its largest block {what}", min(2, source.blocks) * needed, device, advice)


def portions(items: Iterable[Item], size: Callable[[Item], int], room: int) -> list[list[Item]]:
    """The items in order, in portions whose sizes add up to at most `room`, but of at least one item."""
    parts: list[list[Item]] = []
    left = -1
    for item in items:
        if size(item) > left:
            parts.append([])
            left = room
        parts[-1].append(item)
        left -= size(item)
    return parts
