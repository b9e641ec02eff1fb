"""Records of a comparison: the cells of budgets and areas, and all that is said of a run.

Accuracies, differences and intervals (low to high, 95 %) are shares of problems; `_adjusted` is corrected for the
number of tests. What the numbers mean is in docs/verdicts.md, and how they are computed in the modules of this folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import nan
from typing import Any, Self

from prunus.errors import PrunusError, nearest
from prunus.plain_data import Record
from prunus.results.shown import as_text
from prunus.results.vocabulary import Scaling, Verdict
from prunus.settings.margins import Margin
from prunus.store.labels import Identity, is_called, unique_labels


class Sized(Record):
    """A number from n observations: problems, or groups of them; then `problems` is the number of problems.

    n: number of observations.
    problems: number of problems, where these are groups of them; else None.
    samples: draws of each problem.
    base_samples: draws of each problem in the base, where these are more or fewer; else None.
    """

    n: int
    problems: int | None = None
    samples: int
    base_samples: int | None = None

    @property
    def all_problems(self) -> int:
        """The number of problems."""
        return self.n if self.problems is None else self.problems


class Needed(Record):
    """Numbers that would have 80 % power for the effect: of draws per problem, or of problems with the present draws.

    effect: the observed difference, or the margin if that is larger.
    draws, problems: None where no number is enough, or one draw is too few to estimate it, as the note says.
    note: why there is no number.
    """

    effect: float
    draws: int | None
    problems: int | None
    note: str | None


class Difference(Sized):
    """The difference of two runs.

    accuracy, base_accuracy: of the run and of the base.
    difference: accuracy minus base_accuracy.
    se: its standard error.
    low, high: its 95 % interval.
    p_flip: two-sided, of sign flips, for exploring.
    p_better, p_worse: one-sided.
    p: two-sided.
    """

    accuracy: float
    base_accuracy: float
    difference: float
    se: float | None
    low: float
    high: float
    p_flip: float
    p_better: float
    p_worse: float
    p: float


class Cell(Difference):
    """The difference at one budget, or over the area.

    lower_bound: one-sided 95 %, valid for any number of problems.
    lower_bound_adjusted: of the area: the lower bound that holds for all comparisons corrected together, so also for
        a run that was chosen among them.
    upper_bound_adjusted: of the area: the upper bound at 2.5 % that holds for all of them; below 0, a loss is shown.
    p_margin: of a loss of the margin or more.
    mde: the true difference that would be detected with 80 % power at the first step of Holm's correction; None where
        none could be with so few problems, and where bounds hold at any time.
    settle: what would have 80 % power.
    band_low, band_high: cover all budgets of the task simultaneously; only at budgets.
    unfinished: whether the verdict waits for missing rows.
    p_better_adjusted, p_worse_adjusted, p_margin_adjusted, p_adjusted: corrected for the number of tests.
    q: Benjamini-Hochberg over all budgets and areas of all runs, for exploring.
    """

    lower_bound: float
    lower_bound_adjusted: float | None = None
    upper_bound_adjusted: float | None = None
    p_margin: float
    mde: float | None
    settle: Needed
    band_low: float | None = None
    band_high: float | None = None
    unfinished: bool | None = None
    p_better_adjusted: float = nan
    p_worse_adjusted: float = nan
    p_margin_adjusted: float = nan
    p_adjusted: float = nan
    q: float = nan


class Slope(Difference):
    """The difference of slopes per doubling of the budget; accuracy and base_accuracy are the slopes.

    retention: slope over base's slope; None unless base's is clearly above 0.
    retention_low, retention_high: its 95 % interval.
    p_kept, p_lost: of retention above 0.9 and below.
    unfinished: whether the verdict waits for missing rows.
    p_kept_adjusted, p_lost_adjusted: corrected for the number of tests, in the slope of all tasks together.
    word: kept, lost or cannot tell, in the slope of all tasks together.
    """

    retention: float | None
    retention_low: float | None
    retention_high: float | None
    p_kept: float
    p_lost: float
    unfinished: bool | None = None
    p_kept_adjusted: float | None = None
    p_lost_adjusted: float | None = None
    word: Scaling | None = None


class Ending(Sized):
    """The difference of two runs in how often their chains end in one way.

    difference: of the shares of draws.
    se: its standard error.
    low, high: its 95 % interval.
    p: two-sided.
    share, base_share: of draws that end so, of the run and of the base.
    gain: the difference as an improvement.
    bound: the most harmful difference that is not ruled out (one-sided 95 %, for any number of problems).
    p_margin: of harm of the margin or more.
    p_better, p_worse: one-sided.
    gain_low, gain_high: ends of the interval of the gain that agrees with the verdict and holds for all comparisons
        together; only at the largest budget.
    unfinished: whether the verdict waits for missing rows.
    p_better_adjusted, p_worse_adjusted, p_margin_adjusted, p_adjusted: corrected, at the largest budget over the runs,
        elsewhere over all runs, tasks and budgets.
    verdict: by the corrected p-values.
    """

    difference: float
    se: float | None
    low: float
    high: float
    p: float
    share: float
    base_share: float
    gain: float
    bound: float
    p_margin: float
    p_better: float
    p_worse: float
    gain_low: float | None = None
    gain_high: float | None = None
    unfinished: bool | None = None
    p_better_adjusted: float = nan
    p_worse_adjusted: float = nan
    p_margin_adjusted: float = nan
    p_adjusted: float = nan
    verdict: Verdict | None = None


AREA, SLOPE = "area", "slope"
Place = tuple[str, int]  # of a cell: a way of ending, AREA, SLOPE, or an empty text for the accuracy; and its budget
Cells = dict[Place, Any]  # of a task, or of all tasks with equal weights


class Part(Record):
    """The cells of a task, or of all tasks with equal weights.

    budgets: by budget.
    auc: the area under accuracy over log2 budget.
    slope: None with fewer than two positive budgets.
    stopping: by budget and way of ending.
    """

    budgets: Mapping[int, Cell]
    auc: Cell
    slope: Slope | None
    stopping: Mapping[int, Mapping[str, Ending]]

    @classmethod
    def of_cells(cls, cells: Cells) -> Self:
        """The part with these cells at their places."""
        stopping: dict[int, dict[str, Ending]] = {}
        for (kind, budget), cell in cells.items():
            if kind not in ("", AREA, SLOPE):
                stopping.setdefault(budget, {})[kind] = cell
        budgets = {budget: cell for (kind, budget), cell in cells.items() if not kind}
        return cls(budgets=budgets, auc=cells[AREA, 0], slope=cells.get((SLOPE, 0)), stopping=stopping)

    @property
    def area(self) -> Cell:
        """Difference in the area under accuracy over log2 budget."""
        return self.auc


class Unfinished(Record):
    """How many problems of the plan have all their rows.

    complete: number of problems that have them.
    planned: number of problems of the plan.
    base: in a comparison, whether that is the base's plan.
    mixed: set if the rows, which may be complete, were computed in several ways (rows.Run.mixed).
    """

    complete: int
    planned: int
    base: bool | None = None
    mixed: bool | None = None


class InterimAnalysis(Record):
    """A comparison of the two models as it could be seen at some time. A field with two entries has the base's first.

    limit: number of problems of each task; None: all.
    samples: draws of each problem.
    base_samples: draws in the base, where these are more or fewer.
    runs: their ids.
    started: UTC time at which the last evaluation began.
    complete: number of complete problems when the evaluation of the next run began; None where that is not known.
    """

    limit: int | None
    samples: int
    base_samples: int | None = None
    runs: Sequence[str]
    started: Sequence[str | None]
    complete: Sequence[int | None]


class Stopping(Record):
    """How chains end at the largest budget.

    tokens_ratio: tokens per draw, as a multiple of the base's.
    per_correct, base_per_correct: tokens per correct draw, of the run and of the base; None without any.
    budget: the largest; None without any.
    endings: the cells there, with verdicts.
    """

    tokens_ratio: float | None
    per_correct: float | None
    base_per_correct: float | None
    budget: int | None
    endings: Mapping[str, Ending]


class AsGood(Record):
    """The budget at which the base is as good as a variant at its largest budget.

    largest: budget of the variant, in tokens.
    estimate: budget of the base, at most its largest; None where the variant is below the base's smallest budget.
    low: the base is shown to be worse at this budget and all smaller ones; None if there is none.
    high: it is shown to be better at this budget and all larger ones; None if there is none.
    """

    largest: int
    estimate: float | None
    low: int | None
    high: int | None


class Contradiction(Record):
    """A budget whose verdict contradicts the run's.

    budget: in tokens.
    difference: in accuracy there.
    verdict: there.
    """

    budget: int
    difference: float
    verdict: Verdict


class OfSet(Record):
    """Bound of the difference over a finite set of problems, of which a sample was decoded greedily.

    It holds for no other problems. The sample is without replacement.

    size: number of problems of the set.
    lower_bound: of the difference over the set (one-sided 95 %), for all comparisons that are corrected together.
    within_margin: whether a loss of the margin or more over the set is ruled out.
    """

    size: int
    lower_bound: float
    within_margin: bool


class Entry(Identity):
    """One compared run: its differences from the base, and all that is said of it.

    tasks: the cells of each.
    margin: the largest acceptable loss of accuracy.
    warnings: a line each.
    macro: the cells of all tasks with equal weights; None with a single task.
    noise_in_common: estimated share of the noise of the base's draws that the run's draws of equal numbers have in
        common, in the area; None where it cannot be told.
    primary: the cell that decides, the area of all tasks.
    low, high: the interval of its difference that decides, by the tests of the verdict for all comparisons together:
        low is above minus the margin where a loss of the margin is ruled out, and high below 0 where the run is worse.
        None for an unfinished run.
    of_set: bound for the finite set of which the problems are a sample, if nothing else is random; no verdict rests on
        it.
    nothing_to_lose: whether losing all that the base solves would be within the margin, so that no run is non-inferior.
    adaptive: whether rows decided how many problems there are; then p, bounds and intervals hold at any time, and
        scaling cannot be told.
    stopping: how its chains end.
    as_good: with how much thinking the base is as good; None without several budgets, and for an unfinished run.
    unfinished: how much of the plan is done; None if all is.
    grown: the comparisons that could be seen, the present last, if their size changed.
    within_margin: whether a loss of the margin or more is ruled out.
    verdict: better, worse, non-inferior, cannot tell or unfinished (docs/verdicts.md).
    scaling: the slope of all tasks.
    whole_curve: whether it is better, or worse, at every one of several budgets, by the corrected verdict of each.
    contradicted_at: budgets whose verdict contradicts the present verdict.
    stops: the verdict on ending by itself.
    still_stops: whether the model may be said to stop as the base does: no loss is shown, most of its chains end by
        themselves, and the margin is small beside the base's.
    relies_on_cutting: whether its chains end by themselves less often, although a loss of the margin is ruled out.
    """

    tasks: Mapping[str, Part]
    margin: Margin
    warnings: Sequence[str]
    macro: Part | None = None
    noise_in_common: float | None = None
    primary: Cell
    low: float | None
    high: float | None
    of_set: OfSet | None = None
    nothing_to_lose: bool
    adaptive: bool
    stopping: Stopping
    as_good: AsGood | None = None
    unfinished: Unfinished | None
    grown: Sequence[InterimAnalysis] | None
    within_margin: bool
    verdict: Verdict
    scaling: Slope | None
    whole_curve: bool
    contradicted_at: Sequence[Contradiction]
    stops: Verdict | None
    still_stops: bool
    relies_on_cutting: bool

    @property
    def area(self) -> Cell:
        """The cell that decides; another name of `primary`."""
        return self.primary

    def __repr__(self) -> str:
        points = f"{100 * self.primary.difference:+.1f} points"
        if self.low is not None and self.high is not None:
            points += f", 95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}"
        return f"{self.label} ({self.run}): {self.verdict} ({points})"


class Base(Identity):
    """The run that others are compared with.

    unfinished: how much of the plan is done; None if all is.
    """

    unfinished: Unfinished | None = None


class Repeated(Record):
    """How much changes where nothing should: another run of the base's model and plan against the base, over the area.

    run: its id.
    how: what was different in its computation, such as `in other batches`.
    difference: in accuracy.
    low, high: its 95 % interval.
    n: number of problems.
    samples: draws of each.
    answers: number of pairs of answers that are compared, over all budgets and draws.
    differ: number of pairs whose answers differ.
    grades: number of pairs whose grades differ.
    """

    run: str
    how: str
    difference: float
    low: float
    high: float
    n: int
    samples: int
    answers: int
    differ: int
    grades: int


class RecipeVerdict(Record):
    """The estimate of a recipe from the runs of several calibration seeds, which are a random effect as problems are.

    seeds: of the calibration.
    runs: their ids.
    n: number of problems.
    samples: draws of each.
    base_accuracy: of the base.
    difference: mean over seeds, tasks and problems, with its t interval, which takes seeds to differ normally, so that
        no verdict rests on it.
    se: its standard error.
    se_seeds, se_problems: the parts of seeds and of problems, whose squares add up to its square.
    freedom: degrees of freedom of the interval.
    low, high: the 95 % interval.
    p_better, p_worse: one-sided.
    p_margin: of a loss of the margin or more.
    verdict: as of a run.
    label: the recipe, without its seed.
    each: the difference of each seed's run.
    needed: least number of seeds that can rule out a loss of the margin; None where no number of them can.
    """

    seeds: Sequence[int]
    runs: Sequence[str]
    n: int
    samples: int
    base_accuracy: float
    difference: float
    se: float
    se_seeds: float
    se_problems: float
    freedom: float
    low: float
    high: float
    p_better: float
    p_worse: float
    p_margin: float
    verdict: Verdict
    label: str
    each: Sequence[float] = ()
    needed: int | None = None


class Looks(Record):
    """How many comparisons p-values are corrected for.

    comparisons: their number, with each base.
    others: number for runs that are not shown, with a single base.
    removed: number for runs that were removed, with a single base.
    bases: number of runs of the base model that could be the base.
    """

    comparisons: int
    others: int
    removed: int
    bases: int


REQUIREMENTS = ("non-inferior", "stops")  # of gates, as Comparison.unmet describes them


class Comparison(Record):
    """Runs compared with a base. Its text is the table of `prunus compare`.

        for entry in comparison:
            print(entry.model, entry.verdict, entry.area.difference)

    `comparison["W4 g128"]` is the entry of a run, and a loop goes over all.

    base: the run that others are compared with.
    others: an entry for each of these.
    looks: how many comparisons p-values are corrected for.
    margin: the largest acceptable loss of accuracy.
    stop_margin: the largest acceptable change for the worse in how chains end.
    repeats: how much other runs of the base's model and plan differ from it: A/A controls, other batches, and exact
        servings that differ in what only costs speed.
    recipes: those with runs of several calibration seeds.
    method: how numbers were computed, in words.
    warnings: a line each.
    """

    base: Base
    others: Sequence[Entry]
    looks: Looks | None = None
    margin: Margin
    stop_margin: Margin
    repeats: Sequence[Repeated]
    recipes: Sequence[RecipeVerdict]
    method: Mapping[str, str | int]
    warnings: Sequence[str]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.others)

    def unmet(self, requirement: str) -> list[str]:
        """A line for each run that does not meet a requirement, for gates of releases.

        requirement: `non-inferior`: a loss of accuracy of the margin or more is ruled out, after correction for all
        comparable runs; `stops`: the run may be said to stop as the base does.

        Raises PrunusError for another requirement, so that no gate is passed by a misspelt one.
        """
        if requirement not in REQUIREMENTS:
            raise PrunusError(f"'{requirement}' is no requirement; {nearest(requirement, REQUIREMENTS)}")
        lines = []
        for entry, name in zip(self.others, unique_labels([self.base, *self.others])[1:], strict=True):
            met, word = entry.within_margin, entry.verdict
            if requirement == "stops":
                met, word = entry.still_stops, entry.stops
            if not met or word is None:
                lines.append(f"{name} does not meet '{requirement}': {word or 'it gets no verdict'}")
        return lines

    def __getitem__(self, name: str | Identity) -> Entry:
        """The entry of a run: by its id, its model's name, its label as tables print it, or the start of its id.

        Raises PrunusError unless this is one run.
        """
        text, labels = str(name), unique_labels([self.base, *self.others])[1:]
        printed = dict(zip([entry.run for entry in self.others], labels, strict=True))
        tests = (
            lambda entry: entry.run == text,
            lambda entry: entry.model == text,
            lambda entry: printed[entry.run] == text,
            lambda entry: is_called(entry, text),
            lambda entry: bool(text) and entry.run.startswith(text),
        )
        meant = next((found for means in tests if (found := [entry for entry in self.others if means(entry)])), [])
        if len(meant) == 1:
            return meant[0]
        listed = ", ".join(f"{entry.model} ({entry.run}; {printed[entry.run]})" for entry in meant or self.others)
        raise PrunusError(
            f"'{text}' is {'several runs' if meant else 'no run'} of this comparison: name one of {listed}"
        )

    def __repr__(self) -> str:
        return as_text("verdict_table", self)
