"""Kernel or torch: each shape is timed once on this machine, and the winner kept in the user's cache.

Both are timed as Linears of a model are used: one after the other, over so many copies of the weight that none is in a
cache when its turn comes; and by turns, so that a busy machine slows both alike.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.checkpoint.safetensors_file import write_text
from prunus.sparse.build import SOURCE
from prunus.sparse.library import cache_folder, kernel, threads
from prunus.sparse.linear import MOST_ROWS, DenseLinear, SparseLinear
from prunus.sparse.weight import SparseWeight

# Numbers of rows that are timed; the kernel is used up to the largest at which, and below which, it has always won.
ROWS = (1, 2, 4, MOST_ROWS, 2 * MOST_ROWS)
REPEATS = 5
# Of all copies of a weight together: more bytes than most caches hold. Of a larger weight only so much is timed.
ALL_BYTES, MOST_COPIES = 1 << 26, 512


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
    if isinstance(weight, SparseWeight):
        copies = range(copies_for(weight.nbytes))
        ours: list[nn.Module] = [SparseLinear(weight.copy(), None, ROWS[-1]) for _ in copies]
        dense_OI = weight.unpack().to(dtype)
    else:
        weight = weight[: max(1, ALL_BYTES // (weight.shape[1] * weight.element_size()))]
        copies = range(copies_for(weight.nbytes))
        ours = [DenseLinear(nn.Parameter(weight.clone(), requires_grad=False), None, ROWS[-1]) for _ in copies]
        dense_OI = weight.to(dtype)
    torchs = [stock_linear(dense_OI.clone(), None) for _ in copies]
    best = 0
    for rows in ROWS:
        x = torch.randn(1, rows, dense_OI.shape[1], generator=torch.Generator().manual_seed(rows)).to(dtype)
        our_seconds, torch_seconds = race([_pass(ours, x), _pass(torchs, x)], REPEATS)
        if our_seconds >= torch_seconds:
            break
        best = rows
    return best


def copies_for(nbytes: int) -> int:
    """How many copies to time."""
    return min(MOST_COPIES, max(1, ALL_BYTES // nbytes))


def stock_linear(weight_OI: Tensor, bias_O: Tensor | None) -> nn.Linear:
    """torch's Linear with this weight, for inference."""
    linear = nn.Linear(1, 1, bias=bias_O is not None, device="meta")
    linear.out_features, linear.in_features = weight_OI.shape
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    if bias_O is not None:
        linear.bias = nn.Parameter(bias_O, requires_grad=False)
    return linear


def race(runners: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each, by turns after a first one for warming up. CPU seconds where there is one thread."""
    clock = time.thread_time if threads() == 1 else time.perf_counter
    seconds: list[list[float]] = [[] for _ in runners]
    for repeat in range(repeats + 1):
        for runner, found in zip(runners, seconds, strict=True):
            started = clock()
            runner()
            if repeat:
                found.append(clock() - started)
    return [statistics.median(found) for found in seconds]


def _pass(linears: Sequence[nn.Module], x: Tensor) -> Callable[[], object]:
    """All of them, one after the other."""

    def run() -> None:
        for linear in linears:
            linear(x)

    return run


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
    kept = "plain"
    shape = tuple(weight.shape)
    if isinstance(weight, SparseWeight):
        kept = f"{20 * weight.kept / (shape[0] * shape[1]):.0f}/20 kept"
    sizes = f"{shape[0]}x{shape[1]} {weight.dtype} {kept}, x {dtype}".replace("torch.", "")
    return f"{sizes}; {kernel().name}, {threads()} threads; {machine()}"


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
