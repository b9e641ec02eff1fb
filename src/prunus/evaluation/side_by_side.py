"""Decode the chains of a batch in several processes at once, which share the memory of the model.

On a CPU a small model is decoded by a long sequence of calls whose overhead exceeds their arithmetic, so a second
thread gains little, but a second process does. The processes are forked, as those of torch's DataLoader, so the weights
are in memory once. Each gets prompts of similar length: prompts are padded to the longest of their part, so that a part
takes less than its share of the whole batch.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from prunus.errors import PrunusError
from prunus.evaluation.requests import Completer, no_progress

FEWEST = 8  # least number of chains per process, on average
CHAIN = 32  # to decode a chain takes as long as to read 32 tokens of a prompt; measured on the tiny reasoner
KILLED_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl

Compute = Callable[[Sequence[int]], list[Any]]


def side_by_side(backend: Completer, lengths: Sequence[int], compute: Compute) -> list[Any]:
    """Results of `compute` for all chains, in order; several processes compute them if the backend gains by it.

    lengths: of the prompts. compute: decodes the chains of some indices with the backend, and returns a result for
    each, which can be pickled. An error of a part is raised here. No process outlives this call, or this process.
    """
    most = 1 if multiprocessing.current_process().daemon else backend.processes  # a daemon may have no children
    first, *rest = cut(lengths, min(most, len(lengths) // FEWEST))
    if not rest:
        return compute(range(len(lengths)))
    others: list[ForkedPart] = []
    count, results = backend.on_tokens, {}

    def count_all(*counts: int) -> None:
        count(*counts)
        for other in others:
            other.read(count)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as it must in a forked process
    try:
        for part in rest:
            others.append(ForkedPart(backend, compute, part))
        if count is not no_progress:
            backend.on_tokens = count_all
        results.update(zip(first, compute(first), strict=True))
        for part, other in zip(rest, others, strict=True):
            results.update(zip(part, other.read(count, to_the_end=True), strict=True))
    finally:
        backend.on_tokens = count
        torch.set_num_threads(threads)
        for other in others:
            other.end()
    return [results[index] for index in range(len(lengths))]


def cut(lengths: Sequence[int], count: int) -> list[list[int]]:
    """The indices from short to long prompts, cut into at most `count` parts that take about equally long."""
    weights = [length + CHAIN for length in lengths]
    parts: list[list[int]] = [[] for _ in range(max(1, count))]
    before = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        parts[int(len(parts) * (before + weights[index] / 2) / sum(weights))].append(index)
        before += weights[index]
    return [part for part in parts if part]


class ForkedPart:
    """A forked process that decodes a part."""

    def __init__(self, backend: Completer, compute: Compute, part: Sequence[int]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=serve, args=(backend, compute, part, sender, os.getpid()), daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 warns where there are other threads; the child takes none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        sender.close()
        self.result: Any = None

    def read(self, count: Callable[[int, int], None], to_the_end: bool = False) -> Any:
        """Pass on the numbers of tokens that the process has sent; return its result, or None if it is not there yet.

        to_the_end: wait for the result. Raises the error of the process, or PrunusError if it ended without a result.
        """
        try:
            while self.result is None and (to_the_end or self.connection.poll()):
                message = self.connection.recv()
                if isinstance(message, tuple):
                    count(*message)
                else:
                    self.result = message
        except EOFError:
            self.process.join()
            raise PrunusError(
                f"a process that decoded part of a batch was ended (exit code {self.process.exitcode}): is there enough"
                " memory? Stored results are kept"
            ) from None
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def end(self) -> None:
        """Kill the process, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def end_with_parent() -> None:
    """Have Linux kill this process as soon as the thread that started it has ended, for whatever reason."""
    ctypes.CDLL(None).prctl(KILLED_WITH_PARENT, signal.SIGKILL)


def serve(backend: Completer, compute: Compute, part: Sequence[int], connection: Connection, parent: int) -> None:
    """Decode the part of a forked process, and send the result, or the error that was raised.

    If progress is shown, numbers of tokens are sent before that, as they are decoded.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, too, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    if os.getppid() != parent:
        return
    gc.freeze()  # what the parent has is not to be finalised here
    torch.set_num_threads(1)
    if backend.on_tokens is not no_progress:
        backend.on_tokens = lambda *counts: connection.send(counts)
    try:
        result: Any = compute(part)
    except Exception as error:
        result = error
    connection.send(result)
