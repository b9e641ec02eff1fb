"""The statistics of a run, computed from its rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from math import isfinite, nan

import numpy as np

from prunus.plain_data import Record
from prunus.results.cells import Sized, Unfinished
from prunus.results.growth import unfinished
from prunus.results.parallel import Chains, compare_parallel
from prunus.results.shown import as_text
from prunus.settings.budgets import AS_RUN
from prunus.statistics import metrics, paired
from prunus.statistics.metrics import Adherence, Estimate, Tokens, Value, accuracy_bands
from prunus.statistics.paired import Floats
from prunus.store.labels import Identity, identity
from prunus.store.rows import Run, Table, sizes_of, tables
from prunus.store.store import Store
from prunus.store.stored import Environment, StoredPlan

SCORES = ("logprob", "self_certainty", "shortest")
WHOLE = ("auc", "slope", "gain", "auc_tokens", "scaling", "performance", "control", "control_total", "monotonicity")


class AreaOverTokens(Record):
    """The area under accuracy over mean tokens used, divided by the range of these.

    start, end: of the range; `from` and `to` in the plain data.
    value: the area.
    se: its standard error.
    """

    start: float | None = field(metadata={"key": "from"})
    end: float | None = field(metadata={"key": "to"})
    value: float | None
    se: float | None


class Performance(Record):
    """s1's Performance: the best accuracy, biased upwards as a maximum.

    value: the accuracy.
    budget: where it is.
    """

    value: float
    budget: int


class Monotonicity(Record):
    """Whether accuracy grows from budget to budget.

    steps: number of steps between budgets.
    rises: at which accuracy rises.
    falls: at which it falls by more than two paired standard errors.
    """

    steps: int
    rises: int
    falls: int


class TokenUse(Record):
    """Tokens of a draw by phase.

    thinking, answer: of the model.
    forced: of markers and closings.
    total: of thinking and answer.
    """

    thinking: Tokens
    answer: Tokens
    forced: Tokens
    total: Tokens


class BudgetCell(Sized):
    """A run at one budget, on the problems with all draws there. Shares are those of draws.

    accuracy: avg@N.
    se: its standard error.
    low, high: its 95 % interval.
    pass_at, maj_at: pass@k and maj@k, by k.
    best_of: accuracy of the best of k draws, by score and k; None for a score that rows lack.
    tokens: of a draw.
    tokens_per_correct: None if no draw is.
    repetition: mean share of a chain's end that is repetition; None where rows lack it.
    looping: share of chains that loop (`looping.loops`).
    forced: share of chains that were cut.
    leaked: share of answers so long that the budget no longer bounds the reasoning (`metrics.answer_allowance`).
    no_answer: share without an answer.
    malformed: share of answers that are malformed.
    failed: share on which the grader failed, not the model.
    adherence: None at budgets without tokens.
    truncated: share of answers that were cut.
    reopened: share of answers that think again.
    band_low, band_high: ends of the band that covers all budgets simultaneously; only in pages.
    """

    accuracy: float
    se: float | None
    low: float
    high: float
    pass_at: Mapping[int, float]
    maj_at: Mapping[int, float]
    best_of: Mapping[str, Mapping[int, float] | None]
    tokens: TokenUse
    tokens_per_correct: float | None
    repetition: float | None
    looping: float
    forced: float | None
    leaked: float
    no_answer: float
    malformed: float
    failed: float
    adherence: Adherence | None
    truncated: float
    reopened: float
    band_low: float | None = None
    band_high: float | None = None


class Curve(Record):
    """One task of a run.

    Numbers of the whole curve are of the problems that are complete at every budget, and None while none is. Budget OFF
    counts for none of them, unless it is the only budget; budget 0 counts for all but the area and the slope. A run
    from an imported log (AS_RUN) has none that depends on budgets.

    problems: finished ones.
    groups: number of groups of these, where some are observed together; else None.
    started: all problems that were begun.
    samples: draws of each.
    budgets: by budget.
    auc: the area under accuracy over log2 budget.
    slope: accuracy per doubling of the budget; None with fewer than two positive budgets.
    gain: accuracy from the smallest to the largest budget.
    auc_tokens: the area over tokens used.
    scaling: s1's, accuracy per 1000 thinking tokens used.
    performance: s1's, the best accuracy.
    control: s1's, the share of draws whose thinking tokens the budget bounds.
    control_total: share of draws whose thinking and answer tokens are at most budget + `metrics.answer_allowance`.
    monotonicity: whether accuracy grows.
    parallel: one long chain against k short ones.
    """

    problems: int
    groups: int | None = None
    started: int
    samples: int
    budgets: Mapping[int, BudgetCell]
    auc: Estimate | None
    slope: Value | None
    gain: Value | None
    auc_tokens: AreaOverTokens | None
    scaling: Value | None
    performance: Performance | None
    control: float | None
    control_total: float | None
    monotonicity: Monotonicity | None
    parallel: Sequence[Chains]

    @property
    def area(self) -> Estimate | None:
        """Area under accuracy over log2 budget; another name of `auc`."""
        return self.auc


class Summary(Identity):
    """The statistics of a run. Its text in a notebook is the table of `prunus eval`, and `str` of it is the run's id.

    plan: the settings with which it was evaluated.
    versions: of what computed it.
    tasks: the curve of each.
    unfinished: how much of the plan is done; None if all is.
    """

    plan: StoredPlan
    versions: Environment
    tasks: Mapping[str, Curve]
    unfinished: Unfinished | None = None

    def cells(self, task: str) -> dict[int, BudgetCell]:
        """{budget: cell} of a task, in order of budgets; empty if no problem of it is finished."""
        return dict(self.tasks[task].budgets) if task in self.tasks else {}

    @property
    def accuracy(self) -> dict[str, dict[int, float]]:
        """{task: {budget: accuracy}}, as shares of the problems that are finished."""
        return {task: {budget: cell.accuracy for budget, cell in self.cells(task).items()} for task in self.tasks}

    def __repr__(self) -> str:
        return as_text("curve_table", [self])


def summarise(store: Store, run_id: str) -> Summary:
    """The statistics of a run. Raises PrunusError if the store has no such run."""
    return describe(store.run(run_id), tables(store.samples(run_id), store.groups(), store.row_starts(run_id)))


def describe(run: Run, by_task: Mapping[str, Table], bands: bool = False) -> Summary:
    """The result of `summarise`, for rows that have been read.

    bands: whether cells get bands, if their problems are those complete at every budget. Budget OFF is not on the curve
    and gets none.
    """
    return Summary(
        **vars(identity(run)),
        plan=run.plan,
        versions=run.environment,
        tasks={task: _curve(table, bands) for task, table in by_task.items()},
        unfinished=unfinished(run, by_task),
    )


def _curve(table: Table, bands: bool) -> Curve:
    cells = {}
    for budget in table.budgets:
        column = table.select(table.problems, [budget], table.draws)
        if complete := column.complete():
            cells[budget] = _describe(column.select(complete, [budget], table.draws), budget)
    whole = table.select(table.complete(), table.budgets, table.draws)
    if bands and whole.problems:
        line = whole.curve()
        ends = accuracy_bands(line.by_group(line.correct.mean(axis=2)), _draws(line))
        for budget, (low, high) in zip(line.budgets, ends, strict=True):
            if cells[budget].all_problems == len(whole.problems):
                cells[budget] = replace(cells[budget], band_low=low, band_high=high)
    curve = Curve(
        problems=len(whole.problems),
        groups=len(whole.groups) if whole.grouped else None,
        started=len(table.problems),
        samples=len(table.draws),
        budgets=cells,
        parallel=compare_parallel(whole) if whole.problems else [],
        **dict.fromkeys(WHOLE),
    )
    return _with_numbers(curve, whole.curve()) if whole.problems else curve


def _with_numbers(curve: Curve, table: Table) -> Curve:
    """The curve with the numbers of WHOLE: weighted sums over budgets, and those that depend on tokens used."""
    budgets_B1 = np.array(table.budgets)[:, None]
    used, thinking = table.used, table.values("thinking_tokens")
    shares_PB, used_PB, thinking_PB = (
        table.by_group(values.mean(axis=2)) for values in (table.correct, used, thinking)
    )
    accuracy_B = shares_PB.mean(axis=0)
    best, (rises, falls) = int(np.argmax(accuracy_B)), metrics.steps(shares_PB)
    curve = replace(
        curve,
        auc=metrics.estimate(shares_PB @ metrics.auc_weights(table.budgets), _draws(table) * len(table.budgets)),
        slope=_weighted(shares_PB, metrics.slope_weights(table.budgets)),
        gain=_weighted(shares_PB, metrics.gain_weights(table.budgets)),
        scaling=_over_tokens(shares_PB, thinking_PB, metrics.scaling),
        performance=Performance(value=float(accuracy_B[best]), budget=table.budgets[best]),
        monotonicity=Monotonicity(steps=len(table.budgets) - 1, rises=rises, falls=falls),
    )
    if AS_RUN in table.budgets or np.isnan(used).any():
        return curve
    used_B = table.by_group(used).mean(axis=(0, 2))
    value = _over_tokens(shares_PB, used_PB, metrics.token_area) or Value(value=nan, se=nan)
    return replace(
        curve,
        auc_tokens=AreaOverTokens(start=float(used_B.min()), end=float(used_B.max()), **vars(value)),
        control=metrics.share(thinking <= budgets_B1),
        control_total=metrics.share(used <= budgets_B1 + metrics.answer_allowance(budgets_B1)),
    )


def _weighted(shares_PB: Floats, weights_B: Floats) -> Value | None:
    """A weighted sum over budgets with its error over problems; None where it has no value."""
    values_P1 = (shares_PB @ weights_B)[:, None]
    value, error = (float(of([values_P1])[0]) for of in (paired.estimate, paired.standard_error))
    return Value(value=value, se=error) if isfinite(value) else None


def _over_tokens(shares_PB: Floats, tokens_PB: Floats, statistic: Callable[[Floats, Floats], Floats]) -> Value | None:
    """A statistic of accuracy and mean tokens at each budget with its jackknife error; None where it has no value."""
    B = shares_PB.shape[1]
    both_PC = np.hstack([shares_PB, tokens_PB])
    estimate = metrics.jackknife(both_PC, lambda means: statistic(means[..., :B], means[..., B:]))
    return None if estimate.value is None else estimate


def _describe(table: Table, budget: int) -> BudgetCell:
    """The cell of a budget; table has that budget only."""
    correct_PN = table.correct[:, 0]
    answers_PN = table.answers(budget)
    draws = len(table.draws)
    accuracy = metrics.estimate(table.by_group(correct_PN.mean(axis=1)), _draws(table))

    def mean(values_P: Floats) -> float:
        return float(table.by_group(values_P).mean())

    counts = {phase: table.values(f"{phase}_tokens") for phase in ("thinking", "answer", "forced")}
    used, status = table.used, table.values("status")
    scores, repetition = table.scores(), table.numbers("repetition")
    sizes = sorted({2**power for power in range(draws.bit_length())} | {draws})
    return BudgetCell(
        **sizes_of([table]),
        accuracy=accuracy.value,
        se=accuracy.se,
        low=accuracy.low,
        high=accuracy.high,
        pass_at={k: mean(metrics.pass_values(correct_PN, k)) for k in sizes},
        maj_at={k: mean(metrics.majority_values(answers_PN, correct_PN, k)) for k in sizes},
        best_of={
            name: {k: mean(metrics.best_of_values(scores[name][:, 0], correct_PN, k)) for k in sizes}
            if name in scores
            else None
            for name in SCORES
        },
        tokens=TokenUse(**{phase: metrics.tokens(count) for phase, count in (counts | {"total": used}).items()}),
        tokens_per_correct=metrics.tokens_per_correct(used, correct_PN),
        repetition=None if repetition is None else metrics.share(np.maximum(repetition, 0)),
        looping=metrics.share(table.values("loops")),
        forced=metrics.share(table.forced),
        leaked=metrics.share(metrics.leaked(counts["answer"], budget)),
        no_answer=metrics.share(status == "no_answer"),
        malformed=metrics.share(status == "malformed"),
        failed=metrics.share(np.isin(status, ["timeout", "error"])),
        adherence=metrics.adherence(counts["thinking"], budget),
        truncated=metrics.share(table.values("answer_truncated")),
        reopened=metrics.share(table.values("reopened_think")),
    )


def _draws(table: Table) -> float:
    """The mean number of draws of a group of problems."""
    return len(table.draws) * len(table.problems) / len(table.groups)
