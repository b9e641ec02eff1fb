"""AlphaPruning: blocks whose weight spectra have lighter tails are taken as less well trained and pruned more.

Lu et al. 2024, arXiv:2410.10912; authors' code lib/esd_utils.py (net_esd_estimator) and lib/prune.py. It needs no data.
N: eigenvalues of one Linear, ascending.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prunus.checkpoint.loader import blocks_on
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.allocation.arithmetic import normalised, scaled, spread_of
from prunus.pruning.allocation.measurement import WHOLE, ImportanceScores, Subject
from prunus.pruning.calibration.data import Calibration
from prunus.recipes import PruneRecipe, Window

BINS = 100


def eigenvalues(weight_OI: Tensor) -> np.ndarray:
    """(min(O, I),) float64 eigenvalues of the smaller Gram matrix (squared singular values), ascending."""
    short = weight_OI.double()
    if short.shape[0] > short.shape[1]:
        short = short.T
    return torch.linalg.eigvalsh(short @ short.T).clamp(min=0).cpu().numpy()


def tail_exponent(eigenvalues_N: np.ndarray, window: Window = "fixed") -> float:
    """Exponent of the power law that best fits the tail of a spectrum (the paper's alpha_peak).

    The tail may begin between 0.95 and 1.5 times the fullest bin of the histogram; the start with the least
    Kolmogorov-Smirnov distance is taken. window `reference`: the lower bound of the authors' code, which compares
    eigenvalues with the bound's logarithm, so that it rarely has an effect; their published exponents were computed in
    this way. Eigenvalues of 0, from pruned or rank-deficient weights, are left out. Raises PrunusError if fewer than
    four eigenvalues are left or all are equal.
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


def allocate(exponents: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """Sparsity of each block from the mean exponent of its Linears.

    Sparsities are proportional to factors from 1 - spread (lowest exponent) to 1 + spread (highest), so their range
    shrinks with the target. The spread is the paper's epsilon. The authors' code does not clip and can ask for more
    than all weights; here sparsities are clipped and other blocks compensate.
    """
    return scaled(ratios(normalised(exponents), spread_of("alphapruning", recipe)), sizes, recipe.sparsity)


def ratios(shares: Sequence[float], spread: float) -> list[float]:
    """Numbers in [0, 1] mapped linearly to factors from 1 - spread to 1 + spread."""
    return [1 - spread + 2 * spread * share for share in shares]


def _middle_exponent(logs_N: np.ndarray) -> float:
    """Hill's estimate over the upper half of a spectrum (the paper's alpha_mid), used if no tail can be fitted."""
    tail = logs_N[len(logs_N) // 2 :]
    excess = tail.sum() - len(tail) * tail[0]
    return 1 + len(tail) / excess if excess > 0 else 1.0


def measure(subject: Subject, _calibration: Calibration | None) -> ImportanceScores:
    """Tail exponents of the spectra of all Linears; a block's score is the mean over its Linears."""
    exponents: list[dict[str, float]] = []
    source, recipe = subject.source, subject.recipe
    with Steps("spectra", total=source.blocks, unit="blocks") as steps:
        for index, tensors in enumerate(blocks_on(source, range(source.blocks), subject.runner.device)):
            weights = {name: tensors[f"{name}.weight"].to(subject.runner.device) for name in subject.names(index)}
            exponents.append({n: tail_exponent(eigenvalues(weight), recipe.window) for n, weight in weights.items()})
            steps.advance()
    scores = [sum(row.values()) / len(row) for row in exponents]
    return ImportanceScores(scores={WHOLE: scores}, details={"exponents": exponents})
