"""Kernel or torch: each shape is timed once on this machine, and the winner kept in the user's cache.

Both are timed as Linears of a model are used: one after the other, over so many copies of the weight that none is in a
cache when its turn comes; and by turns, so that a busy machine slows both alike. Rounds of turns are repeated until two
agree on who is faster, since on a busy machine one can be wrong, and its answer would be kept.
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

from prunus.disk import write_text
from prunus.native.build import KERNEL
from prunus.native.load import cache_folder, kernel, threads
from prunus.sparse.linear import ANY_ROWS, MOST_ROWS, DenseLinear, SparseLinear
from prunus.sparse.weight import SparseWeight

# Numbers of rows that are timed; the kernel is used up to the largest at which, and below which, it has always won.
# A weight is packed if it wins at one row against torch's dense. With more rows the rival is what would be done
# instead: torch on the dense copy, if there is to be one, else on what is unpacked for it. Above the last: whoever
# has won there.
ROWS = (1, MOST_ROWS, 32, 128, 512)
DENSE_ROWS = (1, 2, 4, MOST_ROWS, 2 * MOST_ROWS)
REPEATS = 5
# So many rounds have to agree, by so much, or the median of MOST_ROUNDS decides.
AGREEING, CLEARLY, MOST_ROUNDS = 2, 1.03, 5
# Of all copies of a weight together: more bytes than most caches hold. Of a larger weight only so much is timed.
ALL_BYTES, MOST_COPIES = 1 << 26, 512


def kernel_rows(weight: SparseWeight | Tensor, dtype: torch.dtype, keep_dense: bool = False) -> int:
    """Up to how many rows of x of this dtype the kernel is faster; 0: never, ANY_ROWS: for however many.

    keep_dense: there is to be a dense copy beside a packed weight.
    """
    key = _key(weight, dtype) + (", dense kept" if keep_dense else "")
    known = _read()
    if key not in known:
        known[key] = time_rows(weight, dtype, keep_dense)
        _write(key, known[key])
    return ANY_ROWS if isinstance(weight, SparseWeight) and known[key] == ROWS[-1] else known[key]


@torch.inference_mode()
def time_rows(weight: SparseWeight | Tensor, dtype: torch.dtype, keep_dense: bool) -> int:
    """The largest of ROWS (of a plain weight, DENSE_ROWS) up to which the kernel is faster, timed now; 0: none."""
    if isinstance(weight, SparseWeight):
        copies = range(copies_for(weight.nbytes))
        packed = [weight.copy() for _ in copies]
        ours: list[nn.Module] = [SparseLinear(copy, None) for copy in packed]
        panels: list[nn.Module] = [SparseLinear(copy, None, 0) for copy in packed]
        dense_OI = weight.unpack().to(dtype)
    else:
        weight = weight[: max(1, ALL_BYTES // (weight.shape[1] * weight.element_size()))]
        copies = range(copies_for(weight.nbytes))
        ours = [DenseLinear(nn.Parameter(weight.clone(), requires_grad=False), None, DENSE_ROWS[-1]) for _ in copies]
        panels = []
        dense_OI = weight.to(dtype)
    torchs = [stock_linear(dense_OI.clone(), None) for _ in copies]
    best = 0
    for rows in ROWS if panels else DENSE_ROWS:
        x = torch.randn(1, rows, dense_OI.shape[1], generator=torch.Generator().manual_seed(rows)).to(dtype)
        rivals = panels if panels and rows > 1 and not keep_dense else torchs
        # Many rows take long, and it hardly matters to them whether the weight is in a cache.
        count = max(1, len(ours) * MOST_ROWS // max(rows, MOST_ROWS))
        if not is_faster(_pass(ours[:count], x), _pass(rivals[:count], x)):
            break
        best = rows
    return best


def copies_for(nbytes: int) -> int:
    """Return how many copies of the weight to time."""
    return min(MOST_COPIES, max(1, ALL_BYTES // nbytes))


def stock_linear(weight_OI: Tensor, bias_O: Tensor | None) -> nn.Linear:
    """torch's Linear with this weight, for inference."""
    linear = nn.Linear(1, 1, bias=bias_O is not None, device="meta")
    linear.out_features, linear.in_features = weight_OI.shape
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    if bias_O is not None:
        linear.bias = nn.Parameter(bias_O, requires_grad=False)
    return linear


def is_faster(ours: Callable[[], object], rival: Callable[[], object]) -> bool:
    """Whether ours takes less time, from as many rounds as it takes to be sure; a tie is ours."""
    ratios: list[float] = []
    while len(ratios) < MOST_ROUNDS:
        our_seconds, rival_seconds = race([ours, rival], REPEATS)
        ratios.append(rival_seconds / our_seconds)
        last = ratios[-AGREEING:]
        if len(last) == AGREEING and (min(last) > CLEARLY or max(last) < 1 / CLEARLY):
            return last[0] > 1
    return statistics.median(ratios) >= 1


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
    """Call all of them, one after the other."""

    def run() -> None:
        for linear in linears:
            linear(x)

    return run


@lru_cache(maxsize=1)
def machine() -> str:
    """Return what a choice depends on besides the weight: processor, torch, kernel."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    source = sha256(KERNEL.read_bytes()).hexdigest()[:16]
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
    """Return the stored choices, none if the cache cannot be read."""
    try:
        found = json.loads(_file().read_text("utf-8"))
        return {key: rows for key, rows in found.items() if isinstance(key, str) and rows in (0, *ROWS, *DENSE_ROWS)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(key: str, rows: int) -> None:
    """Of two processes that write at once the later one wins; what is lost is timed again."""
    try:
        write_text(_file(), json.dumps({**_read(), key: rows}, indent=1), sync=False)
    except OSError:
        return
