"""The smallest loss that a number of problems can rule out, whatever they show, by the tests of a comparison."""

from collections.abc import Mapping, Sequence
from math import ceil, log

import numpy as np

from prunus.settings.budgets import without_off
from prunus.settings.margins import LEVELS, Margin
from prunus.statistics import betting, exact, metrics

TRIED = -np.arange(1, 1000) / 1000  # means that are tried besides those of the grid


def least_margin(groups: Sequence[Sequence[str]], budgets: Sequence[int], draws: int, alpha: float) -> float:
    """The largest loss of accuracy over the budgets that is not ruled out where both models solve the same.

    groups: of each task, for each problem what is the same for those that belong together. draws: of each problem.
    """
    weights_B = metrics.auc_weights(sorted(without_off(budgets))) if without_off(budgets) else np.ones(1)
    sizes = [len(set(of_task)) for of_task in groups]
    alone = draws == 1 and len(groups) == 1 and sizes[0] == len(groups[0])
    if alone and np.count_nonzero(weights_B) == 1:
        return exact.least_margin(sizes[0], alpha)
    return -float(betting.lower_bound([np.zeros((size, 1)) for size in sizes], alpha, draws, TRIED.tolist())[0])


def problems_for(margin: float, alpha: float) -> int:
    """The least number of problems by which a loss of the margin can be ruled out at all: where nothing differs."""
    return ceil(log(alpha) / log(1 - margin))


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
        f"{together} cannot be ruled out, even where nothing differs{_of_levels(groups, budgets)}"
    )


def _of_levels(groups: Mapping[str, Sequence[str]], budgets: Sequence[int]) -> str:
    """`; problems that levels of efforts need: high 203, medium 80`: those for which there are too few."""
    least = {name: problems_for(Margin.of(margin).size, betting.ALPHA / len(LEVELS)) for name, margin in LEVELS.items()}
    sizes = sum(len(set(of_task)) for of_task in groups.values())
    lacking = [f"{name} {number}" for name, number in least.items() if number > sizes]
    if not lacking or len([budget for budget in without_off(budgets) if budget > 0]) < 2:
        return ""
    return f"; problems that levels of efforts need: {', '.join(lacking)}"
