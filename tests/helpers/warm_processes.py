"""Processes for tests that kill them. They start at once, as forks of a server that has imported torch and prunus.

A new interpreter would take five seconds for these imports. The server (multiprocessing's forkserver, one for each
process of pytest) runs nothing else and has a single thread, so its forks behave like new processes.
"""

import gc
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

import pytest
from unflushed import flush_nothing

SECONDS = 500  # time after which a process that should have ended counts as hung
in_one_worker = pytest.mark.xdist_group(
    "warm processes"
)  # for tests that use them: one server, which takes 5 s to start
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["prunus.pruning.prune.prune", "prunus.evaluation.pipeline", "prunus.studies.engine"])


class Running:
    """A running process with pid and stdout (a text stream)."""

    def __init__(self, code: str, arguments: tuple[object, ...]) -> None:
        ours, theirs = FORKS.Pipe(duplex=False)
        self._process = FORKS.Process(target=_work, args=(code, [str(one) for one in arguments], theirs), daemon=True)
        with ours, theirs:
            self._process.start()
            self.stdout: TextIO = os.fdopen(os.dup(ours.fileno()))
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def send_signal(self, number: int) -> None:
        """Send a signal, as subprocess.Popen does."""
        os.kill(self.pid, number)

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.is_alive()

    def wait(self) -> int:
        """Wait until the process ends and return its exit status, negative for a signal."""
        self._process.join(SECONDS)
        assert self._process.exitcode is not None, "still running"
        return self._process.exitcode

    def end(self) -> None:
        """Kill the process if it runs, and release its resources."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.stdout.close()


@contextmanager
def running(code: str, *arguments: object) -> Iterator[Running]:
    """A process that runs Python source text with these sys.argv[1:] and one thread; it is killed at the end."""
    process = Running(code, arguments)
    try:
        yield process
    finally:
        process.end()


def run(code: str, *arguments: object) -> tuple[int, str]:
    """Run such a process to its end; returns its exit status, negative for a signal, and its output."""
    with running(code, *arguments) as process:
        printed = process.stdout.read()
        return process.wait(), printed


def run_with(package: Path, code: str, folder: Path) -> tuple[int, str]:
    """The same as run(), in a folder, with prunus imported from the copy of the package there."""
    return run(_ANEW + code, package, folder)


_ANEW = """
import os, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "prunus"]:
    del sys.modules[name]
package, folder = sys.argv[1:]
sys.path.insert(0, package)
os.chdir(folder)
import prunus
assert prunus.__file__.startswith(package)
"""


def _work(code: str, arguments: list[str], output: Connection) -> None:
    import torch

    gc.freeze()  # what the server has is not to be looked at by every collection of garbage here
    os.dup2(output.fileno(), 1)
    output.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  the old one takes it for a file
    torch.set_num_threads(1)
    flush_nothing()
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})  # noqa: S102  the test's own text
