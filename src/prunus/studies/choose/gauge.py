"""A child process that starts an engine with a model, times it, and says how much memory its processes took.

    python -m prunus.studies.choose.gauge < ASKED.json

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

from prunus.errors import PrunusError
from prunus.evaluation.backends import opened
from prunus.evaluation.engine import Backend
from prunus.evaluation.provenance import describe_versions
from prunus.evaluation.requests import Completion, Request, Sampling

LAST = 16  # tokens that are timed at the depth of the largest budget
RESULT = "prunus gauge: "  # before the line of the result, among what libraries print


def main() -> None:
    """Read what is asked from stdin, and print what was measured."""
    asked = json.load(sys.stdin)
    try:
        found: Mapping[str, Any] = gauged(asked)
    except PrunusError as error:
        found = {"error": str(error)}
    print(RESULT + json.dumps(found), flush=True)


def gauged(asked: Mapping[str, Any]) -> dict[str, Any]:
    """{times, peak, engine} of an engine. asked: what `speed.asked_of` makes."""
    from prunus.settings.engines import EngineOptions

    options, own = EngineOptions(**asked["engine"]), asked["engine"].get("serve") is None
    with opened(asked["backend"], Path(asked["folder"]), asked["device"], asked["vocabulary"], options) as backend:
        about = describe_versions(backend) | ({} if own else {"command": options.serve})
        drawn(backend, asked["prompts"][:1], 2, asked)  # what the first request starts is not timed
        times = [timed(backend, chains, asked) for chains in asked["chains"]]
        peak = sum(peak_of(process) for process in processes(own))
    return {"times": times, "peak": peak or ended_peak(own), "engine": about | device_memory()}


def timed(backend: Backend, chains: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds with so many chains at once: of their prompts, of a token after them, and of one at the largest depth."""
    prompts, tokens = asked["prompts"], asked["tokens"]
    group = [prompts[number % len(prompts)] for number in range(chains)]
    reads, _ = drawn(backend, group, 1, asked)
    first, count = drawn(backend, [prompt[:-1] for prompt in group], 1 + tokens, asked)
    deep = [(asked["filler"] * (1 + asked["depth"] // max(1, len(asked["filler"]))))[: asked["depth"]] for _ in group]
    long = [[*prompt, *more] for prompt, more in zip(group, deep, strict=True)]
    before, _ = drawn(backend, long, 1, asked)
    after, more = drawn(backend, [prompt[:-1] for prompt in long], 1 + LAST, asked)
    return {
        "chains": chains,
        "prompt_tokens": sum(map(len, group)) / chains,
        "prompt_seconds": reads,
        "first": max(1e-9, (first - reads) / max(1, count - 1)),
        "last": max(1e-9, (after - before) / max(1, more - 1)),
        "depth": asked["depth"],
    }


def drawn(backend: Backend, prompts: Sequence[list[int]], tokens: int, asked: Mapping[str, Any]) -> tuple[float, float]:
    """(seconds, mean number of tokens) of drawing so many tokens after each prompt at most; no turn is ended."""
    counts = list[int]()

    def then(completion: Completion, _: int | None) -> None:
        counts.append(len(completion.ids))

    requests = [
        Request(prompt, tokens, frozenset(), frozenset(asked["banned"]), 17 + number, then=then)
        for number, prompt in enumerate(prompts)
    ]
    started = time.perf_counter()
    list(backend.completed(requests, Sampling(*asked["sampling"])))
    return time.perf_counter() - started, sum(counts) / len(counts)


def processes(own: bool) -> Iterator[int]:
    """This process, if own, and those that it started, and so on; of a server that was started only these."""
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
    """The same of systems without /proc: of this process, or of the largest that it started and that has ended."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF if own else resource.RUSAGE_CHILDREN).ru_maxrss


def device_memory() -> dict[str, int]:
    """The most bytes of a GPU that torch had in this process; nothing without one."""
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    return {"device_bytes": torch.cuda.max_memory_reserved()}


if __name__ == "__main__":
    main()
