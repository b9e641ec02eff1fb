"""Kernel or torch: each shape is timed once on this machine, and the winner kept in the user's cache.

Both are timed on weights that are in no cache, as they are when a model decodes, turn by turn, so that a busy machine
slows both alike.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from prunus.checkpoint.safetensors_file import write_text
from prunus.sparse.build import SOURCE
from prunus.sparse.library import cache_folder, kernel, threads
from prunus.sparse.linear import MOST_ROWS, multiply, shape_of
from prunus.sparse.weight import SparseWeight

# Numbers of rows that are timed; the kernel is used up to the largest at which, and below which, it has always won.
ROWS = (1, 2, 4, MOST_ROWS)
REPEATS = 5
# Read between two timings, so that weights come from memory: more than a cache of the last level holds.
SWEPT_BYTES = 1 << 26
# Of a plain weight only so much is timed.
TIMED_BYTES = 1 << 26


def kernel_rows(weight: SparseWeight | Tensor, dtype: torch.dtype) -> int:
    """Up to how many rows of x of this dtype the kernel is faster than torch with the dense weight; 0: never."""
    key = _key(weight, dtype)
    known = _read()
    if key not in known:
        known[key] = time_rows(weight, dtype)
        _write(key, known[key])
    return known[key]


@torch.inference_mode()
def time_rows(weight: SparseWeight | Tensor, dtype: torch.dtype) -> int:
    """The same, timed now."""
    _, inputs = shape_of(weight)
    if isinstance(weight, Tensor):
        weight = weight[: max(1, TIMED_BYTES // (inputs * weight.element_size()))]
    dense_OI = (weight.unpack() if isinstance(weight, SparseWeight) else weight).to(dtype)
    best = 0
    for rows in ROWS:
        x_RI = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)
        ours, torchs = race(lambda: multiply(x_RI, weight), lambda: functional.linear(x_RI, dense_OI))  # noqa: B023
        if ours >= torchs:
            break
        best = rows
    return best


def race(*runners: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Median seconds of each, in turns, with caches swept before each. CPU seconds where there is one thread."""
    clock = time.thread_time if threads() == 1 else time.perf_counter
    swept = _swept()
    seconds: list[list[float]] = [[] for _ in runners]
    for repeat in range(repeats + 1):
        for runner, found in zip(runners, seconds, strict=True):
            swept.sum()
            started = clock()
            runner()
            if repeat:  # the first is for warming up
                found.append(clock() - started)
    return [statistics.median(found) for found in seconds]


@lru_cache(maxsize=1)
def _swept() -> Tensor:
    return torch.ones(SWEPT_BYTES // 4, dtype=torch.int32)


@lru_cache(maxsize=1)
def machine() -> str:
    """What a choice depends on besides the weight: processor, torch, kernel."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    source = sha256(SOURCE.read_bytes()).hexdigest()[:16]
    return f"{processor}, {os.cpu_count()} processors, torch {torch.__version__}, kernel {source}"


def _key(weight: SparseWeight | Tensor, dtype: torch.dtype) -> str:
    outputs, inputs = shape_of(weight)
    kept = "plain"
    if isinstance(weight, SparseWeight):
        kept = f"{100 * weight.kept / (outputs * inputs):.0f}% kept"
    shape = f"{outputs}x{inputs} {weight.dtype} {kept}, x {dtype}".replace("torch.", "")
    return f"{shape}; {kernel().name}, {threads()} threads; {machine()}"


def _file() -> Path:
    return cache_folder() / "choices.json"


def _read() -> dict[str, int]:
    """What is known. A cache that cannot be read is no reason to fail."""
    try:
        found = json.loads(_file().read_text("utf-8"))
        return {key: rows for key, rows in found.items() if isinstance(key, str) and rows in (0, *ROWS)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(key: str, rows: int) -> None:
    """Of two processes that write at once the later one wins; what is lost is timed again."""
    try:
        write_text(_file(), json.dumps({**_read(), key: rows}, indent=1), sync=False)
    except OSError:
        return
