"""Whether a run still stops: how its chains end under each budget, compared with those of a base by problem.

Every ending is a share in [0, 1] of each problem's draws, so the tests and bounds of accuracies apply to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.budgets import AS_RUN
from prunus.margins import Margin
from prunus.results import betting, metrics, paired
from prunus.results.betting import direction_p
from prunus.results.cells import Ending, Endings, Part, made
from prunus.results.contrasts import Pair, any_time_columns, p_of_margin, sizes_of
from prunus.results.rows import Table
from prunus.results.verdicts import adjusted, verdict, without_claim

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
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
    ENDS: Kind("ends by itself", 1, lambda table: table.values("ended") == "natural"),
    "loops": Kind("loops", -1, lambda table: table.values("loops")),
    "lost": Kind("found, then lost", -1, _lost),
    "unanswered": Kind("no answer", -1, lambda table: table.values("status") == "no_answer"),
    "truncated": Kind("answer cut", -1, lambda table: table.values("answer_truncated")),
    "leaked": Kind("leaked", -1, lambda table: metrics.leaked(table.values("answer_tokens"), _budgets(table))),
    USED: Kind("budget used", -1, _budget_used),
}


def stop_cells(
    pairs: Sequence[Pair], margin: Margin, seed: int, resamples: int, same_chains: bool
) -> dict[int, dict[str, Ending]]:
    """{budget: {ending: cell}} for the positive budgets of one task, or of several with equal weights.

    Logs of other tools have ENDS and loops at AS_RUN if both say how every draw ended.
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
        name: [made(Ending, size, cell) for cell in cells[place * len(budgets) : (place + 1) * len(budgets)]]
        for place, name in enumerate(endings)
    }
    return {budget: {name: by_ending[name][place] for name in endings} for place, budget in enumerate(budgets)}


def _columns(table: Table, budgets: Sequence[int], endings: Sequence[Kind]) -> Floats:
    """(G, C) mean over draws of every ending at every budget; the budgets of an ending are adjacent."""
    positive = table.select(table.problems, budgets, table.draws)
    values = [ending.values(positive).mean(axis=2, dtype=float) for ending in endings]
    return table.by_group(np.concatenate(values, axis=1))


def without_claims(endings: Endings) -> dict[int, dict[str, Ending]]:
    """The cells of an unfinished run, whose bounds are the worst change that there can be."""
    return {
        budget: {name: replace(without_claim(cell), bound=-float(ENDINGS[name].sign)) for name, cell in cells.items()}
        for budget, cells in endings.items()
    }


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


def judged_stopping(runs: Sequence[Sequence[Part]]) -> list[list[Part]]:
    """The parts of several runs with p-values of each ending corrected over all runs, tasks and budgets."""
    cells = {
        (r, p, budget, name): cell
        for r, parts in enumerate(runs)
        for p, part in enumerate(parts)
        for budget, endings in part.stopping.items()
        for name, cell in endings.items()
    }
    for ending in ENDINGS:
        family = [place for place in cells if place[3] == ending]
        cells |= zip(family, adjusted([cells[place] for place in family]), strict=True)
    return [
        [
            replace(
                part,
                stopping={b: {name: cells[r, p, b, name] for name in endings} for b, endings in part.stopping.items()},
            )
            for p, part in enumerate(parts)
        ]
        for r, parts in enumerate(runs)
    ]


def at_largest(runs: Sequence[Part]) -> list[dict[str, Ending]]:
    """The endings of each run at its largest budget, with verdicts corrected over the runs for each ending."""
    found = [dict(part.stopping[max(part.stopping)]) if part.stopping else {} for part in runs]
    for ending in ENDINGS:
        having = [cells for cells in found if ending in cells]
        for cells, cell in zip(having, adjusted([cells[ending] for cells in having]), strict=True):
            cells[ending] = replace(cell, verdict=verdict(cell))
    return found
