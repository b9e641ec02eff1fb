"""Decide on the rungs of a ladder of compressed models, after any problem, with error rates that hold at any time.

A ladder is a list of ever more compressed models, its rungs, in an order that is declared beforehand. Each is compared
with the dense model problem by problem, in an order that a seed determines, at two endpoints: accuracy (the area under
accuracy over log2 of the budget) and *ends by itself* (the share of chains that end before the largest budget cuts
them). A rung is certified as soon as both endpoints rule out a loss of their margin or more, and the walk ends at the
first rung that is not certified. Then the probability of any false certificate is at most alpha, for any number of
rungs and however often one looks:

- For one endpoint, a gambler bets on "the loss is smaller than the margin" as in `betting`. If that is false, the
  wealth ever reaches 1 / alpha with a probability of at most alpha (Ville), so one may look after every problem.
- Both endpoints have to be shown, so neither is corrected for the other (intersection-union test, Berger 1982).
- A walk in a declared order that ends at its first failure needs no correction for the number of rungs
  (fixed-sequence test, Maurer, Hothorn and Lehmacher 1995). Several ladders share alpha among them.

`anytime` has the bets, which need no horizon, so problems may be added.

Several tasks. The estimate is the mean over tasks, so bets are made on rounds: each holds problems of every task, as
many rounds as the smallest task has problems, and a round's difference is the mean over tasks. A bound per task at
alpha / tasks is weaker.

T: rounds; with one task a round is one problem, or one group of problems that belong together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite, log

import numpy as np

from prunus.errors import PrunusError
from prunus.results import contrasts
from prunus.results.vocabulary import RungVerdict
from prunus.settings.margins import MARGIN, Margin, MarginLike
from prunus.statistics import anytime, betting, coupling, metrics
from prunus.statistics.anytime import Round, bets, largest_wealth, log_e_values
from prunus.statistics.paired import Floats
from prunus.store.rows import Table

ACCURACY, ENDS = "accuracy", contrasts.ENDS
ENDPOINTS = (ACCURACY, ENDS)
DENSE = {ACCURACY: "accuracy of the dense model", ENDS: "ends of the dense model"}  # its own outcomes, beside these
# Shares of draws assumed to differ between the dense model and a harmless rung: by itself, and where little does.
CHANGED, FEW_CHANGED = 0.04, 0.01
DRAWS = (1, 2, 4, 8, 16, 32, 64)  # numbers of draws per problem that a forecast considers
MOST_ROUNDS = 200_000  # a forecast beyond this is "no number is enough"
LEAST = 1e-4  # margin in points below which a forecast does not look
MOST_LOG = 600.0  # of an e-value that is given as a number


@dataclass(frozen=True)
class Rule:
    """Margins of a certificate, which rules out a loss of `margin` in accuracy and of `stop_margin` in ending.

    Both are above 0: shares, or texts such as "5%" that Margin.of reads. alpha: probability of any false certificate
    on this ladder. Raises PrunusError for others.
    """

    margin: MarginLike = MARGIN
    stop_margin: MarginLike = MARGIN
    alpha: float = betting.ALPHA

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise PrunusError(f"alpha must be a share in (0, 1), not {self.alpha:g}")
        for name in ("margin", "stop_margin"):
            margin = Margin.of(getattr(self, name), name.replace("_", " "), zero=False)
            object.__setattr__(self, name, margin)

    @property
    def margins(self) -> dict[str, Margin]:
        """The margin of each endpoint."""
        return {ACCURACY: Margin.of(self.margin), ENDS: Margin.of(self.stop_margin)}

    @property
    def level(self) -> float:
        """The logarithm of the wealth at which a loss of the margin is ruled out."""
        return log(1 / self.alpha)


@dataclass(frozen=True)
class Decision:
    """Decision on a rung. rounds: after how many it was reached, or seen so far.

    failed: the endpoints that refused the rung, or do not certify it yet. covered: whether it is left open since losing
    all that the dense model has would be within a margin of these endpoints, so that no certificate says anything.
    evidence: for each endpoint, the largest e-value so far of "the loss is the margin or more" (harmful) and of "the
    loss is the margin or less" (harmless), and the mean difference, after those rounds (None without any).
    """

    word: RungVerdict
    rounds: int
    failed: tuple[str, ...]
    evidence: dict[str, dict[str, float | None]]
    covered: bool = False


def differences(
    dense: Mapping[str, Table],
    rung: Mapping[str, Table],
    order: Sequence[Round],
    budgets: Sequence[int],
    samples: int,
    base_samples: int | None = None,
) -> dict[str, Floats]:
    """{endpoint: (T,) rung minus dense} over the first rounds that both runs have completely, and DENSE[endpoint].

    DENSE[endpoint] has the dense model's own values in these rounds.

    A round's difference is the mean over its tasks, over the groups of each, and over the problems of each group.
    dense, rung: tables by task, as `rows.tables` makes them; the groups are those of dense. Complete: draws 0 to
    samples - 1 at all of these budgets, of the dense model 0 to base_samples - 1 (None: as many). Each side has the
    mean over its draws; where their numbers differ, matched draws have a weight of their own (`coupling`). Rounds after
    the first incomplete one do not count even if they are complete: which problems finish early depends on their
    answers, so they would not be a random sample. Raises PrunusError without a positive budget.
    """
    budgets = sorted(budgets)
    if not budgets or budgets[-1] <= 0:
        raise PrunusError("whether chains end by themselves needs a budget above 0: add one to the budgets")
    sides = [(dense, range(base_samples or samples)), (rung, range(samples))]
    if base_samples not in (None, samples):
        sides += [(side, range(min(samples, base_samples))) for side in (dense, rung)]  # over matched draws
    weights_B = metrics.auc_weights(budgets)
    values = {
        task: [_outcomes(side.get(task), budgets, draws, weights_B) for side, draws in sides]
        for task in sorted({task for round in order for task, _ in round})
    }
    rounds: list[Floats] = []
    for round in order:
        by_task: dict[str, dict[str, list[Floats]]] = {}
        for task, problem in round:
            found = [side[problem] for side in values[task] if problem in side]
            if len(found) < len(sides):
                break
            group = dense[task].first_of.get(problem, problem)
            both = [
                part
                for base_values, other_values in zip(found[::2], found[1::2], strict=True)
                for part in (other_values - base_values, base_values)
            ]
            by_task.setdefault(task, {}).setdefault(group, []).append(np.concatenate(both))
        else:
            groups = [[np.mean(each, axis=0) for each in of_task.values()] for of_task in by_task.values()]
            rounds.append(np.mean([np.mean(of_task, axis=0) for of_task in groups], axis=0))
            continue
        break
    names = (*ENDPOINTS, *DENSE.values())
    columns, *matched = np.split(np.array(rounds).reshape(-1, len(names) * len(sides) // 2), len(sides) // 2, axis=1)
    for part in matched:
        ends = slice(len(ENDPOINTS))
        weight = coupling.weights(columns[:, ends], part[:, ends])
        columns = columns + np.tile(weight, 2) * (part - columns)
    return {name: columns[:, place] for place, name in enumerate(names)}


def base_of(differences: Mapping[str, Floats], name: str, margin: Margin) -> Floats | None:
    """The dense model's values at an endpoint, which bets need for a relative margin; None for a margin in points."""
    return differences[DENSE[name]] if margin.relative else None


def paths(differences: Mapping[str, Floats], rule: Rule) -> dict[str, anytime.BoundsPath]:
    """{endpoint: estimate and bounds after every round}, defined by `anytime.BoundsPath` for either kind of margin."""
    return {
        name: anytime.path(differences[name], margin.size, rule.alpha, base_of(differences, name, margin))
        for name, margin in rule.margins.items()
    }


def _log_e_values(differences: Mapping[str, Floats], rule: Rule) -> dict[str, tuple[Floats, Floats]]:
    return {
        name: log_e_values(differences[name], margin.size, base_of(differences, name, margin))
        for name, margin in rule.margins.items()
    }


def covering(differences: Mapping[str, Floats], rule: Rule, T: int) -> tuple[str, ...]:
    """The endpoints at which losing all that the dense model had in the first T rounds would be within the margin."""
    return tuple(
        name
        for name, margin in rule.margins.items()
        if T and DENSE[name] in differences and margin.covers(float(differences[DENSE[name]][:T].mean()))
    )


def _outcomes(
    table: Table | None, budgets: Sequence[int], draws: Sequence[int], weights_B: Floats
) -> dict[str, Floats]:
    """{problem: (2,) its area and the share of its chains that end by themselves}, for complete problems."""
    if table is None or not set(budgets) <= set(table.budgets) or not set(draws) <= set(table.draws):
        return {}
    table = table.select(table.problems, budgets, draws)
    table = table.select(table.complete(), budgets, draws)
    if not table.problems:
        return {}
    area_P = weights_B @ table.correct.mean(axis=2).T
    last = table.select(table.problems, budgets[-1:], draws)
    ends_P = contrasts.ENDINGS[ENDS].values(last).mean(axis=(1, 2), dtype=float)
    return dict(zip(table.problems, np.stack([area_P, ends_P], axis=1), strict=True))


def decide(differences: Mapping[str, Floats], rule: Rule, over: bool = False) -> Decision:
    """The decision after these differences; over: no more will come, so what is still open stays open.

    The first time at which the rung is certified or refused decides, so the decision depends neither on how many
    problems are evaluated at once nor on those that come later. A rung that would be certified is left open where the
    dense model has so little that losing all of it would be within a margin.
    """
    T = len(differences[ACCURACY])
    logs = _log_e_values(differences, rule)
    shown = {name: _first(certify, rule.level) for name, (certify, _) in logs.items()}
    refused = {name: _first(refuse, rule.level) for name, (_, refuse) in logs.items()}
    good, bad = max(shown.values()), min(refused.values())
    covered = covering(differences, rule, int(good)) if good <= T else ()
    if good <= bad and good <= T:
        word = RungVerdict.CANNOT_TELL if covered else RungVerdict.CERTIFIED
        at, failed = int(good), covered
    elif bad <= T:
        word, at = RungVerdict.REFUSED, int(bad)
        failed = tuple(name for name in ENDPOINTS if refused[name] == bad)
    else:
        word, at = RungVerdict.CANNOT_TELL if over else RungVerdict.GO_ON, T
        failed = tuple(name for name in ENDPOINTS if shown[name] > T)
    shown_so_far = {
        name: {
            "difference": float(differences[name][:at].mean()) if at else None,
            "harmless": float(np.exp(min(certify[at - 1], MOST_LOG))) if at else None,
            "harmful": float(np.exp(min(refuse[at - 1], MOST_LOG))) if at else None,
        }
        for name, (certify, refuse) in logs.items()
    }
    return Decision(word, at, failed, shown_so_far, covered=word == RungVerdict.CANNOT_TELL and bool(covered))


def next_look(differences: Mapping[str, Floats], rule: Rule, look: int, total: int) -> int:
    """Number of rounds, of `total`, after which to decide next; the present number if further rounds are futile.

    They are futile if the rest would not certify the rung even without another difference, although all rounds could,
    and would not refuse it either if evidence of harm grew as it did so far. Otherwise the next `look` rounds are
    taken, or fewer if fewer might be enough, down to a quarter.
    """
    T = len(differences[ACCURACY])

    def left(after: int) -> float:
        so_far, rest = {key: values[:after] for key, values in differences.items()}, total - after
        return max(
            anytime.same_until_certified(so_far[name], m.size, rule.alpha, rest, base_of(so_far, name, m))
            for name, m in rule.margins.items()
        )

    enough = left(T)
    if isfinite(enough):
        return min(total, T + min(look, max(int(enough), ceil(look / 4))))
    harmful = [refuse[-1:].max(initial=0.0) for _, refuse in _log_e_values(differences, rule).values()]
    refused = max(harmful) * total >= rule.level * T
    return min(total, T + look) if refused or not isfinite(left(0)) else T


def _first(logs_T: Floats, level: float) -> float:
    """The number of rounds after which the level is reached first; inf if never."""
    reached = np.flatnonzero(logs_T >= level)
    return float(reached[0] + 1) if len(reached) else inf


def rounds_needed(variance: float, margin: float, alpha: float = betting.ALPHA) -> float:
    """The typical number of rounds until a rung without any true loss is certified; inf beyond 200,000.

    variance: of the differences. Growth of log wealth by its second-order expansion, with the variance that the bets
    assume at each time.
    """
    t = np.arange(MOST_ROUNDS if variance > 0 else ceil(10 * log(1 / alpha) / margin) + 200)
    bet = np.minimum(
        anytime.kelly((t * variance).astype(float), t, margin) / 2, anytime.LARGEST_STAKE_ANYTIME / (1 - margin)
    )
    growth = np.log1p(bet * margin) - 0.5 * bet**2 * variance / (1 + bet * margin) ** 2
    return _first(np.cumsum(growth), log(1 / alpha))


def rounds_like(differences: Mapping[str, Floats], rule: Rule) -> float:
    """The typical number of rounds to certify a rung that differs as much as this one and loses nothing."""
    sizes = {
        end: m.points(float(differences[DENSE[end]].mean()) if m.relative else 1.0) for end, m in rule.margins.items()
    }
    return max(
        rounds_needed(float(np.mean(differences[end] ** 2)), size, rule.alpha) if size else inf
        for end, size in sizes.items()
    )


def smallest_margin(number: int, alpha: float = betting.ALPHA) -> float:
    """The smallest margin that this many rounds could certify at all, if not a single draw differed; 1 if none."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        enough = largest_wealth(np.zeros(number), bets(np.zeros(number), middle), -middle)
        low, high = (low, middle) if number and enough[-1] >= log(1 / alpha) else (middle, high)
    return high


@dataclass(frozen=True)
class Forecast:
    """Forecast for an endpoint, before a search starts.

    rounds: typical number to certify a harmless rung (inf: more than 200,000).
    fewer: the same if only 1 % of draws change.
    available: rounds there are.
    smallest: the smallest margin they could certify if no draw differed.
    draws: the smallest number of draws per problem (of 1, 2, 4 to 64) with which they would typically be enough;
        None if they are not with any, so that only more problems or a larger margin help.
    base_draws: the smallest number of draws of the dense model alone, while the rungs keep theirs; None likewise.
    """

    rounds: float
    fewer: float
    available: int
    smallest: float
    draws: int | None
    base_draws: int | None = None


def forecast(
    rule: Rule, available: int, draws: int, dense: Mapping[str, float] | None = None, base_draws: int | None = None
) -> dict[str, Forecast]:
    """{endpoint: forecast} for a harmless rung, of whose draws a share of CHANGED is assumed to differ.

    Half of the variance of the differences of single draws is that of either model. base_draws: of the dense model;
    None: as many. dense: the dense model's value at each endpoint, for margins that are a share of it; by default 1,
    the best case.
    """
    forecasts, now = {}, base_draws or draws
    for name, margin in rule.margins.items():
        of = max(margin.points((dense or {}).get(name, 1.0)), LEAST), rule.alpha
        needed, fewer = (_rounds(share, draws, now, *of) for share in (CHANGED, FEW_CHANGED))
        both = (n for n in DRAWS if _rounds(CHANGED, n, n, *of) <= available)
        alone = (n for n in DRAWS if n >= now and _rounds(CHANGED, draws, n, *of) <= available)
        least = smallest_margin(available, rule.alpha)
        forecasts[name] = Forecast(needed, fewer, available, least, next(both, None), next(alone, None))
    return forecasts


def _rounds(changed: float, draws: int, base_draws: int, margin: float, alpha: float) -> float:
    """`rounds_needed` of a harmless rung of which this share of the draws changes."""
    matched = draws == base_draws
    return rounds_needed(changed / draws if matched else changed * (1 / draws + 1 / base_draws) / 2, margin, alpha)
