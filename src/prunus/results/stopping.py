"""Whether a run still stops: how its chains end under each budget, compared with those of a base by problem.

Every ending is a share in [0, 1] of each problem's draws, so the tests and bounds of accuracies apply to it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.budgets import AS_RUN
from prunus.margins import Margin
from prunus.results import betting, metrics, paired
from prunus.results.contrasts import Pair, any_time_columns, p_of_margin, sizes_of
from prunus.results.directions import direction_p
from prunus.results.table import Table
from prunus.results.verdicts import BETTER, SAME, WITHIN, WORSE, parts, set_adjusted, verdict

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ending:
    """words: what a draw does, in a table's heading. values: (P, B, N) shares of a table's draws, over its budgets.

    sign: 1 if more of it is better, -1 if less is. `values` is given a table of budgets that count, smallest first.
    """

    words: str
    sign: int
    values: Callable[[Table], NDArray[Any]]


def _lost(table: Table) -> NDArray[np.bool_]:
    """Whether the chain's answer was right under a smaller budget and is wrong now."""
    found = np.logical_or.accumulate(table.correct, axis=1)
    before = np.concatenate([np.zeros_like(found[:, :1]), found[:, :-1]], axis=1)
    return before & ~table.correct


def _budget_used(table: Table) -> Floats:
    """Thinking tokens as a share of the budget, at most 1: under native control an engine may exceed it."""
    return np.minimum(1.0, table.values("thinking_tokens") / _budgets(table))


def _budgets(table: Table) -> NDArray[np.int_]:
    return np.array(table.budgets)[:, None]


ENDS, USED = "ends", "budget_used"
STOPS = "the base's chains that end by themselves"
ENDINGS = {
    ENDS: Ending("ends by itself", 1, lambda table: table.values("ended") == "natural"),
    "loops": Ending("loops", -1, lambda table: table.values("loops")),
    "lost": Ending("found, then lost", -1, _lost),
    "unanswered": Ending("no answer", -1, lambda table: table.values("status") == "no_answer"),
    "truncated": Ending("answer cut", -1, lambda table: table.values("answer_truncated")),
    "leaked": Ending("leaked", -1, lambda table: metrics.leaked(table.values("answer_tokens"), _budgets(table))),
    USED: Ending("budget used", -1, _budget_used),
}


def stop_cells(
    pairs: Sequence[Pair], margin: Margin, seed: int, resamples: int, same_chains: bool
) -> dict[int, dict[str, dict[str, Any]]]:
    """{budget: {ending: cell}} for the positive budgets of one task, or of several with equal weights.

    Logs of other tools have ENDS and loops at AS_RUN if both say how every draw ended.

    A cell has n, samples, share, base_share, difference, se, low, high (95 %), gain (the difference as an improvement),
    p_better, p_worse, p, p_margin (of harm of the margin or more, by betting), and bound, the most harmful difference
    that is not ruled out (one-sided 95 %, for any number of problems).
    A margin that is a share of the base is one of the draws that do well in it: that end by themselves, do not loop.
    same_chains: the budgets share their chains; without it there is no `lost`.
    """
    told = not any(np.isnan(table.forced.astype(float)).any() for pair in pairs for table in (pair.base, pair.other))
    budgets = [budget for budget in pairs[0].base.budgets if budget > 0 or (budget == AS_RUN and told)]
    if not budgets:
        return {}
    endings = {name: ending for name, ending in ENDINGS.items() if same_chains or name != "lost"}
    if AS_RUN in budgets:
        endings = {name: ENDINGS[name] for name in (ENDS, "loops")}
    base, other = (
        [_columns(table, budgets, list(endings.values())) for table in tables]
        for tables in ([pair.base for pair in pairs], [pair.other for pair in pairs])
    )
    signs = np.repeat([ending.sign for ending in endings.values()], len(budgets))
    strata = [theirs - ours for ours, theirs in zip(base, other, strict=True)]
    gains = [difference * signs for difference in strata]
    good = [np.where(signs > 0, share, 1 - share) for share in base]
    tested, draws = paired.infer(strata, resamples, seed), len(pairs[0].base.draws)
    single = draws == 1 and len(pairs) == 1 and not pairs[0].base.grouped
    one_outcome = np.repeat([single and name != USED for name in endings], len(budgets))
    cells = tested.cells(
        share=paired.estimate(other),
        base_share=paired.estimate(base),
        gain=paired.estimate(gains),
        bound=signs * betting.lower_bound(gains, seed=seed, draws=draws, nulls=[-margin.size]),
        p_margin=p_of_margin(gains, good, pairs, margin, seed),
        **direction_p(gains, seed, draws, one_outcome),
    )
    if pairs[0].adaptive is not None:
        now = any_time_columns(gains, pairs, margin.size)
        ends = np.sort([signs * now["low"], signs * now["high"]], axis=0)
        columns = {name: now[name] for name in ("p", "p_better", "p_worse")}
        columns |= {"bound": signs * now["lower_bound"], "low": ends[0], "high": ends[1]}
        for c, cell in enumerate(cells):
            cell |= {name: float(column[c]) for name, column in columns.items()}
    size = sizes_of(pairs)
    by_ending = {
        name: [size | cell for cell in cells[place * len(budgets) : (place + 1) * len(budgets)]]
        for place, name in enumerate(endings)
    }
    return {budget: {name: by_ending[name][place] for name in endings} for place, budget in enumerate(budgets)}


def _columns(table: Table, budgets: Sequence[int], endings: Sequence[Ending]) -> Floats:
    """(G, C) mean over draws of every ending at every budget; the budgets of an ending are adjacent."""
    positive = table.select(table.problems, budgets, table.draws)
    values = [ending.values(positive).mean(axis=2, dtype=float) for ending in endings]
    return table.by_group(np.concatenate(values, axis=1))


def withhold_stopping(by_budget: Mapping[int, Mapping[str, dict[str, Any]]]) -> None:
    """Set, in place, the bounds of an unfinished run's endings to the worst change that there can be."""
    for cells in by_budget.values():
        for name, cell in cells.items():
            cell["bound"] = -float(ENDINGS[name].sign)


def tokens_per_draw(pairs: Sequence[Pair]) -> dict[str, float | None]:
    """How many times the base's tokens the other run uses at the largest budget; all tasks have the same weight.

    tokens_ratio: per draw; per_correct_ratio: per correct draw, None if a run has none or base used no tokens.
    """
    (base, base_correct), (other, other_correct) = (
        np.mean([[t.by_group(values[:, -1]).mean() for values in (t.used, t.correct)] for t in tables], axis=0)
        for tables in ([pair.base for pair in pairs], [pair.other for pair in pairs])
    )
    ratio = float(other / base) if base else None
    defined = ratio is not None and base_correct and other_correct
    return {
        "tokens_ratio": ratio,
        "per_correct_ratio": float(ratio * base_correct / other_correct) if defined else None,
    }


def judge_stopping(entries: Sequence[dict[str, Any]]) -> None:
    """Set, in place, what all entries of a comparison say about stopping, corrected over the entries for each ending.

    The cells of all budgets get adjusted p-values over all entries, tasks and budgets of an ending.
    `stopping` is extended by `endings` (the cells of the largest budget, corrected over the entries, with a `verdict`),
    and `stops` is the verdict on ending by itself, None without a positive budget or a log that tells it.
    `relies_on_cutting`: the accuracy is not shown to be worse by the margin, and the chains end by themselves less
    often.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    everywhere: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        for part in parts(entry):
            for endings in part["stopping"].values():
                for name, cell in endings.items():
                    everywhere.setdefault(name, []).append(cell)
        by_budget = parts(entry)[-1]["stopping"]
        last = by_budget[max(by_budget)] if by_budget else {}
        entry["stopping"] |= {"budget": max(by_budget, default=None), "endings": {k: dict(v) for k, v in last.items()}}
        for name, cell in entry["stopping"]["endings"].items():
            found.setdefault(name, []).append(cell)
    for cells in everywhere.values():
        set_adjusted(cells)
    for cells in found.values():
        set_adjusted(cells)
        for cell in cells:
            cell["verdict"] = verdict(cell)
    for entry in entries:
        ends = entry["stopping"]["endings"].get(ENDS)
        entry["stops"] = ends and ends["verdict"]
        entry["relies_on_cutting"] = entry["stops"] == WORSE and entry["verdict"] in (SAME, BETTER, WITHIN)
