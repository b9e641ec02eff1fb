"""Choose between the kernel and torch: each shape is timed once on this machine; the user's cache stores the winner.

Both are timed as a model uses its Linears: one Linear after the other, over enough copies of the weight that none is
still in the processor's cache when it is read again. The two alternate, so that other load on the machine slows both
alike. Rounds are repeated until two agree, because a single round on a busy machine can be wrong and its result would
be stored.
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
from prunus.plain_data import parse_json
from prunus.sparse.linear import ANY_ROWS, MOST_ROWS, DenseLinear, SparseLinear
from prunus.sparse.weight import SparseWeight

# Row counts that are timed, for packed and for plain weights. The kernel is used up to the largest count before its
# first loss, and if it wins at the last of ROWS, for any number of rows. At one row a packed weight competes with
# torch's dense Linear: if it loses, the weight is not packed. At more rows it competes with its alternative: torch on
# panels of W that are unpacked for it.
# A plain weight in 16 bits, for x in float32, competes first with torch on a float32 copy, over all of DECODED_ROWS
# together: if it loses, that copy is used. For more rows it competes with its alternative, torch on panels of W that
# are widened for it, which are slower than that copy.
ROWS = (1, MOST_ROWS, 32, 128, 512)
DENSE_ROWS = (1, 2, 4, MOST_ROWS, 16, 32, 64)
DECODED_ROWS = (1, MOST_ROWS, 32, 64)
REPEATS = 5
# The last AGREEING rounds must agree on the winner by a factor of CLEARLY; after MOST_ROUNDS their median decides.
AGREEING, CLEARLY, MOST_ROUNDS = 2, 1.03, 5
# ALL_BYTES, the size of all copies of a weight together, exceeds most caches; a larger weight is timed in part.
ALL_BYTES, MOST_COPIES = 1 << 26, 512


def kernel_rows(weight: SparseWeight | Tensor, dtype: torch.dtype) -> int:
    """The largest number of rows of x, of this dtype, for which to use the kernel: 0 for never, ANY_ROWS for always."""
    key, known = _key(weight, dtype), _read()
    if key not in known:
        known[key] = time_rows(weight, dtype)
        _write(key, known[key])
    return ANY_ROWS if known[key] == ROWS[-1] else known[key]


@torch.inference_mode()
def time_rows(weight: SparseWeight | Tensor, dtype: torch.dtype) -> int:
    """The largest number of rows up to which the kernel wins, timed now; 0 if it loses.

    It is one of ROWS, or of DENSE_ROWS for a plain weight in the dtype of x.
    """
    if isinstance(weight, SparseWeight):
        copies = range(copies_for(weight.nbytes))
        packed = [weight.copy() for _ in copies]
        ours: list[nn.Module] = [SparseLinear(copy, None) for copy in packed]
        panels: list[nn.Module] = [SparseLinear(copy, None, 0) for copy in packed]
        dense_OI = weight.unpack().to(dtype)
    else:
        weight = weight[: max(1, ALL_BYTES // (weight.shape[1] * weight.element_size()))]
        copies = range(copies_for(weight.nbytes))
        weights = [nn.Parameter(weight.clone(), requires_grad=False) for _ in copies]
        ours = [DenseLinear(one, None, ANY_ROWS) for one in weights]
        panels = [DenseLinear(one, None, 0) for one in weights] if weight.dtype != dtype else []
        dense_OI = weight.to(dtype)
    torchs = [stock_linear(dense_OI.clone(), None) for _ in copies]
    best, inputs, widened = 0, dense_OI.shape[1], bool(panels) and not isinstance(weight, SparseWeight)
    x_of = {
        rows: torch.randn(1, rows, inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)
        for rows in (*ROWS, *DENSE_ROWS)
    }
    if widened:
        decoded = [x_of[rows] for rows in DECODED_ROWS]
        if not is_faster(_pass(ours, *decoded), _pass(torchs, *decoded)):
            return 0
        best = DECODED_ROWS[-1]
    for rows in ROWS if panels else DENSE_ROWS:
        if rows <= best:
            continue
        rivals = panels if panels and rows > 1 else torchs
        if not is_faster(_pass(ours, x_of[rows]), _pass(rivals, x_of[rows])):
            break
        best = rows
    return best


def copies_for(nbytes: int) -> int:
    """How many copies of the weight to time."""
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
    """Whether ours is at least as fast as rival, from as many rounds as a clear result takes (at most MOST_ROUNDS)."""
    ratios: list[float] = []
    while len(ratios) < MOST_ROUNDS:
        our_seconds, rival_seconds = race([ours, rival], REPEATS)
        ratios.append(rival_seconds / our_seconds)
        last = ratios[-AGREEING:]
        if len(last) == AGREEING and (min(last) > CLEARLY or max(last) < 1 / CLEARLY):
            return last[0] > 1
    return statistics.median(ratios) >= 1


def race(runners: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each runner over repeats alternating calls, after one warm-up call each.

    With one thread these are CPU seconds, else wall-clock seconds.
    """
    clock = time.thread_time if threads() == 1 else time.perf_counter
    seconds: list[list[float]] = [[] for _ in runners]
    for repeat in range(repeats + 1):
        for runner, found in zip(runners, seconds, strict=True):
            started = clock()
            runner()
            if repeat:
                found.append(clock() - started)
    return [statistics.median(found) for found in seconds]


def _pass(linears: Sequence[nn.Module], *some_x: Tensor) -> Callable[[], object]:
    """A function that calls these Linears, one after the other, with each x in turn.

    With many rows a pass takes long, and whether a weight is in a cache hardly matters, so fewer Linears are called.
    """

    def run() -> None:
        for x in some_x:
            for linear in linears[: max(1, len(linears) * MOST_ROWS // max(x.shape[1], MOST_ROWS))]:
                linear(x)

    return run


@lru_cache(maxsize=1)
def machine() -> str:
    """What a timing depends on besides the weight: processor, torch version and a digest of the kernel."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    source = sha256(KERNEL.read_bytes()).hexdigest()[:16]
    return f"{processor}, {os.cpu_count()} processors, torch {torch.__version__}, kernel {source}"


def _key(weight: SparseWeight | Tensor, dtype: torch.dtype) -> str:
    """The name of a timing in the cache. The share of kept weights is rounded to twentieths."""
    kept = "plain"
    shape = tuple(weight.shape)
    if isinstance(weight, SparseWeight):
        kept = f"{20 * weight.kept / (shape[0] * shape[1]):.0f}/20 kept"
    sizes = f"{shape[0]}x{shape[1]} {weight.dtype} {kept}, x {dtype}".replace("torch.", "")
    return f"{sizes}; {kernel().name}, {threads()} threads; {machine()}"


def _file() -> Path:
    return cache_folder() / "choices.json"


def _read() -> dict[str, int]:
    """The stored choices, an empty dict if the cache cannot be read."""
    try:
        found = parse_json(_file().read_text("utf-8"))
        return {key: rows for key, rows in found.items() if isinstance(key, str) and rows in (0, *ROWS, *DENSE_ROWS)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(key: str, rows: int) -> None:
    """Store a choice. If two processes write at once, one choice may be lost, and is then timed again."""
    try:
        write_text(_file(), json.dumps({**_read(), key: rows}, indent=1), sync=False)
    except OSError:
        return
