"""A server that Prunus starts for one model folder by the user's command, and stops again."""

import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import httpx2 as httpx

from prunus.engines import EngineOptions
from prunus.errors import PrunusError
from prunus.evaluation.backends.transport import received, run

LISTING_SECONDS = 5.0  # for the list of models
LOOK_SECONDS = 0.2  # between two questions whether the server answers
STOP_SECONDS = 30.0  # between the request to end and the kill
LINES, CHARACTERS = 5, 600  # of the server's output in an error message


@contextmanager
def reached(engine: EngineOptions, folder: Path) -> Iterator[EngineOptions]:
    """Within the context, options with the address of a server, which is started if they have a command for it."""
    if engine.serve is None:
        yield engine
        return
    with started(engine.serve, folder, engine.timeout) as url:
        yield replace(engine, url=url, serve=None)


@contextmanager
def started(template: str, folder: Path, seconds: float) -> Iterator[str]:
    """Within the context, a server for a model folder runs; its address. On leaving, its process group is stopped.

    template: the command with {model} (the folder), {port} and, if wanted, {name} (the folder's last part). No shell
    reads it. seconds: after which the server must answer. Raises PrunusError with the server's last lines if it cannot
    be started, ends, or does not answer in time.
    """
    port = free_port()
    values = {"{model}": str(folder.resolve()), "{port}": str(port), "{name}": folder.name}
    command = [filled(part, values) for part in shlex.split(template)]
    url = f"http://127.0.0.1:{port}/v1"
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise PrunusError(f"the server cannot be started: '{command[0]}': {error.strerror}") from error
        try:
            wait(process, url, seconds, log)
            yield url
        finally:
            stop(process)


def filled(part: str, values: dict[str, str]) -> str:
    """A word of the command with its placeholders replaced; other braces stay, since arguments may be JSON."""
    for name, value in values.items():
        part = part.replace(name, value)
    return part


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait(process: "subprocess.Popen[bytes]", url: str, seconds: float, log: IO[bytes]) -> None:
    """Once the server lists its models."""
    until = time.monotonic() + seconds
    while True:
        if run(_answers(url)):
            return
        if (code := process.poll()) is not None:
            raise PrunusError(f"the server ended with exit code {code} before it answered: {last_lines(log)}")
        if time.monotonic() > until:
            raise PrunusError(f"the server did not answer within {seconds:g} s (timeout): {last_lines(log)}")
        time.sleep(LOOK_SECONDS)


async def _answers(url: str) -> bool:
    """Whether the server lists its models."""
    async with httpx.AsyncClient(timeout=LISTING_SECONDS) as client:
        with suppress(httpx.HTTPError, PrunusError):
            return (await received(client, "GET", f"{url}/models")).status == httpx.codes.OK
    return False


def last_lines(log: IO[bytes]) -> str:
    """The last lines of the server's output, as one."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - 10_000))
    lines = [" ".join(line.split()) for line in log.read().decode("utf-8", "replace").splitlines()]
    return " | ".join([line for line in lines if line][-LINES:])[-CHARACTERS:] or "it printed nothing"


def stop(process: "subprocess.Popen[Any]") -> None:
    """Ask the server and its children to end, and kill what is left."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
