"""Worker processes with limits on time and memory, replaced when they hang, crash or have served long enough."""

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import LifoQueue
from typing import Literal, TypeVar

from prunus.errors import PrunusError

Verdict = Literal["same", "different", "error", "timeout"]
Request = tuple[str, ...]  # gold, answer
_T = TypeVar("_T")
_R = TypeVar("_R")
WORKER = Path(__file__).with_name("worker.py")
START_SECONDS = 120.0
# The kernel ends a hung worker this long after its limit, in case the parent process has ended.
ORPHAN_SECONDS = 5.0


class WorkerProcess:
    """One running worker, which reads requests and writes replies as lines of JSON."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches only the parent
        )
        self.buffer = b""
        self.served = 0
        greeting = self.receive(START_SECONDS)
        if not greeting or "ready" not in greeting:
            self.end()
            reason = (greeting or {}).get("failed", "it ended without a word")
            raise PrunusError(
                f"the grading worker did not start ({reason}); check with: python -c 'import math_verify'"
            )

    def send(self, request: Request) -> None:
        """Send a request. It fits into the pipe's buffer, so this never blocks; receive() notices a dead worker."""
        assert self.process.stdin is not None
        self.served += 1
        with suppress(OSError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def receive(self, seconds: float) -> dict | None:
        """The next reply; {} where the worker ended instead, None where the time limit passed."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                if not (received := os.read(self.process.stdout.fileno(), 65536)):
                    return {}
                self.buffer += received
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):  # unsent bytes for a dead worker
                pipe.close()


class Pool:
    """A pool of up to `workers` processes, started on demand; any number of threads may use it.

    timeout_s: wall-clock seconds per comparison. memory_mb: address space of a worker. recycle_after: number of
    comparisons after which a worker is replaced, since symbolic algebra leaks memory. command: replaces the worker's
    command line in tests.
    """

    def __init__(
        self,
        workers: int,
        timeout_s: float,
        memory_mb: int,
        recycle_after: int = 500,
        command: Sequence[str] | None = None,
    ) -> None:
        limits = [str(timeout_s + ORPHAN_SECONDS), str(memory_mb)]
        # -P keeps the worker's folder off its import path. -W: the parent may have turned warnings into errors.
        self.command = command or [sys.executable, "-P", "-W", "ignore", str(WORKER), *limits]
        self.timeout_s, self.recycle_after = timeout_s, recycle_after
        self.workers: list[WorkerProcess | None] = [None] * max(1, workers)
        self.free: LifoQueue[int] = LifoQueue()
        for place in reversed(range(len(self.workers))):
            self.free.put(place)
        self.started, self.stopped = 0, False

    def map(self, function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """The results of a function that asks this pool, in order; as many calls at once as there are workers."""
        with ThreadPoolExecutor(len(self.workers), thread_name_prefix="grading") as threads:
            try:
                return list(threads.map(function, items))
            except BaseException:  # Ctrl-C, or a worker that does not start: do not wait for the others
                self.stopped = True
                for worker in filter(None, self.workers):
                    worker.process.kill()
                raise

    def verdict(self, request: Request) -> Verdict:
        """The verdict on a request, once a worker is free."""
        place = self.free.get()
        try:
            if self.stopped:
                return "error"
            worker = self.workers[place]
            if worker is None or worker.process.poll() is not None:  # it ended while idle, not because of a request
                self._drop(place)
                worker = self.workers[place] = WorkerProcess(self.command)
                self.started += 1
            worker.send(request)
            reply = worker.receive(self.timeout_s)
            if not reply or "last" in reply or worker.served >= self.recycle_after:
                self._drop(place)
            return "timeout" if reply is None else reply.get("verdict", "error")
        finally:
            self.free.put(place)

    def _drop(self, place: int) -> None:
        worker, self.workers[place] = self.workers[place], None
        if worker is not None:
            worker.end()

    def close(self) -> None:
        """End all workers."""
        for place in range(len(self.workers)):
            self._drop(place)
