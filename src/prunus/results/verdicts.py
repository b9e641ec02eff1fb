"""Verdicts of a comparison, from p-values that are corrected for the number of tests.

Three families of claims are corrected separately, each by Holm over the models compared: that there is a difference
(sign flips), that the loss is smaller than the margin (betting), and that scaling is kept or lost. Budgets are
corrected within their model, as are the areas of single tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import scipy

from prunus.budgets import without_off
from prunus.margins import Margin
from prunus.results.betting import ALPHA
from prunus.results.metrics import AUC
from prunus.results.paired import holm
from prunus.results.retention import scaling_word

Data = Mapping[str, Any]
WORSE, WITHIN, BETTER, SAME, OPEN = "worse", "worse, within the margin", "better", "non-inferior", "cannot tell"
WORDS = (WORSE, WITHIN, BETTER, SAME, OPEN)
# Verdicts of single budgets that contradict the model's own verdict.
CONTRADICTED_BY = {
    WORSE: {BETTER},
    WITHIN: {BETTER, WORSE},
    BETTER: {WORSE, WITHIN},
    SAME: {WORSE},
    OPEN: {WORSE, WITHIN, BETTER},
}


def verdict(cell: Data) -> str:
    """The verdict on a cell of `compare`, from its two adjusted p-values and the sign of its gain (or difference)."""
    within = within_margin(cell)
    if cell["p_adjusted"] < ALPHA:
        return BETTER if cell.get("gain", cell["difference"]) > 0 else WITHIN if within else WORSE
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


def set_adjusted(cells: Sequence[dict[str, Any]], *names: str) -> None:
    """Set NAME_adjusted of each cell: Holm's correction of NAME over these cells, for each of the names."""
    for name in names:
        for cell, p in zip(cells, holm([cell[name] for cell in cells]), strict=True):
            cell[f"{name}_adjusted"] = float(p)


def set_q(parts: Sequence[Data]) -> None:
    """Set q: Benjamini-Hochberg over all budgets and areas of these parts."""
    found = [cell for part in parts for cell in (*part["budgets"].values(), part[AUC])]
    for cell, q in zip(found, scipy.stats.false_discovery_control([cell["p"] for cell in found]), strict=True):
        cell["q"] = float(q)


def adjust_and_judge(entries: Sequence[dict[str, Any]]) -> None:
    """Set, in place, the adjusted p-values, q and verdicts of all entries of a comparison.

    These depend on which models are compared together.
    """
    set_adjusted([entry["primary"] for entry in entries], "p", "p_margin")
    set_adjusted([entry["largest"] for entry in entries], "p")
    set_q([part for entry in entries for part in entry["tasks"].values()])
    set_q([entry["macro"] for entry in entries if "macro" in entry])
    slopes = [slope for entry in entries if (slope := _whole(entry)["slope"])]
    set_adjusted(slopes, "p_kept", "p_lost")
    for slope in slopes:
        slope["word"] = scaling_word(slope["p_kept_adjusted"], slope["p_lost_adjusted"])
    for entry in entries:
        entry["within_margin"] = within_margin(entry["primary"])
        entry["verdict"] = verdict(entry["primary"])
        entry["scaling"] = _whole(entry)["slope"]
        entry |= along_curve(entry["primary"], entry["verdict"], _whole(entry)["budgets"])


def along_curve(primary: Data, word: str, budgets: Mapping[int, Data]) -> dict[str, Any]:
    """Whether the verdict (word) holds at every budget, as {"whole_curve": bool, "contradicted_at": list}.

    whole_curve: whether every budget's difference has the sign of the area's, and no budget's verdict contradicts word.
    contradicted_at: budget, difference and verdict of the budgets that contradict it. Budget OFF is not on the curve.
    """
    budgets = {budget: budgets[budget] for budget in without_off(budgets) or budgets}
    against = [
        {"budget": budget, "difference": cell["difference"], "verdict": verdict(cell)}
        for budget, cell in budgets.items()
        if verdict(cell) in CONTRADICTED_BY[word]
    ]
    one_sign = all(cell["difference"] * primary["difference"] >= 0 for cell in budgets.values())
    return {"whole_curve": one_sign and not against, "contradicted_at": against}


def _whole(entry: Data) -> Data:
    """The cells over all tasks."""
    return entry["macro"] if "macro" in entry else next(iter(entry["tasks"].values()))
