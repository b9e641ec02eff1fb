"""The residual stream of all calibration tokens between two blocks: in memory, or in a file mapped into it.

Shapes: N sequences, T tokens, S tokens of all sequences one after the other, W numbers per token between two blocks
(for nearly all families the hidden width).
"""

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.checkpoint.block_loader import stream_of
from prunus.checkpoint.resolve import one_line
from prunus.checkpoint.runner import Batch, Runner
from prunus.disk import show_bytes
from prunus.progress import say

# Enough to fill the processor in one call; a sequence longer than this is a batch of its own.
BATCH_TOKENS = 2048


class HiddenStates:
    """What the next block will read, for every calibration token: starts as the embeddings, changed in place.

    Sequences are grouped by length, so batches need neither padding nor mask. file: where to keep them instead of in
    memory; its space is taken at once, so a full disk is noticed here. room: how wide a second table may be asked for.
    token_weights: for each sequence, how much each of its tokens counts; None: all alike. batch_tokens: most tokens of
    a batch, unless one sequence has more.
    """

    def __init__(
        self,
        runner: Runner,
        sequences: Sequence[list[int]],
        file: Path | None,
        room: int = 0,
        token_weights: Sequence[Sequence[float]] | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self.batch_tokens = batch_tokens
        ordered = sorted(sequences, key=len)
        self._weight_S1 = None
        if token_weights is not None:  # sorted is stable, so both are in the same order
            self._weight_S1 = torch.tensor([w for weights in sorted(token_weights, key=len) for w in weights])[:, None]
        self.groups = [(length, list(group)) for length, group in groupby(ordered, key=len)]
        self.tokens = sum(map(len, sequences))
        width = runner.width
        both, self._mapped = _allocate(self.tokens * (width + room), runner.dtype, file, runner.device)
        self.states_SW = both[: self.tokens * width].view(self.tokens, width)
        self._room = both[self.tokens * width :]
        weights = self._weights()
        self._batches = [Batch(ids_NT, None if weights is None else next(weights)) for ids_NT in self.ids()]
        for batch, rows_NTW in self.batches():
            rows_NTW.copy_(runner.embed(batch))

    def batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """Every batch with its (N, T, W) view, always in the same order; write into views to move on to the next block.

        Sequences of a batch are of equal length.
        """
        return zip(self._batches, self.views(self.states_SW), strict=True)

    def batches_on(self, device: torch.device) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """The same, each with what is there on device; on another device the next one travels meanwhile."""
        views = self.views(self.states_SW)
        pairs = ((rows, rows) for rows in views) if device.type == "cpu" else sent_ahead(views, device)
        return ((batch, *pair) for batch, pair in zip(self._batches, pairs, strict=True))

    def batches_with(self, kept_SX: Tensor) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """The batches, each with the (N, T, X) view of another table's same tokens."""
        return zip(self._batches, self.views(self.states_SW), self.views(kept_SX), strict=True)

    def room(self, width: int) -> Tensor:
        """(S, width): a table for other things about the same tokens. There is one: the next call gives it again."""
        return self._room[: self.tokens * width].view(self.tokens, width)

    def views(self, table_SX: Tensor) -> Iterator[Tensor]:
        """(N, T, X) views of the same batches in another table of the same tokens."""
        begin = 0
        for length, group in self.groups:
            most = max(1, self.batch_tokens // length)
            for first in range(0, len(group), most):
                count = min(most, len(group) - first)
                yield table_SX[begin : begin + count * length].view(count, length, -1)
                begin += count * length
                self._let_go()

    def sequences(self) -> list[tuple[Batch, Tensor]]:
        """Every sequence as a batch of one with its (1, T, W) view, shortest first."""
        pairs = ((batch.ids_NT.split(1), rows_NTW.split(1)) for batch, rows_NTW in self.batches())
        return [(Batch(ids_1T), rows_1TW) for ids, rows in pairs for ids_1T, rows_1TW in zip(ids, rows, strict=True)]

    def ids(self) -> Iterator[Tensor]:
        """(N, T) token ids of the same batches."""
        for length, group in self.groups:
            yield from torch.tensor(group).split(max(1, self.batch_tokens // length))

    def _weights(self) -> Iterator[Tensor] | None:
        """(N, T, 1) float32, how much each token of the same batches counts; None where all count alike."""
        return None if self._weight_S1 is None else self.views(self._weight_S1)

    def copy(self) -> "HiddenStates":
        """The same states in memory of their own."""
        twin = copy(self)
        twin.states_SW, twin._batches = self.states_SW.clone(), [batch.copy() for batch in self._batches]
        return twin

    def _let_go(self) -> None:
        """Leave what is kept in a file to the system, which has it in its cache: it is not ours to hold."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def batches(ordered: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Sequences, sorted by length, as they run through a block together."""
    for length, group in groupby(ordered, key=len):
        alike, most = list(group), max(1, BATCH_TOKENS // length)
        yield from (alike[begin : begin + most] for begin in range(0, len(alike), most))


def propagate(runner: Runner, block: nn.Module, hidden: HiddenStates) -> None:
    """Move hidden from the input of a block to its output."""
    for batch, rows_NTW, there_NTW in hidden.batches_on(runner.device):
        rows_NTW.copy_(runner.run_block(block, there_NTW, batch))


def sent_ahead(batches: Iterable[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch with its copy on device, which a stream of its own makes while the batch before is worked on.

    Whoever writes a result back into a view does not meet the copy of the next: they share no rows.
    """
    api: Any = torch.get_device_module(device)
    side, ahead = stream_of(device), None
    for batch in chain(batches, (None,)):
        api.current_stream(device).wait_stream(side)  # for the copies so far, not for the one that follows
        ready = ahead
        if batch is not None:
            with api.stream(side):
                ahead = batch, batch.to(device, non_blocking=True)
        if ready is not None:
            if ready[1].is_cuda:  # its memory is not to be used again before the work on it is done
                ready[1].record_stream(api.current_stream(device))
            yield ready


def _allocate(
    elements: int, dtype: torch.dtype, file: Path | None, device: torch.device
) -> tuple[Tensor, mmap.mmap | None]:
    """A table without content, and the mapping that it lies in where there is a file.

    device: to which its rows travel; from pinned memory that does not hold up the processor.
    """
    if file is None:
        return unfilled(elements, dtype, device), None
    with file.open("w+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, elements * dtype.itemsize)
        mapped = mmap.mmap(stream.fileno(), 0)
    return torch.frombuffer(mapped, dtype=dtype, count=elements), mapped


def unfilled(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory whose content travels to a GPU by itself: pinned, where the system grants so much of that."""
    if device.type == "cuda":
        try:
            with torch.get_device_module(device).device(device):  # else it would wake up the first GPU
                return torch.empty(elements, dtype=dtype, pin_memory=True)
        except RuntimeError as error:
            size = show_bytes(elements * dtype.itemsize)
            say(f"{size} of hidden states cannot be pinned ({one_line(error)}): they travel to {device} more slowly")
    return torch.empty(elements, dtype=dtype)
