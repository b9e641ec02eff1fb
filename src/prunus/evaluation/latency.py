"""Measure how fast a model decodes a single chain on this machine, to express budgets in seconds (docs/protocol.md)."""

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from prunus.errors import PrunusError
from prunus.evaluation.requests import Backend
from prunus.progress import Steps

ROUNDS, TOKENS = 5, 12  # rounds over all contexts; tokens timed at each context in a round
Round = tuple[float, list[float]]  # seconds to read a prompt, and for each token after it


@runtime_checkable
class TimedBackend(Protocol):
    """A backend that can measure the time per token."""

    def time_tokens(self, context: int, tokens: int) -> Round:
        """Seconds to read one prompt of `context` tokens, and for each of the tokens decoded after it."""
        ...


def measure(backend: Backend, prompts: dict[str, list[int]], start: int, longest: int, context: int) -> dict[str, Any]:
    """The speed of a backend's model as a dict with the fields of prunus.results.latency.Speed.

    prompts: for each task the lengths of its prompts in tokens. start: number of tokens of the marker that opens
    thinking. longest: maximum number of tokens of a chain. context: of the model. Raises PrunusError if the backend
    cannot be timed.
    """
    if not isinstance(backend, TimedBackend):
        raise PrunusError("this backend cannot be timed; leave --measure-seconds out")
    shortest = min(min(counts) for counts in prompts.values())
    contexts = list(grid(shortest, min(longest, context - TOKENS)))
    timed: dict[int, list[Round]] = {tokens: [] for tokens in contexts}
    backend.time_tokens(contexts[0], TOKENS)  # warm-up
    with Steps("measuring latency", ROUNDS * len(contexts), "contexts") as steps:
        for _ in range(ROUNDS):
            for tokens in contexts:
                timed[tokens].append(backend.time_tokens(tokens, TOKENS))
                steps.advance()
    conditions = {**backend.description, "clock": clock_name(), "torch": version("torch")}
    return speed_of(timed, prompts, start, conditions)


def speed_of(
    timed: Mapping[int, Sequence[Round]],
    prompts: Mapping[str, Sequence[int]],
    start: int,
    conditions: Mapping[str, Any],
    of_rounds: Callable[[list[float]], float] = min,
) -> dict[str, Any]:
    """The speed from the rounds timed at each context; of each round the median token counts.

    of_rounds: combines the rounds: by default their minimum, the least disturbed one; the median suits models that are
    timed in turns. conditions: stored as `how`, together with spread: by which share the slowest round was slower than
    the fastest, median over contexts.
    """
    rounds = {tokens: [statistics.median(steps) for _, steps in found] for tokens, found in timed.items()}
    spread = statistics.median(max(found) / min(found) - 1 for found in rounds.values())
    return {
        "contexts": list(timed),
        "decode": [of_rounds(found) for found in rounds.values()],
        "prefill": [of_rounds([reading for reading, _ in found]) for found in timed.values()],
        "prompts": {task: statistics.fmean(counts) for task, counts in prompts.items()},
        "start": start,
        "how": {**conditions, "spread": spread},
    }


def grid(shortest: int, longest: int) -> Iterator[int]:
    """Yield contexts from the shortest prompt on, each twice the one before, and finally the longest."""
    tokens = max(1, shortest)
    while tokens < longest:
        yield tokens
        tokens *= 2
    yield max(1, longest)


def machine_of(device: str) -> str:
    """The name under which a speed is stored: the GPU, or the processor and the number of threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}"


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine() or f"{os.cpu_count()} processors"


def clock_name() -> str:
    """The clock of time_tokens on a CPU: `cpu` for one thread, which other processes do not slow down, else `wall`."""
    return "cpu" if torch.get_num_threads() == 1 else "wall"
