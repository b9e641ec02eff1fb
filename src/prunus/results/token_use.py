"""The tokens that runs used, and the accuracy of two runs at equal tokens used.

A pruned model may think longer at the same budget; a comparison by budget then hides that cost.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from prunus.budgets import OFF
from prunus.results import paired, scaling
from prunus.results.rows import Sample
from prunus.results.table import Table

Floats = NDArray[np.float64]


def token_ratios(base: Table, other: Table) -> list[dict[str, float]]:
    """For each budget tokens and base_tokens (mean per draw) and tokens_ratio with its 95 % interval (_low, _high).

    The interval is by the delta method on the log of the ratio, with Student's quantile; nan where base used no tokens,
    and for one problem.
    """
    theirs_PB, ours_PB = (table.by_group(table.used.mean(axis=2).astype(float)) for table in (base, other))
    P, theirs_B, ours_B = len(theirs_PB), theirs_PB.mean(axis=0), ours_PB.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_B = ours_B / theirs_B
        log_PB = ours_PB / ours_B - theirs_PB / theirs_B  # linearised contribution of each problem to the log ratio
        spread_B = scipy.stats.t.ppf(0.975, P - 1) * np.sqrt((log_PB**2).sum(axis=0) / np.float64(P - 1) / P)
        columns = {
            "tokens": ours_B,
            "base_tokens": theirs_B,
            "tokens_ratio": ratio_B,
            "tokens_ratio_low": ratio_B * np.exp(-spread_B),
            "tokens_ratio_high": ratio_B * np.exp(spread_B),
        }
    return [{name: float(column[b]) for name, column in columns.items()} for b in range(len(ratio_B))]


def token_area_cell(base: Table, other: Table, seed: int, resamples: int) -> dict[str, Any] | None:
    """Mean accuracy of both runs over their common range of mean tokens used, and the difference with interval and p.

    None where the ranges do not overlap, or there is only one problem. Accuracy is interpolated linearly between the
    (mean tokens, accuracy) of each run's budgets. The difference is not a mean over problems, so its jackknife
    pseudo-values are used (`scaling.per_problem`).
    """
    curves = (base.curve(), other.curve())
    parts = [
        table.by_group(part.astype(float).mean(axis=2)) for table in curves for part in (table.correct, table.used)
    ]
    values_PC = np.hstack(parts)
    mean = values_PC.mean(axis=0)
    low_end, high_end = shared_range(mean)
    if len(values_PC) < 2 or high_end <= low_end:
        return None
    differences = [scaling.per_problem(values_PC, area_differences)[:, None]]
    if not np.isfinite(differences).all():
        return None
    theirs, ours = areas(mean)
    return {
        "from": low_end,
        "to": high_end,
        **base.sizes(),
        "samples": len(base.draws),
        "accuracy": ours,
        "base_accuracy": theirs,
        **paired.infer(differences, resamples, seed).cells()[0],
        "difference": ours - theirs,
    }


def shared_range(means_C: Floats) -> tuple[float, float]:
    """The range of tokens that both curves cover; means_C as in `areas`."""
    _, theirs, _, ours = np.split(means_C, 4)
    return float(max(theirs.min(), ours.min())), float(min(theirs.max(), ours.max()))


def areas(means_C: Floats) -> tuple[float, float]:
    """Mean accuracy of base and of other over the shared range; nan where there is none.

    means_C: accuracies, then tokens, of base at B budgets, followed by those of other.
    """
    low, high = shared_range(means_C)
    if high <= low:
        return np.nan, np.nan
    curves = np.split(means_C, 4)
    knots = np.concatenate([curves[1], curves[3], [low, high]])
    grid = np.unique(knots[(knots >= low) & (knots <= high)])
    found = []
    for accuracy, tokens in (curves[:2], curves[2:]):
        order = np.argsort(tokens, kind="stable")
        height = np.interp(grid, tokens[order], accuracy[order])
        found.append(float((np.diff(grid) * (height[1:] + height[:-1])).sum() / 2 / (high - low)))
    return found[0], found[1]


def area_differences(means: Floats) -> Floats:
    """(...,) area of other minus that of base, from (..., C) means."""
    flat = means.reshape(-1, means.shape[-1])
    return np.array([ours - theirs for theirs, ours in map(areas, flat)]).reshape(means.shape[:-1])


Chain = Sequence[tuple[int, int, int, str]]  # (budget, thinking tokens, answer tokens, ended) of a draw, per budget


def sampled_tokens(chains: Iterable[Chain], reuse: bool = True) -> tuple[int, int]:
    """(thinking, answer) tokens that were generated for these chains; tokens shared by several budgets count once.

    reuse: all budgets of a draw are cut from one chain. They share its longest thinking and the answer after its
    natural end; each forced answer, and the one of budget OFF, is generated separately. Without reuse every budget was
    generated separately.
    """
    thinking = answer = 0
    share = max if reuse else sum
    for chain in chains:
        thinking += share(tokens for _, tokens, _, _ in chain)
        natural = [tokens for budget, _, tokens, ended in chain if ended == "natural" and budget != OFF]
        separate = sum(tokens for budget, _, tokens, ended in chain if ended == "forced" or budget == OFF)
        answer += separate + (share(natural) if natural else 0)
    return thinking, answer


def chains_of(samples: Iterable[Sample]) -> list[Chain]:
    """A run's samples grouped into chains: one for each draw of each problem."""
    found: dict[tuple[str, int], list[tuple[int, int, int, str]]] = defaultdict(list)
    for sample in samples:
        chain = found[sample.problem_id, sample.draw]
        chain.append((sample.budget, sample.thinking_tokens, sample.answer_tokens, sample.ended))
    return list(found.values())
