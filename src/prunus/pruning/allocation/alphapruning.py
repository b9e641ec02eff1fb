"""AlphaPruning: a block whose spectra have lighter tails is less well trained, and is pruned more.

Lu et al. 2024, arXiv:2410.10912; authors' code lib/esd_utils.py (net_esd_estimator) and lib/prune.py. No data.
N: eigenvalues of one Linear, ascending.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prunus.checkpoint.block_loader import blocks_on
from prunus.declarations import Allocation, Option
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.allocation.arithmetic import scaled, spread_of, spread_out
from prunus.pruning.allocation.importance_scores import WHOLE
from prunus.pruning.allocation.measurement import Measured, Subject
from prunus.pruning.calibration.data import Calibration
from prunus.recipes import Window

BINS = 100


def eigenvalues(weight_OI: Tensor) -> np.ndarray:
    """Squared singular values in float64, min(O, I) of them, ascending: eigenvalues of the smaller Gram matrix."""
    short = weight_OI.double()
    if short.shape[0] > short.shape[1]:
        short = short.T
    return torch.linalg.eigvalsh(short @ short.T).clamp(min=0).cpu().numpy()


def tail_exponent(eigenvalues_N: np.ndarray, window: Window = "fixed") -> float:
    """Exponent of the power law that fits the tail of a spectrum best (the paper's alpha_peak).

    Candidates for where the tail begins lie between 0.95 and 1.5 times the fullest histogram bin; the least
    Kolmogorov-Smirnov distance wins. window `reference`: the lower bound as in the authors' code, which compares
    eigenvalues with its logarithm and so mostly switches it off; their published exponents contain that. Zeros (of
    pruned or rank-deficient weights) do not count.
    """
    values = eigenvalues_N[eigenvalues_N > 1e-12 * eigenvalues_N[-1]]
    if len(values) < 4 or values[0] == values[-1]:
        raise PrunusError("AlphaPruning needs Linears with four different singular values; use another --allocation")
    logs = np.log(values)
    counts, edges = np.histogram(np.log10(values), bins=BINS)
    peak = 10 ** edges[int(np.argmax(counts))]
    lower = math.log10(0.95 * peak) if window == "reference" else 0.95 * peak
    tails_from = np.cumsum(logs[::-1])[::-1]
    best, exponent = math.inf, math.nan
    for i in np.flatnonzero((values > lower) & (values <= 1.5 * peak)):
        tail = len(values) - int(i)
        excess = tails_from[i] - tail * logs[i]
        if tail < 2 or excess <= 0:
            continue
        alpha = 1 + tail / excess
        model = 1 - np.exp((1 - alpha) * (logs[i:] - logs[i]))
        distance = np.abs(model - np.arange(tail) / tail).max()
        if distance < best:
            best, exponent = distance, alpha
    return float(_middle_exponent(logs) if math.isnan(exponent) else exponent)


def allocate(exponents: Sequence[float], sizes: Sequence[int], target: float, spread: float = 0.3) -> list[float]:
    """Sparsity of each block from the mean exponent of its Linears.

    Proportional to 1 - spread (lowest exponent) to 1 + spread (highest): the range narrows with target. spread: the
    paper's epsilon. The authors' code does not clip and can ask for more than all weights; here the rest makes up.
    """
    return scaled(ratios(spread_out(exponents), spread), sizes, target)


def ratios(shares: Sequence[float], spread: float) -> list[float]:
    """Shares in [0, 1] as factors 1 - spread to 1 + spread; all alike where the shares are."""
    return [1 - spread + 2 * spread * share for share in shares]


def _middle_exponent(logs_N: np.ndarray) -> float:
    """Hill's estimate over the upper half (the paper's alpha_mid), for a window without candidates."""
    tail = logs_N[len(logs_N) // 2 :]
    excess = tail.sum() - len(tail) * tail[0]
    return 1 + len(tail) / excess if excess > 0 else 1.0


def measure(subject: Subject, _calibration: Calibration | None) -> Measured:
    """Tail exponents of the spectra of all Linears; a block's score is the plain mean of its own."""
    exponents: list[dict[str, float]] = []
    source, recipe = subject.source, subject.recipe
    with Steps("spectra", total=source.blocks, unit="blocks") as steps:
        for index, tensors in enumerate(blocks_on(source, range(source.blocks), subject.runner.device)):
            weights = {name: tensors[f"{name}.weight"].to(subject.runner.device) for name in subject.names(index)}
            exponents.append({n: tail_exponent(eigenvalues(weight), recipe.window) for n, weight in weights.items()})
            steps.advance()
    scores = [sum(row.values()) / len(row) for row in exponents]
    return Measured({WHOLE: scores}, {"exponents": exponents}, [])


DECLARATION = Allocation(
    name="alphapruning",
    source="Lu et al. 2024, arXiv:2410.10912",
    description="blocks whose weight spectra have lighter tails lose more; needs no data",
    allocate=lambda scores, sizes, recipe: allocate(scores, sizes, recipe.sparsity, spread_of("alphapruning", recipe)),
    measure=measure,
    needs="weights",
    score="tail exponent",
    options=(
        Option("spread", float, None, "how far apart sparsities may get.", at_least=0, below=1, usual=0.3),
        Option(
            "window",
            str,
            "fixed",
            "window for the tail of a spectrum; reference: as in the authors' code.",
            choices=("fixed", "reference"),
        ),
    ),
    settings=("window",),
)
