"""How much thinking is enough: the smallest budget that loses less than a margin, and how much more a variant needs.

*Levels* compare a run with itself at its largest budget. A walk goes from the second largest budget down, and ends at
the first budget where a loss of the margin is not ruled out at alpha over the number of margins, so that all lines of a
run hold together with 95 %: several margins down one sequence need that correction, and a single one none (Maurer,
Hothorn and Lehmacher 1995). The bound at the budget that is named is the luckiest of those that passed, so only the
margin is said of it.

*Exchange* compares a variant with the base. Its levels are against the base's largest budget. The budget at which it is
as right as the base at B lies between two of its own: it is shown to be worse at the lower one and at all smaller ones,
and better at the upper one and at all larger ones, at 2.5 % each; only the crossing can be left out wrongly, so budgets
need no correction.

B: budgets, K: the budgets of a walk, the largest first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prunus.errors import PrunusError
from prunus.plain_data import Record
from prunus.questions import order_of_bets
from prunus.results.as_good import held, shown_apart
from prunus.results.budget_map import NO_FIELD, BudgetMap, Thinking, budget_map, thinking_of
from prunus.results.cells import Unfinished
from prunus.results.comparison import dense_run, taken
from prunus.results.contrasts import ENDINGS, Pair, claims_at_budgets, is_one_outcome
from prunus.results.growth import unfinished
from prunus.results.shown import as_text
from prunus.settings.margins import LEVELS, Margin, MarginLike
from prunus.statistics.betting import ALPHA
from prunus.statistics.least_margin import problems_for
from prunus.store.labels import Identity, identity
from prunus.store.rows import Run, Sample, Table, tables
from prunus.store.store import Store

FULL = "full"
CUT = 0.05  # share of chains that the largest budget cuts from which on a warning says so
SHARE = 0.5  # of what is solved: a level with such a margin or a larger one says nothing, and is not named
METHOD = (
    "95 % for all levels of a run together: at the named budget and at every larger measured one it loses less than the"
    " margin against its own largest budget, on problems like these. Nothing is said of budgets between measured ones,"
    " or of more than the largest."
)


class Level(Record):
    """A thinking budget, and what it keeps of the largest budget.

    name: `full` for the largest budget of the run, or the name of the level.
    margin: the loss that is ruled out there and at every larger measured budget; None for `full`.
    budget: in tokens; None where no budget is named, as `note` says.
    accuracy: share of problems that are solved there, an estimate.
    cut: share of chains that the budget cuts.
    unanswered: share of draws without an answer.
    tokens: mean number of tokens of a draw, thinking and answer.
    saved: the share of the largest budget's tokens that is saved.
    below: the next smaller measured budget; None for the smallest.
    note: why no budget is named, or why it is the largest.
    """

    name: str
    margin: Margin | None = None
    budget: int | None = None
    accuracy: float | None = None
    cut: float | None = None
    unanswered: float | None = None
    tokens: float | None = None
    saved: float | None = None
    below: int | None = None
    note: str | None = None


class AsRight(Record):
    """Between which budgets of a variant it is as right as the base at one of the base's budgets.

    base_budget: of the base.
    above: the largest budget at which, as at all smaller ones, the variant is shown to be worse; None if there is none.
    below: the smallest at which, as at all larger ones, it is shown to be better; None if there is none.
    never: whether it is shown to be worse at every measured budget.
    longer_low, longer_high: how many times as long its draws are at these two budgets as the base's at its own, in mean
        tokens; None without that budget.
    """

    base_budget: int
    above: int | None
    below: int | None
    never: bool
    longer_low: float | None
    longer_high: float | None


class Exchange(Record):
    """Tokens that a variant must think to be as right as the base.

    base: the run of the base.
    problems: number of problems that both runs have.
    levels: the variant's smallest budget that loses less than each margin against the base at its largest budget.
    as_right: for each budget of the base's own levels.
    """

    base: str
    problems: int
    levels: Sequence[Level]
    as_right: Sequence[AsRight]


class RunEfforts(Identity):
    """The levels of a run.

    problems: number of problems.
    samples: draws of each.
    budgets: the measured budgets.
    solves: the share of problems that is solved at each of them.
    levels: `full`, then each level in order of its margin; empty for an unfinished run.
    unfinished: how much of the plan is done; None if all is.
    thinking: how it is begun and ended; None for an imported log, which does not say.
    exchange: against the base; None for the base itself, and without a base.
    warnings: a line each.
    """

    problems: int
    samples: int
    budgets: Sequence[int]
    solves: Sequence[float]
    levels: Sequence[Level]
    unfinished: Unfinished | None = None
    thinking: Thinking | None = None
    exchange: Exchange | None = None
    warnings: Sequence[str] = ()

    def level(self, name: str) -> Level:
        """The level of this name. Raises PrunusError if there is none."""
        for level in self.levels:
            if level.name == name:
                return level
        raise PrunusError(f"{self.model} ({self.run}) has no level '{name}': it has {', '.join(self.names)}")

    @property
    def names(self) -> list[str]:
        """The names of its levels."""
        return [level.name for level in self.levels]


class Efforts(Record):
    """How much thinking is enough for each run of a store. Its text is the table of `prunus efforts`.

    runs: an entry for each, the base first.
    base: the run that variants are exchanged with; None if there is none.
    method: what the levels claim.
    """

    runs: Sequence[RunEfforts]
    base: str | None
    method: str = METHOD

    def for_target(self, target: str, run: str | Identity | None = None) -> BudgetMap:
        """The budgets of a run as an engine or a gateway takes them.

        target: `vllm`, `sglang`, `llama.cpp`, `openai` for gateways, or `json`. run: its id or model; None where there
        is only one. Raises PrunusError where the target has no field for such budgets.
        """
        named = [entry for entry in self.runs if run is None or str(run) in (entry.run, str(entry.model))]
        if len(named) != 1:
            which = ", ".join(f"{entry.model} ({entry.run})" for entry in self.runs)
            raise PrunusError(f"a map of budgets is of one run: name it, of {which}")
        levels = {level.name: level.budget for level in named[0].levels if level.name != FULL}
        made = budget_map(target, named[0].run, str(named[0].model), levels, named[0].thinking)
        why = [f"level '{level.name}': {level.note}" for level in named[0].levels if level.note is not None]
        return replace(made, notes=[*made.notes, *why])

    def __repr__(self) -> str:
        return as_text("effort_tables", self)


def efforts(
    store: Path | str,
    run: str | Identity | None = None,
    levels: Mapping[str, MarginLike] | None = None,
    base: str | Identity | None = None,
) -> Efforts:
    """The smallest thinking budget that loses less than each margin, for every run of a store.

        found = prunus.efforts("results.db")
        print(found.runs[0].level("medium").budget)

    store: SQLite file of the results.
    run: the only run that is looked at, besides the base: its id or the start of it, its model's name or its label.
    levels: {name: margin}, by default high 2, medium 5 and low 10 points; "5%" is relative to what the run solves.
    base: the run that the others are exchanged with; by default that of the unpruned model, if there is any.

    Only runs with several positive budgets have levels. Raises PrunusError for unknown names and bad margins.
    """
    margins = checked_levels(LEVELS if levels is None else levels)
    with Store(store) as opened:
        runs = [run for run in opened.runs_with_rows() if not run.is_control]
        if base is not None:
            base_run = opened.find_run(str(base))
        else:
            try:
                base_run = dense_run(runs, opened.path)
            except PrunusError:
                base_run = None
        if run is not None:
            runs = [opened.find_run(str(run))]
        if base_run is not None:
            runs = [base_run, *(other for other in runs if other.run_id != base_run.run_id)]
        groups, questions = opened.groups(), opened.questions()
        measured = [Measured.read(opened, of, opened.samples(of.run_id), groups, questions) for of in runs]
    found = efforts_of(measured, margins, base_run)
    if found is None or (run is not None and runs[-1].run_id not in {entry.run for entry in found.runs}):
        who = "no run has" if run is None else f"run {runs[-1].run_id} does not have"
        raise PrunusError(
            f"{who} several thinking budgets, which levels are read from: evaluate with --budgets 256,512,1024"
        )
    return found


def checked_levels(levels: Mapping[str, MarginLike] = LEVELS) -> dict[str, Margin]:
    """{name: margin}, from the smallest margin on. Raises PrunusError for a bad name or margin, or none at all."""
    if not levels:
        raise PrunusError("no level is given: write --levels high=0.02,medium=0.05,low=0.1")
    if wrong := next((name for name in levels if not name.isidentifier() or name == FULL), None):
        raise PrunusError(f"level '{wrong}' cannot be named so: use letters and digits, and not '{FULL}'")
    margins = {name: Margin.of(margin, f"the margin of level '{name}'", zero=False) for name, margin in levels.items()}
    return dict(sorted(margins.items(), key=lambda item: item[1].size))


@dataclass(frozen=True)
class Measured:
    """A run with what its levels are read from: for each task its complete problems, in the order of bets."""

    run: Run
    tables: Mapping[str, Table]
    unfinished: Unfinished | None

    @classmethod
    def read(
        cls, store: Store, run: Run, samples: Sequence[Sample], groups: Mapping[str, str], questions: Mapping[str, str]
    ) -> "Measured":
        """The measurement of a run from its rows, which have been read, and those at further budgets of the store."""
        rows, complete = [*samples, *store.finer_samples(run.run_id)], {}
        by_task = tables(rows, groups, store.row_starts(run.run_id))
        for task, table in by_task.items():
            budgets = [budget for budget in table.budgets if budget > 0]
            if budgets and (problems := order_of_bets(table.complete(), questions)):
                complete[task] = table.select(problems, budgets, table.draws)
        return cls(run, complete, unfinished(run, by_task))

    @property
    def budgets(self) -> tuple[int, ...]:
        """The positive budgets that all tasks have, from the smallest on."""
        shared = set.intersection(*(set(table.budgets) for table in self.tables.values())) if self.tables else set()
        return tuple(sorted(shared))

    def mean(self, values_of: Callable[[Table], np.ndarray], budget: int) -> float:
        """The mean over draws and problems of values (P, B, N) at a budget; all tasks have the same weight."""
        means = []
        for table in self.tables.values():
            values_P1 = values_of(table)[:, [table.budgets.index(budget)]].mean(axis=2, dtype=float)
            means.append(table.by_group(values_P1).mean())
        return float(np.mean(means))

    def pairs_with(self, base: "Measured", budget: int, budgets: Sequence[int]) -> dict[str, Pair]:
        """For each task this run at some budgets, paired with the base at one budget, on the problems of both."""
        pairs = {}
        for task, table in self.tables.items():
            if task not in base.tables:
                continue
            base_table = base.tables[task]
            shared = [problem for problem in table.problems if problem in set(base_table.problems)]
            if shared:
                whole = held(base_table.select(shared, [budget], base_table.draws), budget, budgets)
                pairs[task] = Pair(whole, table.select(shared, budgets, table.draws))
        return taken(base.run, self.run, pairs)[0]


def efforts_of(measured: Sequence[Measured], margins: Mapping[str, Margin], base: Run | None) -> Efforts | None:
    """The result of `efforts` for runs that have been read, the base first; None where none has several budgets."""
    judged = [run for run in measured if len(run.budgets) > 1]
    own = judged[0] if judged and base is not None and judged[0].run.run_id == base.run_id else None
    variants = [run for run in judged if own is not None and run is not own and run.unfinished is None]
    comparable = own is not None and own.unfinished is None
    found = [
        _entry(run, margins, own if comparable and run in variants else None, max(1, len(variants))) for run in judged
    ]
    if not found:
        return None
    return Efforts(runs=found, base=own.run.run_id if own is not None else None)


def _entry(measured: Measured, margins: Mapping[str, Margin], base: Measured | None, variants: int) -> RunEfforts:
    """The entry of a run. base: to exchange with. variants: how many runs are exchanged with it."""
    thinking, first = thinking_of(measured.run), next(iter(measured.tables.values()))
    warnings, levels = [], []
    if thinking is not None and not thinking.stop:
        warnings.append(f"its thinking has no markers: {NO_FIELD}")
    if measured.unfinished is None:
        levels = levels_of(measured, measured, margins, 1)
        if (cut := levels[0].cut) is not None and cut > CUT:
            warnings.append(
                f"the largest budget, {levels[0].budget}, still cuts {100 * cut:.0f} % of the chains: with a larger one"
                " the model may solve more"
            )
        warnings += _bound_by_rows(measured, levels)
    else:
        warnings.append("unfinished: which problems are finished first is not chance, so no level is given")
    return RunEfforts(
        **vars(identity(measured.run)),
        problems=sum(len(table.problems) for table in measured.tables.values()),
        samples=len(first.draws),
        budgets=measured.budgets,
        solves=[measured.mean(lambda table: table.correct, budget) for budget in measured.budgets],
        levels=levels,
        unfinished=measured.unfinished,
        thinking=thinking,
        exchange=None if base is None else exchange(measured, base, margins, variants),
        warnings=warnings,
    )


def _bound_by_rows(measured: Measured, levels: Sequence[Level]) -> list[str]:
    """Warnings on named levels: how problems were taken, and answers that go on thinking."""
    _, _, taken_so = taken(measured.run, measured.run, {})
    lines = [taken_so] if taken_so else []
    for budget in sorted({level.budget for level in levels if level.budget is not None}):
        leaks = measured.mean(ENDINGS["leaked"].values, budget)
        if leaks > CUT:
            lines.append(
                f"at {budget:,} tokens {100 * leaks:.0f} % of the answers go on thinking, which a budget does not end"
            )
    return lines


def levels_of(measured: Measured, base: Measured, margins: Mapping[str, Margin], walks: int) -> list[Level]:
    """`full`, and for each margin the smallest budget that with all larger ones is shown to lose less.

    base: the run at whose largest budget losses are measured; the run itself for its own levels. walks: number of runs
    among which alpha is divided, besides the margins.
    """
    own, full = measured is base, base.budgets[-1]
    tried = [budget for budget in reversed(measured.budgets) if not own or budget < full]
    pairs = list(measured.pairs_with(base, full, tried).values())
    alpha, solved = ALPHA / len(margins) / walks, base.mean(lambda table: table.correct, full)
    groups = sum(len(pair.base.groups) for pair in pairs)
    levels = [_level(measured, FULL, None, measured.budgets[-1])]
    for name, margin in margins.items():
        size = margin.points(solved)
        if size >= SHARE * solved:
            levels.append(
                Level(name=name, margin=margin, note=f"it is half or more of the {100 * solved:.1f} % that are solved")
            )
            continue
        p_K = claims_at_budgets(pairs, margin).p_margin
        passed = int(np.logical_and.accumulate(p_K <= alpha).sum())
        if not passed:
            exactly = is_one_outcome(pairs) and pairs[0].adaptive is None and not margin.relative
            note = "nothing smaller is shown to lose less"
            if groups < (least := problems_for(size, alpha, exactly)):
                note = f"{groups} problems are too few where nothing differs: at least {least}"
            levels.append(_level(measured, name, margin, full if own else None, note))
        else:
            levels.append(_level(measured, name, margin, tried[passed - 1], None))
    return levels


def goes_on(measured: Measured, margins: Mapping[str, Margin], budget: int) -> bool:
    """Whether a walk passes a budget, at the largest of the margins that can name a budget."""
    full = measured.budgets[-1]
    solved = measured.mean(lambda table: table.correct, full)
    named = [margin for margin in margins.values() if margin.points(solved) < SHARE * solved]
    if not named:
        return False
    pairs = list(measured.pairs_with(measured, full, [budget]).values())
    return bool(claims_at_budgets(pairs, named[-1]).p_margin[0] <= ALPHA / len(margins))


def _level(measured: Measured, name: str, margin: Margin | None, budget: int | None, note: str | None = None) -> Level:
    """A level with its accuracy and tokens at a budget, or without these where the budget is None."""
    if budget is None:
        return Level(name=name, margin=margin, note=note)
    used = [measured.mean(lambda table: table.used, at) for at in (budget, measured.budgets[-1])]
    return Level(
        name=name,
        margin=margin,
        budget=budget,
        accuracy=measured.mean(lambda table: table.correct, budget),
        cut=measured.mean(lambda table: table.forced, budget),
        unanswered=measured.mean(ENDINGS["unanswered"].values, budget),
        tokens=used[0],
        saved=1 - used[0] / used[1] if used[1] else None,
        below=max((other for other in measured.budgets if other < budget), default=None),
        note=note,
    )


def exchange(measured: Measured, base: Measured, margins: Mapping[str, Margin], variants: int) -> Exchange | None:
    """Tokens that a variant must think to be as right as the base; None where they share no problem."""
    if not (pairs := measured.pairs_with(base, base.budgets[-1], measured.budgets)):
        return None
    own = {level.budget for level in levels_of(base, base, margins, 1) if level.budget is not None}
    return Exchange(
        base=base.run.run_id,
        problems=sum(len(pair.base.problems) for pair in pairs.values()),
        levels=levels_of(measured, base, margins, variants)[1:],
        as_right=[as_right(measured, base, budget) for budget in sorted(own)],
    )


def as_right(measured: Measured, base: Measured, budget: int) -> AsRight:
    """Between which budgets a variant is as right as the base at this budget."""
    budgets = measured.budgets
    pairs = list(measured.pairs_with(base, budget, budgets).values())
    worse, better = shown_apart(pairs)
    above, below = budgets[worse - 1] if worse else None, budgets[-better] if better else None
    used = base.mean(lambda table: table.used, budget)

    def longer(at: int | None) -> float | None:
        return None if at is None or not used else measured.mean(lambda table: table.used, at) / used

    return AsRight(
        base_budget=budget,
        above=above,
        below=below,
        never=worse == len(budgets),
        longer_low=longer(above),
        longer_high=longer(below),
    )
