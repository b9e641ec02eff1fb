"""A child process that starts an engine with a model, times it, and says how much memory its processes took.

    python -m prunus.studies.choose.speed_process < ASKED.json

It is a process of its own so that nothing but the engine is in the peak. Prints one line of JSON.
"""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from prunus.errors import PrunusError
from prunus.evaluation.backends import opened
from prunus.evaluation.engine import Backend
from prunus.evaluation.provenance import describe_environment
from prunus.evaluation.requests import Completion, Request, Sampling
from prunus.machine_load import load
from prunus.plain_data import Record
from prunus.settings.engines import BACKENDS, EngineOptions
from prunus.store.stored import Environment

LAST = 48  # tokens that are timed at the depth of the largest budget, so that they outweigh the noise of its prompt
RESULT = "prunus speed test: "  # before the line of the result, among what libraries print


class SpeedTest(Record):
    """Request for a speed test of a model in an engine, with prompts of a task.

    engine: fields of EngineOptions. chains: numbers of them at once. filler: ids that make a chain as long as `depth`,
    the largest budget. tokens: that are timed after a prompt. banned: ids that would end a turn. sampling: fields of
    Sampling.
    """

    backend: str
    folder: str
    device: str
    vocabulary: int
    engine: Mapping[str, Any]
    chains: Sequence[int]
    prompts: Sequence[list[int]]
    filler: list[int]
    depth: int
    tokens: int
    banned: Sequence[int]
    sampling: Sequence[Any]


class Timing(Record):
    """Seconds that a number of chains take at once: for their prompts, the next token, and one at the depth."""

    chains: int
    prompt_tokens: float
    prompt_seconds: float
    first: float
    last: float
    depth: int


class SpeedTestResult(Record):
    """Result of a speed test, from one start of an engine.

    peak: most bytes of its processes. engine: what it says of itself. device_bytes: most bytes of a GPU. load: of the
    machine before the test, as `load` returns it.
    """

    times: Sequence[Timing]
    peak: int
    engine: Environment
    device_bytes: int = 0
    load: float | None = None


def main() -> None:
    """Read a SpeedTest from stdin, and print what was measured."""
    test = SpeedTest.of(json.load(sys.stdin))
    try:
        found = measured(test).to_json()
    except PrunusError as error:
        found = {"error": str(error)}
    print(RESULT + json.dumps(found), flush=True)


def measured(test: SpeedTest) -> SpeedTestResult:
    """Run a speed test from this process. Raises PrunusError where the engine cannot be started."""
    options, before = EngineOptions(**test.engine), load()
    own = options.serve is None
    with opened(test.backend, Path(test.folder), test.device, test.vocabulary, options) as backend:
        about = describe_environment(backend) | ({} if own else {"command": options.serve})
        if BACKENDS[test.backend].in_torch:
            about |= {"threads": torch.get_num_threads(), "kernels": torch.backends.cpu.get_cpu_capability()}
        drawn(backend, test.prompts[:1], 2, test)  # what the first request starts is not timed
        times = [timed(backend, chains, test, 1 + 4 * number) for number, chains in enumerate(test.chains)]
        peak = sum(peak_of(process) for process in processes(own))
    return SpeedTestResult(
        times=times, peak=peak or ended_peak(own), engine=about, device_bytes=device_bytes(), load=before
    )


def timed(backend: Backend, chains: int, test: SpeedTest, places: int) -> Timing:
    """Time this number of chains at once. places: the first of four numbers by which prompts are `turned`."""
    group = [test.prompts[number % len(test.prompts)] for number in range(chains)]
    deep = (test.filler * (1 + test.depth // max(1, len(test.filler))))[: test.depth]
    long = [[*prompt, *deep] for prompt in group]
    reads, _ = drawn(backend, turned(group, places), 1, test)
    first, count = drawn(backend, turned(group, places + 1), 1 + test.tokens, test)
    before, _ = drawn(backend, turned(long, places + 2), 1, test)
    after, more = drawn(backend, turned(long, places + 3), 1 + LAST, test)
    soon = max(1e-9, (first - reads) / max(1, count - 1))
    return Timing(
        chains=chains,
        prompt_tokens=sum(map(len, group)) / chains,
        prompt_seconds=reads,
        first=soon,
        last=(after - before) / max(1, more - 1),
        depth=test.depth,
    )


def turned(prompts: Sequence[list[int]], places: int) -> list[list[int]]:
    """Prompts as long as these with another beginning, so that an engine's cache of prefixes has nothing of them.

    The first `places` tokens and the next `places` are swapped. The end stays, since after an odd one no next token
    stands out, and sampling takes longer from many tokens that are about as likely.
    """
    return [[*prompt[places : 2 * places], *prompt[:places], *prompt[2 * places :]] for prompt in prompts]


def drawn(backend: Backend, prompts: Sequence[list[int]], tokens: int, test: SpeedTest) -> tuple[float, float]:
    """(seconds, mean number of tokens) of drawing up to `tokens` tokens after each prompt; no turn may end."""
    counts = list[int]()

    def then(completion: Completion, _: int | None) -> None:
        counts.append(len(completion.ids))

    requests = [
        Request(prompt, tokens, frozenset(), frozenset(test.banned), 17 + number, then=then)
        for number, prompt in enumerate(prompts)
    ]
    started = time.perf_counter()
    list(backend.completed(requests, Sampling(*test.sampling)))
    return time.perf_counter() - started, sum(counts) / len(counts)


def processes(own: bool) -> Iterator[int]:
    """Yield the ids of this process if own, and of all its descendants, such as a server that it started."""
    if own:
        yield os.getpid()
    found = [os.getpid()]
    while found:
        for file in Path(f"/proc/{found.pop()}/task").glob("*/children"):
            with suppress(OSError):
                children = [int(word) for word in file.read_text().split()]
                yield from children
                found += children


def peak_of(process: int) -> int:
    """Most bytes of memory that a process had; 0 where the system does not tell."""
    with suppress(OSError):
        told = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
        return 1024 * int(told[1]) if told else 0
    return 0


def ended_peak(own: bool) -> int:
    """Peak bytes of memory of this process if own, else of its largest child that has ended; for use without /proc."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF if own else resource.RUSAGE_CHILDREN).ru_maxrss


def device_bytes() -> int:
    """The most bytes of a GPU that torch had in this process; 0 without any."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return 0
    return torch.cuda.max_memory_reserved()


if __name__ == "__main__":
    main()
