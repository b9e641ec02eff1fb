"""The budget at which the base is as good as a variant at its largest budget: a loss expressed in tokens.

The estimate is where the base's curve, made monotone, reaches the variant's accuracy, on a log2 scale. Its interval
is that of `efforts.as_right` with the roles exchanged: at `low` and all smaller budgets the base is shown to be worse
than the variant, at `high` and all larger ones to be better, with 95 % confidence.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prunus.results.cells import AsGood
from prunus.results.contrasts import Pair, claims_at_budgets, sides
from prunus.settings.margins import Margin
from prunus.statistics.betting import ALPHA
from prunus.store.rows import Table


def as_good(pairs: Sequence[Pair]) -> AsGood | None:
    """The budget at which the base is as good as a variant at its largest; None with fewer than two positive budgets.

    pairs: of the base and the variant, one of each task.
    """
    shared = set.intersection(*(set(pair.base.budgets) for pair in pairs)) if pairs else set[int]()
    budgets = sorted(budget for budget in shared if budget > 0)
    if len(budgets) < 2:
        return None
    largest, parts = budgets[-1], [pair.at(budgets) for pair in pairs]
    worse, better = shown_apart([Pair(held(p.other, largest, budgets), p.base, p.adaptive) for p in parts])
    base_B, other_B = (
        np.mean([table.by_group(table.correct.mean(axis=2)).mean(axis=0) for table in tables], axis=0)
        for tables in sides(parts)
    )
    return AsGood(
        largest=largest,
        estimate=crossing(budgets, base_B.tolist(), float(other_B[-1])),
        low=budgets[worse - 1] if worse else None,
        high=budgets[-better] if better else None,
    )


def held(table: Table, budget: int, budgets: Sequence[int]) -> Table:
    """A table that has the rows of one budget at each of these budgets."""
    rows_P1N = table.select(table.problems, [budget], table.draws).rows_PBN
    return replace(table, budgets=tuple(budgets), rows_PBN=np.repeat(rows_P1N, len(budgets), axis=1))


def shown_apart(pairs: Sequence[Pair]) -> tuple[int, int]:
    """(worse, better): at how many smallest budgets the other run is shown to be worse; at how many largest, better."""
    claims = claims_at_budgets(pairs, Margin(0.0))
    worse_B, better_B = (p_B <= ALPHA / 2 for p_B in (claims.p_worse, claims.p_better))
    return int(np.logical_and.accumulate(worse_B).sum()), int(np.logical_and.accumulate(better_B[::-1]).sum())


def crossing(budgets: Sequence[int], accuracies: Sequence[float], accuracy: float) -> float | None:
    """The budget at which a curve, made monotone, reaches an accuracy; its largest where it does not.

    None where the accuracy is below the curve's first point.
    """
    curve = np.maximum.accumulate(accuracies)
    if accuracy < curve[0]:
        return None
    if accuracy >= curve[-1]:
        return float(budgets[-1])
    after = int(np.searchsorted(curve, accuracy, side="right"))
    low, high = curve[after - 1], curve[after]
    share = (accuracy - low) / (high - low)
    return float(2 ** (np.log2(budgets[after - 1]) + share * np.log2(budgets[after] / budgets[after - 1])))
