"""The cells of a comparison: every contrast of two runs on the same problems, budgets and draws.

`paired` computes intervals, `directions` and `betting` the p-values and bounds that verdicts rest on, and `anytime` all
of these where rows decided how many problems were taken; they explain why these methods are used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.budgets import OFF, without_off
from prunus.margins import Margin
from prunus.results import anytime, bands, betting, metrics, paired, power, retention
from prunus.results.directions import direction_p
from prunus.results.metrics import AUC
from prunus.results.table import Table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Grown:
    """How problems were taken by a limit that grew.

    order: the problems of the task in the plan's order. limits, share: as of `stages.Growth`. seed: of the order of
    bets among the problems that one limit admitted.
    """

    order: tuple[str, ...]
    limits: tuple[float, ...]
    seed: int
    share: float


@dataclass(frozen=True)
class Pair:
    """One task of two runs on the same problems, budgets and draws.

    adaptive: if rows decided how many problems were taken, the seed of `order` by which `find` took them, or how a
    limit grew; else None.
    """

    base: Table
    other: Table
    adaptive: int | Grown | None = None

    def at(self, budgets: Sequence[int]) -> "Pair":
        """The pair at some of its budgets."""
        base, other = (table.select(table.problems, budgets, table.draws) for table in (self.base, self.other))
        return Pair(base, other, self.adaptive)


@dataclass(frozen=True)
class Claims:
    """The numbers of tests for which the p-values of budgets, and of the area, are corrected."""

    budgets: int
    areas: int


def contrast_cells(pairs: Sequence[Pair], margin: Margin, seed: int, resamples: int, claims: Claims) -> dict[str, Any]:
    """{"budgets": {budget: cell}, "auc": cell, "slope": cell or None} of one task, or of several with equal weights.

    `comparison.compare` lists the keys of a cell. Keys that depend on other cells (adjusted p, q) are added later. The
    cell of budget OFF is computed apart, so that it changes no other cell.
    """
    budgets = pairs[0].base.budgets
    if OFF in budgets and len(budgets) > 1:
        off, curve = (
            contrast_cells([pair.at(some) for pair in pairs], margin, seed, resamples, claims)
            for some in ([OFF], without_off(budgets))
        )
        return curve | {"budgets": off["budgets"] | curve["budgets"]}
    weights_BC, several = _weights(budgets)
    base, other = ([table.by_group(_per_draw(table, weights_BC)) for table in side] for side in _sides(pairs))
    differences = [theirs - ours for ours, theirs in zip(base, other, strict=True)]  # (G, N, C) of each task
    strata, base_means, other_means = ([d.mean(axis=1) for d in side] for side in (differences, base, other))
    tested, draws = paired.infer(strata, resamples, seed), len(pairs[0].base.draws)
    shares = [d[:, : len(budgets) + 1] for d in strata]  # differences of accuracies, which lie in [-1, 1]; no slopes
    claims_C = np.array([claims.budgets] * len(budgets) + [claims.areas] * (1 + several))
    columns = {
        "accuracy": paired.estimate(other_means),
        "base_accuracy": paired.estimate(base_means),
        **{"p_flip" if name == "p" else name: column for name, column in tested.columns.items()},
    }
    one_outcome = np.full(len(budgets) + 1, draws == 1 and len(pairs) == 1 and not pairs[0].base.grouped)
    one_outcome[-1] &= np.count_nonzero(weights_BC[:, len(budgets)]) == 1
    bases = [d[:, : len(budgets) + 1] for d in base_means]
    judged = direction_p(shares, seed, draws, one_outcome) | {
        "lower_bound": betting.lower_bound(shares, seed=seed, draws=draws, nulls=[-margin.size]),
        "p_margin": p_of_margin(shares, bases, pairs, margin, seed),
        "mde": power.minimum_detectable(shares, bases, claims_C[: len(budgets) + 1], draws, one_outcome, seed),
    }
    size = sizes_of(pairs)
    found: list[dict[str, Any]] = [
        size | {name: float(column[c]) for name, column in columns.items()} for c in range(weights_BC.shape[1])
    ]
    for c, cell in enumerate(found[: len(budgets) + 1]):
        cell |= {name: float(column[c]) for name, column in judged.items()}
    for cell in found[: len(budgets) + 1]:
        if margin.covers(cell["base_accuracy"]):  # losing everything would be within it, so nothing is claimed
            cell["p_margin"] = 1.0
    _add_settling(found[: len(budgets) + 1], [d[:, :, : len(budgets) + 1] for d in differences], margin, claims_C)
    _add_bands(found[: len(budgets)], tested)
    if pairs[0].adaptive is not None:
        _hold_at_any_time(found[: len(budgets) + 1], shares, pairs, margin)
    slope: dict[str, Any] | None = found[-1] if several else None
    if slope:
        reach = float(weights_BC[:, -1].clip(0).sum())
        slope |= {
            name: float(p[0]) for name, p in direction_p([d[:, -1:] / (2 * reach) for d in strata], seed, draws).items()
        }
        slope |= _scaling([d[:, -1:] for d in base_means], [d[:, -1:] for d in other_means], reach, seed, draws)
        if pairs[0].adaptive is not None:
            slope |= dict.fromkeys(("p_kept", "p_lost", "p_better", "p_worse", "p"), 1.0)  # none holds at any time
    return {"budgets": dict(zip(budgets, found[: len(budgets)], strict=True)), AUC: found[len(budgets)], "slope": slope}


def _hold_at_any_time(
    found: Sequence[dict[str, Any]], shares: Sequence[Floats], pairs: Sequence[Pair], margin: Margin
) -> None:
    """Replace what a verdict rests on, and all intervals, by numbers that hold whatever ended the collection.

    But for p_margin, which p_of_margin makes so.

    found: cells of budgets, then that of the area.
    """
    columns = any_time_columns(shares, pairs, margin.size, max(1, len(found) - 1))
    for c, cell in enumerate(found):
        now = {name: float(column[c]) for name, column in columns.items() if name != "p_margin"}
        cell |= {name: value for name, value in now.items() if name in cell}


def any_time_columns(
    strata: Sequence[Floats], pairs: Sequence[Pair], margin: float, columns: int = 1
) -> dict[str, Floats]:
    """`anytime.infer` of the differences (G, C) of each pair, in the order in which groups of problems were taken."""
    how, names = pairs[0].adaptive, [pair.base.groups for pair in pairs]
    assert how is not None
    if isinstance(how, int):
        return anytime.infer(anytime.in_rounds(strata, names, how), margin, columns)
    orders = [pair.adaptive.order for pair in pairs if isinstance(pair.adaptive, Grown)]
    rounds, first = anytime.in_plan_order(strata, names, orders, how.limits, how.seed)
    return anytime.infer(rounds, margin, columns, first, how.share)


def p_of_margin(
    differences: Sequence[Floats], base: Sequence[Floats], pairs: Sequence[Pair], margin: Margin, seed: int
) -> Floats:
    """(C,) p-values of a loss of the margin or more, by betting; they hold at any time where pairs are adaptive.

    differences, base: (G, C) of each task, which lie in [-1, 1] and [0, 1].
    """
    how, values, null = pairs[0].adaptive, differences, margin.size
    if isinstance(how, int):
        names = [pair.base.groups for pair in pairs]
        rounds, dense = (anytime.in_rounds(side, names, how) for side in (differences, base))
        return np.exp(-anytime.evidence(rounds, margin.size, dense if margin.relative else None)[0][-1])
    if margin.relative:
        both = [anytime.scaled(d, b, margin.size) for d, b in zip(differences, base, strict=True)]
        values, null = [scaled for scaled, _ in both], both[0][1]
    if how is not None:
        return any_time_columns(values, pairs, null)["p_margin"]
    return betting.p_value(values, null, seed, len(pairs[0].base.draws))


def _scaling(
    base: Sequence[Floats], other: Sequence[Floats], reach: float, seed: int, draws: int
) -> dict[str, float | None]:
    """The share of the base's scaling that the other run retains, from slopes per problem (`retention`)."""
    share, low, high = (float(end[0]) for end in retention.retention(base, other))
    return {
        "retention": share,
        "retention_low": low,
        "retention_high": high,
        "p_kept": float(retention.p_kept(base, other, reach, seed, draws)[0]),
        "p_lost": float(retention.p_lost(base, other, reach, seed, draws)[0]),
    }


def sizes_of(pairs: Sequence[Pair]) -> dict[str, int]:
    """n and samples of the cells of these tasks together, with `problems` where that is more than n."""
    problems, n = (sum(map(len, of)) for of in zip(*((p.base.problems, p.base.groups) for p in pairs), strict=True))
    return {"n": n} | ({"problems": problems} if problems > n else {}) | {"samples": len(pairs[0].base.draws)}


def _sides(pairs: Sequence[Pair]) -> tuple[list[Table], list[Table]]:
    return [pair.base for pair in pairs], [pair.other for pair in pairs]


def _weights(budgets: Sequence[int]) -> tuple[Floats, bool]:
    """(B, C) weights over budgets of every contrast: each budget, the area, and the slope where it is defined."""
    slope = metrics.slope_weights(budgets)
    several = bool(np.isfinite(slope).all())
    columns = [np.eye(len(budgets)), metrics.auc_weights(budgets)[:, None], slope[:, None]]
    return np.concatenate(columns[: 2 + several], axis=1), several


def _per_draw(table: Table, weights_BC: Floats) -> Floats:
    """(P, N, C) contrasts of each draw, which are weighted sums over its budgets."""
    return table.correct.astype(float).transpose(0, 2, 1) @ weights_BC


def _add_settling(
    found: Sequence[dict[str, Any]], differences: Sequence[Floats], margin: Margin, claims_C: NDArray[np.int_]
) -> None:
    effects = np.array([max(abs(cell["difference"]), margin.points(cell["base_accuracy"])) for cell in found])
    claims = claims_C[: len(found)]
    draws = power.draws_needed(differences, effects, claims)
    problems = power.problems_needed(differences, effects, claims)
    for cell, effect, some_draws, some_problems in zip(found, effects, draws, problems, strict=True):
        note = None
        if isnan(some_draws):
            note = "one draw of each problem does not show how much draws vary"
        elif some_draws == inf:
            note = "no number of draws is enough: the problems differ too much, or there is no effect to find"
        cell["settle"] = {
            "effect": float(effect),
            "draws": int(some_draws) if isfinite(some_draws) else None,
            "problems": int(some_problems) if isfinite(some_problems) else None,
            "note": note,
        }


def _add_bands(found: Sequence[dict[str, Any]], tested: paired.Inference) -> None:
    """Add bands that are simultaneous over these cells, and never narrower than a cell's own (asymmetric) interval."""
    ends = bands.simultaneous_bands(tested.centre_C[: len(found)], tested.draws_RC[:, : len(found)])
    for cell, low, high in zip(found, *ends, strict=True):
        cell["band_low"], cell["band_high"] = min(float(low), cell["low"]), max(float(high), cell["high"])
