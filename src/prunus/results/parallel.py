"""One long chain against k short ones for the same tokens, within one run. P: problems, B: budgets, N: draws.

For every pair of budgets B = k * b, one chain that may think B tokens is compared with k chains that may think b each:
with their majority vote, with the best by a score, and with whether any is correct (oracle selection: an upper bound).
Each value is the mean over all subsets of k of the N draws, per problem, so the order of draws does not matter.

Runs do not use equal tokens at equal budgets: short chains write k answers, and long ones may end early. So there are
two contrasts. The first is at equal budgets. The second, `used`, is at equal tokens: the accuracy of a single chain at
the tokens that the k chains used is interpolated linearly between the (mean tokens used, accuracy) of the run's
budgets; it is None outside their range. The interpolated accuracy is an estimate too. By the delta method its error is
a sum of per-problem terms, which are added to the differences, so that the same interval and test apply.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import scipy

from prunus.plain_data import Record
from prunus.statistics import metrics, paired
from prunus.statistics.paired import EXPLORING_RESAMPLES, Floats
from prunus.store.rows import Table, sizes_of


class AtEqualTokens(Record):
    """The contrast at equal tokens used.

    sequential: accuracy of a chain at the tokens of k.
    difference: parallel minus sequential.
    se: its standard error.
    low, high: its 95 % interval.
    p: two-sided.
    q: Benjamini-Hochberg over all contrasts, for exploring.
    """

    sequential: float
    difference: float
    se: float | None
    low: float
    high: float
    p: float
    q: float


class Chains(Record):
    """A contrast of several short chains with a long one.

    budget: of the long chain.
    chains: number of short chains.
    chain_budget: of each short chain.
    method: majority, logprob, self_certainty, shortest or any (best-of-n and pass@k).
    n, problems, samples: as of `cells.Sized`.
    sequential, parallel: accuracies of the long chain and of the short ones.
    tokens_sequential, tokens_parallel: mean tokens used.
    used: the contrast at equal tokens; None outside the range of the run's budgets.
    difference: parallel minus sequential.
    se: its standard error.
    low, high: its 95 % interval.
    p: two-sided.
    q: Benjamini-Hochberg over all contrasts, for exploring.
    """

    budget: int
    chains: int
    chain_budget: int
    method: str
    n: int
    problems: int | None = None
    samples: int
    sequential: float
    parallel: float
    tokens_sequential: float | None
    tokens_parallel: float | None
    used: AtEqualTokens | None
    difference: float
    se: float | None
    low: float
    high: float
    p: float
    q: float


def compare_parallel(table: Table, resamples: int = EXPLORING_RESAMPLES) -> list[Chains]:
    """The contrast of every split of a budget of a complete table into 2 to N chains of a smaller budget of it.

    There is none if no budget is a multiple of another, or N is 1.
    """
    table = table.curve()
    correct, scores, sizes = table.correct, table.scores(), sizes_of([table])
    shares_PB, used_PB = (table.by_group(values.mean(axis=2)) for values in (correct, table.used))
    splits = list[tuple[partial[Chains], Floats, Floats | None]]()  # with the differences at equal budget and tokens
    for short, small in enumerate(table.budgets):
        ways = [(long, large // small) for long, large in enumerate(table.budgets) if small > 0 and large % small == 0]
        ways = [(long, k) for long, k in ways if 2 <= k <= len(table.draws)]
        ballots = metrics.ballots(table.answers(small), correct[:, short]) if ways else []
        for long, k in ways:
            shared = partial(
                Chains,
                **sizes,
                budget=table.budgets[long],
                chains=k,
                chain_budget=small,
                sequential=float(shares_PB[:, long].mean()),
                tokens_sequential=float(used_PB[:, long].mean()),
                tokens_parallel=k * float(used_PB[:, short].mean()),
            )
            line_P = at_equal_use(shares_PB, used_PB, k * used_PB[:, short])
            values = {"majority": metrics.vote(ballots, k)}
            for name, score in scores.items():
                values[name] = metrics.best_of_values(score[:, short], correct[:, short], k)
            values["any"] = metrics.pass_values(correct[:, short], k)
            for name, of_problems in values.items():
                values_P = table.by_group(of_problems)
                named = partial(shared, method=name, parallel=float(values_P.mean()))
                splits.append((named, values_P - shares_PB[:, long], None if line_P is None else values_P - line_P))
    at_use, rows = iter(_cells([used_P for *_, used_P in splits if used_P is not None], resamples)), []
    for (named, _, used_P), cell in zip(splits, _cells([at_P for _, at_P, _ in splits], resamples), strict=True):
        equal = None if used_P is None else next(at_use)
        used = equal and AtEqualTokens(sequential=named.keywords["parallel"] - equal["difference"], **equal)
        rows.append(named(used=used, **cell))
    return rows


def at_equal_use(shares_PB: Floats, used_PB: Floats, wanted_P: Floats) -> Floats | None:
    """(P,) values with the mean and the standard error of single chains' accuracy at mean(wanted_P) tokens.

    The accuracy is interpolated between the two budgets around it. Each problem adds slope * (its wanted tokens minus
    its own tokens there), a term that is 0 on average and carries the error of the interpolation. None outside the
    range of the budgets.
    """
    wanted, mean_B = float(wanted_P.mean()), used_PB.mean(axis=0)
    order = np.argsort(mean_B, kind="stable")
    ends = mean_B[order]
    if not ends[0] <= wanted <= ends[-1]:
        return None
    right = int(np.clip(np.searchsorted(ends, wanted), 1, len(ends) - 1))
    a, b = order[right - 1], order[right]
    span = mean_B[b] - mean_B[a]
    if span <= 0:
        return shares_PB[:, b]
    share = (wanted - mean_B[a]) / span
    slope = (shares_PB[:, b].mean() - shares_PB[:, a].mean()) / span
    accuracy_P = (1 - share) * shares_PB[:, a] + share * shares_PB[:, b]
    tokens_P = (1 - share) * used_PB[:, a] + share * used_PB[:, b]
    return accuracy_P + slope * (wanted_P - tokens_P)


def _cells(differences: Sequence[Floats], resamples: int) -> list[dict[str, float]]:
    """A dictionary with difference, se, low, high, p and q of each; all use the same resamples."""
    if not differences:
        return []
    inferred = paired.infer([np.column_stack(differences)], resamples)
    return inferred.cells(q=scipy.stats.false_discovery_control(inferred.p))
