"""How fast a model decodes one chain alone on this machine, for telling budgets in seconds (docs/protocol.md)."""

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

ROUNDS, TOKENS = 5, 12  # tokens timed at each context in each round; rounds alternate between contexts
Round = tuple[float, list[float]]  # seconds to read a prompt, and for each token after it


@runtime_checkable
class TimedBackend(Protocol):
    """A backend that can be timed."""

    def time_tokens(self, context: int, tokens: int) -> Round:
        """Seconds to read one prompt of `context` tokens, and for each of the tokens decoded after it."""
        ...


def measure(backend: Backend, prompts: dict[str, list[int]], start: int, longest: int, context: int) -> dict[str, Any]:
    """The speed of a backend's model, as prunus.results.latency.Speed keeps it.

    prompts: of each task the tokens of its prompts. start: tokens of the marker that opens the thinking. longest: to
    how many tokens a chain can come. context: of the model.
    """
    if not isinstance(backend, TimedBackend):
        raise PrunusError("this backend cannot be timed; leave --measure-seconds out")
    shortest = min(min(counts) for counts in prompts.values())
    contexts = list(grid(shortest, min(longest, context - TOKENS)))
    timed: dict[int, list[Round]] = {tokens: [] for tokens in contexts}
    backend.time_tokens(contexts[0], TOKENS)  # warm-up
    with Steps("measuring seconds", ROUNDS * len(contexts), "contexts") as steps:
        for _ in range(ROUNDS):
            for tokens in contexts:
                timed[tokens].append(backend.time_tokens(tokens, TOKENS))
                steps.advance()
    how = {**backend.description, "clock": clock_name(), "torch": version("torch")}
    return speed_of(timed, prompts, start, how)


def speed_of(
    timed: Mapping[int, Sequence[Round]],
    prompts: Mapping[str, Sequence[int]],
    start: int,
    how: Mapping[str, Any],
    of_rounds: Callable[[list[float]], float] = min,
) -> dict[str, Any]:
    """The speed from what was timed at each context: of rounds the least disturbed one, whose median token counts.

    of_rounds: another choice among rounds, such as the median where models are timed in turns. In how, spread: by which
    share the most disturbed round was slower than the least, at the context in the middle.
    """
    rounds = {tokens: [statistics.median(steps) for _, steps in found] for tokens, found in timed.items()}
    spread = statistics.median(max(found) / min(found) - 1 for found in rounds.values())
    return {
        "contexts": list(timed),
        "decode": [of_rounds(found) for found in rounds.values()],
        "prefill": [of_rounds([reading for reading, _ in found]) for found in timed.values()],
        "prompts": {task: statistics.fmean(counts) for task, counts in prompts.items()},
        "start": start,
        "how": {**how, "spread": spread},
    }


def grid(shortest: int, longest: int) -> Iterator[int]:
    """Contexts from the shortest prompt on, each twice the one before, and the longest."""
    tokens = max(1, shortest)
    while tokens < longest:
        yield tokens
        tokens *= 2
    yield max(1, longest)


def machine_of(device: str) -> str:
    """What a speed is stored under: the processor or GPU, and how many threads use it."""
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
    """Which clock time_tokens reads on a CPU: with one thread its CPU time, which others' work does not lengthen."""
    return "cpu" if torch.get_num_threads() == 1 else "wall"
