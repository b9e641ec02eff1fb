"""The cells of a comparison: every contrast of two runs on the same problems, budgets and draws.

`paired` computes intervals, `directions` and `betting` the p-values and bounds that verdicts rest on, and `anytime` all
of these where rows decided how many problems were taken; they explain why these methods are used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan

import numpy as np
from numpy.typing import NDArray

from prunus.budgets import OFF, without_off
from prunus.margins import Margin
from prunus.results import anytime, betting, metrics, paired, power, verdicts
from prunus.results.betting import direction_p
from prunus.results.cells import Cell, Needed, Part, Slope, made
from prunus.results.rows import Table

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


def contrast_cells(pairs: Sequence[Pair], margin: Margin, seed: int, resamples: int, claims: tuple[int, int]) -> Part:
    """The cells of one task, or of several with equal weights, without what depends on others: adjusted p and q.

    claims: the numbers of tests for which the p-values of budgets, and of the area, are corrected. The cell of
    budget OFF is computed apart, so that it changes no other cell.
    """
    budgets = pairs[0].base.budgets
    if OFF in budgets and len(budgets) > 1:
        off, curve = (
            contrast_cells([pair.at(some) for pair in pairs], margin, seed, resamples, claims)
            for some in ([OFF], without_off(budgets))
        )
        return replace(curve, budgets={**off.budgets, **curve.budgets})
    weights_BC, several = _weights(budgets)
    base, other = (  # (G, N, C) of each task: contrasts of each draw, which are weighted sums over its budgets
        [table.by_group(table.correct.astype(float).transpose(0, 2, 1) @ weights_BC) for table in side]
        for side in zip(*((pair.base, pair.other) for pair in pairs), strict=True)
    )
    differences = [theirs - ours for ours, theirs in zip(base, other, strict=True)]
    strata, base_means, other_means = ([d.mean(axis=1) for d in side] for side in (differences, base, other))
    tested, draws = paired.infer(strata, resamples, seed), len(pairs[0].base.draws)
    B, A = len(budgets), len(budgets) + 1  # contrasts of budgets, and with the area; a slope would be the last
    shares = [d[:, :A] for d in strata]  # differences of accuracies, which lie in [-1, 1]; no slopes
    claims_A = np.array([claims[0]] * B + [claims[1]])
    common = {
        "accuracy": paired.estimate(other_means),
        "base_accuracy": paired.estimate(base_means),
        **{"p_flip" if name == "p" else name: column for name, column in tested.columns.items()},
    }
    one_outcome = np.full(A, draws == 1 and len(pairs) == 1 and not pairs[0].base.grouped)
    one_outcome[-1] &= np.count_nonzero(weights_BC[:, B]) == 1
    bases = [d[:, :A] for d in base_means]
    columns = {name: column[:A] for name, column in common.items()} | direction_p(shares, seed, draws, one_outcome)
    columns["lower_bound"] = betting.lower_bound(shares, seed=seed, draws=draws, nulls=[-margin.size])
    # Where losing everything would be within the margin nothing is claimed.
    covered_A = np.array([margin.covers(share) for share in columns["base_accuracy"]])
    columns["p_margin"] = np.where(covered_A, 1.0, p_of_margin(shares, bases, pairs, margin, seed))
    if pairs[0].adaptive is None:
        columns["mde"] = power.minimum_detectable(shares, bases, claims_A, draws, one_outcome, seed)
    ends = metrics.simultaneous_bands(tested.centre_C[:B], tested.draws_RC[:, :B])
    # Never narrower than a cell's own interval, which need not be symmetric.
    columns["band_low"] = np.minimum(ends[0], columns["low"][:B])
    columns["band_high"] = np.maximum(ends[1], columns["high"][:B])
    needed = _needed([d[:, :, :A] for d in differences], columns, margin, claims_A)
    if pairs[0].adaptive is not None:  # what a verdict rests on, and all intervals, hold whatever ended the collection
        now = any_time_columns(shares, pairs, margin.size, max(1, B))
        columns |= {name: column for name, column in now.items() if name != "p_margin"}
        columns["mde"] = np.full(A, np.nan)  # it is of the tests for a fixed number of problems
    size = sizes_of(pairs)
    cells = []
    for c in range(A):
        names = [name for name in columns if c < B or not name.startswith("band_")]
        cells.append(made(Cell, size, {name: float(columns[name][c]) for name in names}, settle=needed[c]))
    slope = None
    if several:
        reach = float(weights_BC[:, -1].clip(0).sum())
        own = {name: column[-1:] for name, column in common.items()}
        own |= direction_p([d[:, -1:] / (2 * reach) for d in strata], seed, draws)
        slopes = [d[:, -1:] for d in base_means], [d[:, -1:] for d in other_means]
        own |= dict(zip(("retention", "retention_low", "retention_high"), verdicts.retention(*slopes), strict=True))
        own |= {f"p_{word}": verdicts.p_scaling(word, *slopes, reach, seed, draws) for word in ("kept", "lost")}
        slope = made(Slope, size, {name: float(column[0]) for name, column in own.items()})
        if pairs[0].adaptive is not None:  # none holds at any time
            slope = replace(slope, p_kept=1.0, p_lost=1.0, p_better=1.0, p_worse=1.0, p=1.0)
    return Part(budgets=dict(zip(budgets, cells[:B], strict=True)), auc=cells[B], slope=slope, stopping={})


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


def sizes_of(pairs: Sequence[Pair]) -> dict[str, int]:
    """n and samples of the cells of these tasks together, with `problems` where that is more than n."""
    problems, n = (sum(map(len, of)) for of in zip(*((p.base.problems, p.base.groups) for p in pairs), strict=True))
    return {"n": n} | ({"problems": problems} if problems > n else {}) | {"samples": len(pairs[0].base.draws)}


def _weights(budgets: Sequence[int]) -> tuple[Floats, bool]:
    """(B, C) weights over budgets of every contrast: each budget, the area, and the slope where it is defined."""
    slope = metrics.slope_weights(budgets)
    several = bool(np.isfinite(slope).all())
    columns = [np.eye(len(budgets)), metrics.auc_weights(budgets)[:, None], slope[:, None]]
    return np.concatenate(columns[: 2 + several], axis=1), several


def _needed(
    differences: Sequence[Floats], columns: Mapping[str, Floats], margin: Margin, claims_A: NDArray[np.int_]
) -> list[Needed]:
    """What would settle each contrast."""
    margins_A = [margin.points(share) for share in columns["base_accuracy"]]
    effect_A = np.maximum(np.abs(columns["difference"]), margins_A)
    draws_A = power.draws_needed(differences, effect_A, claims_A)
    problems_A = power.problems_needed(differences, effect_A, claims_A)
    found = []
    for effect, draws, problems in zip(effect_A, draws_A, problems_A, strict=True):
        note = None
        if isnan(draws):
            note = "one draw of each problem does not show how much draws vary"
        elif draws == inf:
            note = "no number of draws is enough: the problems differ too much, or there is no effect to find"
        numbers = {"draws": draws, "problems": problems}
        whole = {name: int(number) if isfinite(number) else None for name, number in numbers.items()}
        found.append(Needed(effect=float(effect), **whole, note=note))
    return found
