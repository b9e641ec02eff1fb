"""With how much thinking the base is as good as a variant at its largest budget: what a loss means in tokens.

The estimate reads the base's curve, made monotone, where it has the variant's accuracy, on a log2 scale. Its interval
is that of `efforts.as_right` with the roles exchanged: at `low` and all smaller budgets the base is shown to be worse
than the variant, at `high` and all larger ones to be better, with 95 % confidence.
"""

from collections.abc import Sequence

import numpy as np

from prunus.plain_data import Record
from prunus.results.efforts import Measured, as_right


class AsGood(Record):
    """The budget at which the base is as good as a variant at its largest budget.

    largest: budget of the variant, in tokens.
    estimate: of the base, at most its largest; None where the variant is below the base at the smallest.
    low: the base is shown to be worse at this budget and all smaller ones; None if there is none.
    high: it is shown to be better at this budget and all larger ones; None if there is none.
    """

    largest: int
    estimate: float | None
    low: int | None
    high: int | None


def as_good(base: Measured, variant: Measured) -> AsGood | None:
    """With how much thinking the base is as good as a variant; None where either lacks budgets or rows."""
    largest = variant.budgets[-1] if variant.budgets else 0
    if len(base.budgets) < 2 or not largest or base.unfinished or variant.unfinished:
        return None
    pairs = base.pairs_with(variant, largest, base.budgets)
    if not pairs:
        return None
    bracket = as_right(base, variant, largest)
    sides = [
        (pair.base.correct, pair.other.correct) for pair in pairs.values()
    ]  # (P, B, N) of the variant, of the base
    accuracy = float(np.mean([own[:, 0].mean() for own, _ in sides]))
    curve_B = np.mean([of_base.mean(axis=(0, 2)) for _, of_base in sides], axis=0)
    return AsGood(
        largest=largest,
        estimate=crossing(base.budgets, curve_B.tolist(), accuracy),
        low=bracket.above,
        high=bracket.below,
    )


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
