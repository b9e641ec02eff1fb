"""The smallest loss that a number of problems can rule out, whatever they show, by the tests of a comparison."""

from collections.abc import Mapping, Sequence
from math import ceil, log, log1p

import numpy as np

from prunus.settings.budgets import without_off
from prunus.settings.margins import LEVELS, Margin
from prunus.statistics import betting, exact, metrics

TRIED = -np.arange(1, 1000) / 1000  # means that are tried besides those of the grid


def least_margin(groups: Sequence[Sequence[str]], budgets: Sequence[int], draws: int, alpha: float) -> float:
    """The largest loss of accuracy over the budgets that is not ruled out where both models solve the same.

    groups: for each task, a label of each problem, which problems that belong together share. draws: of each problem.
    """
    weights_B = metrics.auc_weights(sorted(without_off(budgets))) if without_off(budgets) else np.ones(1)
    sizes = [len(set(of_task)) for of_task in groups]
    if _one_outcome(groups, draws) and np.count_nonzero(weights_B) == 1:
        return exact.least_margin(sizes[0], alpha)
    return -float(betting.lower_bound([np.zeros((size, 1)) for size in sizes], alpha, draws, TRIED.tolist())[0])


def _one_outcome(groups: Sequence[Sequence[str]], draws: int) -> bool:
    """Whether each problem has a single outcome at a budget: a draw each of a single task, and no groups."""
    return draws == 1 and len(groups) == 1 and len(set(groups[0])) == len(groups[0])


def problems_for(margin: float, alpha: float, one_outcome: bool) -> int:
    """The least number of problems by which a loss of the margin can be ruled out at all: where nothing differs.

    one_outcome: whether the exact test judges them, whose order of outcomes takes more problems than bets do. A result
    above 10,000 is a lower bound of that number.
    """

    def ruled_out(problems: int) -> bool:
        p = exact.p_value(0, 0, problems, margin) if one_outcome else betting.p_value([np.zeros((problems, 1))], margin)
        return bool(p[0] <= alpha)

    low = ceil(log(alpha) / log1p(-margin)) - 1  # which no test can rule it out with
    high = low + 1
    while high <= 10_000 and not ruled_out(high):
        low, high = high, ceil(1.1 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ruled_out(middle) else (middle, high)
    return high


def in_words(groups: Mapping[str, Sequence[str]], budgets: Sequence[int], draws: int, comparisons: int = 1) -> str:
    """`84 problems: a loss of less than 3.6 points cannot be ruled out, even where nothing differs`.

    With several budgets it also says which levels of `prunus efforts` need more. groups: as of least_margin, by task.
    comparisons: that share the error of 5 %.
    """
    problems = sum(map(len, groups.values()))
    least = least_margin([*groups.values()], budgets, draws, betting.ALPHA / comparisons)
    together = f" of any of {comparisons} variants" if comparisons > 1 else ""
    return (
        f"{problems:,} problem{'s' * (problems != 1)}: a loss of less than {ceil(1000 * least - 1e-9) / 10:g} points"
        f"{together} cannot be ruled out, even where nothing differs{_of_levels(groups, budgets, draws)}"
    )


def _of_levels(groups: Mapping[str, Sequence[str]], budgets: Sequence[int], draws: int) -> str:
    """`; problems that levels of efforts need: high 220, medium 88`: those for which there are too few."""
    if sum(budget > 0 for budget in budgets) < 2:
        return ""
    alpha, alone = betting.ALPHA / len(LEVELS), _one_outcome([*groups.values()], draws)
    least = {name: problems_for(Margin.of(margin).size, alpha, alone) for name, margin in LEVELS.items()}
    sizes = sum(len(set(of_task)) for of_task in groups.values())
    lacking = [f"{name} {number}" for name, number in least.items() if number > sizes]
    return f"; problems that levels of efforts need: {', '.join(lacking)}" if lacking else ""
