"""Verdicts of a comparison, from p-values that are corrected for the number of tests.

Each kind of claim is a family, corrected by Holm over the models compared: that a model is better (2.5 %), worse
(2.5 %), that its loss is smaller than the margin (5 %), that scaling is kept (5 %) or lost (5 %). All single budgets of
all models, with the areas of single tasks where there are several, are further such families.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import scipy

from prunus.budgets import without_off
from prunus.margins import Margin
from prunus.results.betting import ALPHA
from prunus.results.directions import two_sided
from prunus.results.metrics import AUC
from prunus.results.paired import holm
from prunus.results.retention import scaling_word

Data = Mapping[str, Any]
WORSE, WITHIN, BETTER, SAME, OPEN = "worse", "worse, within the margin", "better", "non-inferior", "cannot tell"
WORDS = (WORSE, WITHIN, BETTER, SAME, OPEN)
UNFINISHED = "unfinished"  # instead of a word, where a run lacks rows of its plan
# What the cells of an unfinished run have instead of numbers on which a claim would rest.
NO_CLAIM = {
    "p": 1.0,
    "p_better": 1.0,
    "p_worse": 1.0,
    "p_flip": 1.0,
    "p_margin": 1.0,
    "p_adjusted": 1.0,
    "p_better_adjusted": 1.0,
    "p_worse_adjusted": 1.0,
    "p_margin_adjusted": 1.0,
    "p_kept": 1.0,
    "p_lost": 1.0,
    "q": 1.0,
    "lower_bound": -1.0,
}
# Verdicts of single budgets that contradict the model's own verdict.
CONTRADICTED_BY = {
    WORSE: {BETTER},
    WITHIN: {BETTER, WORSE},
    BETTER: {WORSE, WITHIN},
    SAME: {WORSE},
    OPEN: {WORSE, WITHIN, BETTER},
}


def verdict(cell: Data) -> str:
    """The verdict on a cell of `compare`, from its three adjusted p-values."""
    if cell.get("unfinished"):
        return UNFINISHED
    within = within_margin(cell)
    better, worse = (cell[f"p_{word}_adjusted"] <= ALPHA / 2 for word in ("better", "worse"))
    if better != worse:  # both would contradict each other
        return BETTER if better else WITHIN if within else WORSE
    return SAME if within else OPEN


def wide_margin(margin: Margin, base_accuracy: float, base: str = "the base") -> str | None:
    """A warning where the margin is half of the base's accuracy or more, so that staying within it says little.

    base_accuracy: of the primary contrast, the area over the budgets. base: what to call it. None where the margin is
    smaller.
    """
    if base_accuracy == 0:
        return (
            f"{base} solves nothing, so there is nothing to lose, and no model is called {SAME}: choose budgets or"
            " problems at which something is solved"
        )
    size = margin.points(base_accuracy)
    if base_accuracy > 2 * size:
        return None
    lost = f"{100 * size / base_accuracy:.0f} % of it" if size < base_accuracy else f"all of it, so no model is {SAME}"
    return (
        f"{base} solves {100 * base_accuracy:.1f} % on average over the budgets, and a loss of the margin,"
        f" {100 * size:g} points, would be {lost}: choose a smaller margin, or budgets at which more is solved"
    )


def within_margin(cell: Data) -> bool:
    """Whether a loss of the margin or more is ruled out."""
    return cell["p_margin_adjusted"] <= ALPHA


def withhold(data: Any) -> None:
    """Mark, in place, all cells of an entry as unfinished, so that no claim rests on them, nor on others by them."""
    if isinstance(data, dict) and "p" in data:
        data |= {name: value for name, value in NO_CLAIM.items() if name in data} | {"unfinished": True}
    for part in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        withhold(part)


def set_adjusted(cells: Sequence[dict[str, Any]], names: Sequence[str] = ("p_better", "p_worse", "p_margin")) -> None:
    """Set NAME_adjusted of each cell: Holm's correction of NAME over these cells, for each of the names.

    p_adjusted is the two-sided p-value from those of the two directions.
    """
    for name in names:
        for cell, p in zip(cells, holm([cell[name] for cell in cells]), strict=True):
            cell[f"{name}_adjusted"] = float(p)
    if "p_better" in names:
        for cell in cells:
            cell["p_adjusted"] = float(two_sided(cell["p_better_adjusted"], cell["p_worse_adjusted"]))


def set_q(several: Sequence[Data]) -> None:
    """Set q: Benjamini-Hochberg over all budgets and areas of these parts."""
    found = [cell for part in several for cell in (*part["budgets"].values(), part[AUC])]
    for cell, q in zip(found, scipy.stats.false_discovery_control([cell["p"] for cell in found]), strict=True):
        cell["q"] = float(q)


def adjust_and_judge(entries: Sequence[dict[str, Any]]) -> None:
    """Set, in place, the adjusted p-values, q and verdicts of all entries of a comparison.

    These depend on which models are compared together.
    """
    set_adjusted([cell for entry in entries for cell in details(entry)])
    set_adjusted([entry["primary"] for entry in entries])
    set_q([part for entry in entries for part in entry["tasks"].values()])
    set_q([entry["macro"] for entry in entries if "macro" in entry])
    slopes = [slope for entry in entries if (slope := parts(entry)[-1]["slope"])]
    set_adjusted(slopes, ("p_kept", "p_lost"))
    for slope in slopes:
        found = scaling_word(slope["p_kept_adjusted"], slope["p_lost_adjusted"])
        slope["word"] = UNFINISHED if slope.get("unfinished") else found
    for entry in entries:
        entry["within_margin"] = within_margin(entry["primary"])
        entry["verdict"] = verdict(entry["primary"])
        whole = parts(entry)[-1]
        entry["scaling"] = whole["slope"]
        entry["largest"] = largest(entry)
        entry |= along_curve(entry["primary"], entry["verdict"], whole["budgets"])


def along_curve(primary: Data, word: str, budgets: Mapping[int, Data]) -> dict[str, Any]:
    """Whether the verdict (word) holds at every budget, as {"whole_curve": bool, "contradicted_at": list}.

    whole_curve: whether every budget's difference has the sign of the area's, and no budget's verdict contradicts word.
    contradicted_at: budget, difference and verdict of the budgets that contradict it. Budget OFF is not on the curve.
    """
    if word == UNFINISHED:
        return {"whole_curve": False, "contradicted_at": []}
    budgets = {budget: budgets[budget] for budget in without_off(budgets) or budgets}
    against = [
        {"budget": budget, "difference": cell["difference"], "verdict": verdict(cell)}
        for budget, cell in budgets.items()
        if verdict(cell) in CONTRADICTED_BY[word]
    ]
    one_sign = all(cell["difference"] * primary["difference"] >= 0 for cell in budgets.values())
    return {"whole_curve": one_sign and not against, "contradicted_at": against}


def details(entry: Data) -> list[dict[str, Any]]:
    """The cells of an entry besides the primary contrast: its single budgets, and areas of single tasks."""
    several = parts(entry)
    areas = [part[AUC] for part in several if part[AUC] is not entry["primary"]]
    return [cell for part in several for cell in part["budgets"].values()] + areas


def largest(entry: Data) -> dict[str, Any]:
    """The task, budget and difference with the smallest p-value; its p_adjusted is over all single budgets compared."""
    cells = [
        {"task": task, "budget": budget} | {key: cell[key] for key in ("difference", "p", "p_adjusted")}
        for task, part in entry["tasks"].items()
        for budget, cell in part["budgets"].items()
    ]
    return min(cells, key=lambda cell: (cell["p"], -abs(cell["difference"])))


def parts(entry: Data) -> list[dict[str, Any]]:
    """The cells of each task, and last those over all tasks (of several)."""
    return [*entry["tasks"].values(), *([entry["macro"]] if "macro" in entry else [])]
