"""Draws nested in problems: errors and resamples that keep the two levels apart.

Verdicts resample problems only. The mean over problems varies by (omega^2 + v/N)/n, omega^2 the spread of true
differences between n problems and v the noise of one of N draws; whole problems, drawn with replacement, carry both
terms. Drawing draws within them as well adds v/N/n a second time (Davison and Hinkley 1997, section 3.8, advise against
it for that reason), and with one draw adds nothing. `bootstrap` does it for those who ask for it: its intervals are
safe but wide. Who claims something about these very problems, and no others, takes `fixed_error`.

`strata` are the tasks: one (P, N, C) array each of differences between draws of one number of two models, P problems by
N draws by C contrasts. Pairing draws of one number costs nothing if they are independent, and counts what they share if
they are not (both models sample with the same seeds).
"""

from collections.abc import Sequence
from math import nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
HELD = 4_000_000  # random numbers at a time


def clustered_error(values: ArrayLike, clusters: Sequence[object]) -> float:
    """Standard error of the mean of draws that come in clusters (problems, say) of any sizes; nan for one cluster.

    sqrt(G/(G-1) * sum over clusters of (sum of residuals)^2) / draws. With as many draws in every cluster it is the
    standard error of the cluster means, which `metrics.estimate` takes.
    """
    draws = np.asarray(values, dtype=float)
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    G = len(names)
    if G < 2:
        return nan
    sums = np.bincount([names[name] for name in clusters], draws - draws.mean())
    return sqrt(G / (G - 1) * float((sums**2).sum())) / len(draws)


def bootstrap(strata: Sequence[Floats], resamples: int = 10_000, seed: int = 0) -> Floats:
    """(R, C) means of two-level resamples: problems with replacement, then N of the draws within each of them."""
    rng = np.random.default_rng(seed)
    means = np.zeros((resamples, strata[0].shape[2]))
    for differences in strata:
        P, N, C = differences.shape
        flat, chunk = differences.reshape(P * N, C), max(1, HELD // (P * N))
        for start in range(0, resamples, chunk):
            size = min(chunk, resamples - start)
            chosen = rng.integers(0, P, (size, P, 1)) * N + rng.integers(0, N, (size, P, N))
            places = chosen.reshape(size, P * N) + P * N * np.arange(size)[:, None]
            counts = np.bincount(places.ravel(), minlength=size * P * N).reshape(size, P * N)
            means[start : start + size] += counts @ flat / (P * N)
    return means / len(strata)


def draw_variance(differences_PNC: Floats) -> Floats:
    """(C,) v: variance between draws of one problem, mean over problems; nan for one draw."""
    if differences_PNC.shape[1] < 2:
        return np.full(differences_PNC.shape[2], nan)
    return differences_PNC.var(axis=1, ddof=1).mean(axis=0)


def fixed_error(strata: Sequence[Floats]) -> Floats:
    """(C,) standard error if the problems are all there is: only the noise of their draws; nan for one draw."""
    parts = [draw_variance(d) / (d.shape[0] * d.shape[1]) for d in strata]
    return np.sqrt(sum(parts)) / len(strata)
