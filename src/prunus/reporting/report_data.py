"""The data of a report: every run with its rows, read from the store once, and the statistics computed from them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Self

from prunus.errors import PrunusError
from prunus.reporting.published import Match, matches
from prunus.reporting.render.table import RunStyle, run_styles
from prunus.reporting.render.text import esc
from prunus.results.cells import AsGood, Cell, Comparison, Entry, Part
from prunus.results.comparison import compare_runs, dense_run
from prunus.results.efforts import Efforts, Measured, checked_levels, efforts_of
from prunus.results.order import ordered
from prunus.results.summary import BudgetCell, Summary, describe
from prunus.results.vocabulary import LossGroup
from prunus.settings.cache_size import in_all
from prunus.settings.margins import MARGIN, MarginLike
from prunus.store.rows import Run, Sample, Table, tables
from prunus.store.store import Store

MODES = ("strict", "legacy")


def tasks_of(summaries: Iterable[Summary]) -> list[str]:
    """The tasks of which any run has finished problems, in order of first appearance."""
    return list(dict.fromkeys(task for summary in summaries for task in summary.tasks if summary.cells(task)))


def band_of(cell: Cell | BudgetCell) -> tuple[float, float]:
    """(low, high) of a cell's simultaneous 95 % band if it has one, else of its own interval."""
    low, high = cell.band_low, cell.band_high
    return cell.low if low is None else low, cell.high if high is None else high


@dataclass(frozen=True)
class ReportedRun:
    """One run with its rows and statistics.

    samples: its rows without texts. summary: with bands. contrast: the run's entry in the result of `compare`, None for
    the base. nbytes: of the weights that an engine loads, and the cache of a chain (ReportData.tokens); None where the
    weights are unknown.
    """

    run: Run
    style: RunStyle
    samples: Sequence[Sample]
    summary: Summary
    contrast: Entry | None
    nbytes: int | None = None

    def cells(self, task: str) -> dict[int, BudgetCell]:
        """{budget: cell of the summary} for a task, in order of budgets; empty if no problem is finished."""
        return self.summary.cells(task)

    @property
    def as_good(self) -> AsGood | None:
        """The budget at which the base is as good as this run at its largest budget; None where it is not known."""
        return self.contrast and self.contrast.as_good

    @property
    def parameters(self) -> int | None:
        """The number of parameters, zeros included; None where it is unknown."""
        return self.run.model.parameters

    def part(self, task: str) -> Part | None:
        """The differences from the base in one task; None for the base."""
        return self.contrast.tasks.get(task) if self.contrast else None

    def contrasts(self, task: str) -> dict[int, Cell]:
        """{budget: difference from the base} for a task; empty for the base."""
        part = self.part(task)
        return dict(part.budgets) if part else {}


@dataclass(frozen=True)
class ReportData:
    """All data that the sections of a report show.

    runs: the base first, then the runs that can be compared with it, in the order of `results.order`. comparison: of
    `compare`, in this order. chosen: the index in others of the variant to choose; None if none loses less than the
    margin. both_modes: the strict and the legacy run of each model of which the store has both; one of the two is among
    `runs`. matches: published figures of the same models, recipes, tasks and budgets; None if they were not requested.
    efforts: how much thinking is enough for each run; None where no run has several budgets. gold: {problem id: right
    answer}. tokens: of the longest prompt and the largest budget, for which caches are counted; None if they are not.
    """

    runs: Sequence[ReportedRun]
    comparison: Comparison
    chosen: int | None
    both_modes: Sequence[Sequence[ReportedRun]]
    matches: Sequence[Match] | None
    gold: Mapping[str, str]
    tokens: int | None = None
    efforts: Efforts | None = None

    @classmethod
    def read(
        cls,
        store: Store,
        runs: Collection[str] | None = None,
        *,
        base: str | None = None,
        margin: MarginLike = MARGIN,
        stop_margin: MarginLike = MARGIN,
        published: bool = False,
    ) -> Self:
        """The data of these runs (ids; None means all runs of the store). The rows of each run are read once.

        base: run id or its start, model name or label; by default the run of the unpruned model. Raises PrunusError if
        the base is ambiguous or missing, or no problem of any run is finished.
        """
        stored = store.runs()
        with_rows = store.runs_with_rows(stored)
        available, started = ([run for run in of if runs is None or run.run_id in runs] for of in (stored, with_rows))
        base_run = store.find_run(base) if base is not None else dense_run(started or available, store.path)
        groups, questions = store.groups(), store.questions()

        @cache
        def rows(run_id: str) -> tuple[list[Sample], dict[str, Table]]:
            samples = store.samples(run_id)
            return samples, tables(samples, groups, store.row_starts(run_id))

        by_id = {run.run_id: run for run in available}
        comparison = compare_runs(
            base_run,
            available,
            lambda run_id: (
                rows(run_id)[1] if run_id in by_id else tables(store.samples(run_id), groups, store.row_starts(run_id))
            ),
            questions,
            margin=margin,
            stop_margin=stop_margin,
            stored=with_rows,
            removed=store.removed(),
        )
        order = ordered(comparison)
        chosen = None if order.chosen is None else order.places.index(order.chosen)
        comparison = replace(comparison, others=[comparison.others[place] for place in order.places])
        shown = [base_run, *(by_id[entry.run] for entry in comparison.others)]
        measured = [Measured.read(store, run, rows(run.run_id)[0], groups, questions) for run in shown]
        reported, (sizes, tokens) = [], in_all((run.nbytes, run.model.cache) for run in shown)
        tones = [entry.verdict.group for entry in comparison.others]
        for style, run, contrast, size in zip(
            run_styles(base_run, shown[1:], tones), measured, [None, *comparison.others], sizes, strict=True
        ):
            samples, by_task = rows(run.run.run_id)
            summary = describe(run.run, by_task, bands=True)
            reported.append(ReportedRun(run.run, style, samples, summary, contrast, size))
        if not tasks_of(run.summary for run in reported):
            raise PrunusError(
                f"no problem of run {base_run.run_id} is finished in '{store.path}': run the same `prunus eval` again"
            )
        both = []
        for reported_run in reported:
            if (other := in_other_mode(reported_run.run, started)) is not None:
                samples, by_task = rows(other.run_id)
                there = ReportedRun(other, reported_run.style, samples, describe(other, by_task), None)
                both.append(sorted([reported_run, there], key=lambda run: MODES.index(run.run.plan.mode or "")))
        matched = matches([(run.style, run.run, run.summary) for run in reported]) if published else None
        gold = {problem_id: problem.gold for problem_id, problem in store.problems().items()}
        levels = efforts_of(measured, checked_levels(), base_run)
        return cls(reported, comparison, chosen, both, matched, gold, tokens, levels)

    @property
    def base(self) -> ReportedRun:
        return self.runs[0]

    @property
    def others(self) -> Sequence[ReportedRun]:
        """All runs except the base."""
        return self.runs[1:]

    @property
    def arrow(self) -> ReportedRun | None:
        """The first worse variant that the base equals with less than 3/4 of its thinking tokens; None without any."""
        for run in self.others:
            like = run.as_good
            if run.style.tone == LossGroup.IS_WORSE and like and like.estimate and like.estimate < 0.75 * like.largest:
                return run
        return None

    @property
    def in_charts(self) -> Sequence[ReportedRun]:
        """The runs whose curves can be compared: a variant that has only some of the base's problems is left out."""
        whole = self.base.summary.unfinished is None
        states = ((run, run.summary.unfinished) for run in self.others)
        return [self.base, *(run for run, state in states if not whole or state is None or state.mixed)]

    @property
    def drawn(self) -> Sequence[ReportedRun]:
        """The runs in the order in which charts draw them; the base comes last, so that its line is on top."""
        base, *others = self.in_charts
        return [*others, base]

    @property
    def margin_points(self) -> float:
        """The margin that charts draw, as a share of all problems; a relative margin is of the base's mean accuracy."""
        accuracies = [entry.primary.base_accuracy for entry in self.comparison.others]
        return self.comparison.margin.points(min(accuracies, default=0.0))

    @property
    def tasks(self) -> list[str]:
        return tasks_of(run.summary for run in self.runs)

    def with_cells(self, task: str) -> list[ReportedRun]:
        """The runs that have finished problems of a task."""
        return [run for run in self.runs if run.cells(task)]

    def has_curve(self, task: str) -> bool:
        """Whether any run has a thinking budget above 0 for a task, as logs of other tools may not."""
        return any(budget > 0 for run in self.runs for budget in run.cells(task))

    def published_on(self, task: str) -> list[Match]:
        """The published figures for a task."""
        return [match for match in self.matches or () if match.task == task]

    def css(self, task: str) -> str:
        """The classes of what is about one task."""
        return f"task task{self.tasks.index(task) + 1}"

    def title(self, text: str, task: str) -> str:
        """A heading about one task as HTML; it names the task if the report has several."""
        return text if len(self.tasks) == 1 else f"{text} on <bdi>{esc(task)}</bdi>"


def in_other_mode(run: Run, runs: Iterable[Run]) -> Run | None:
    """The first of these runs that has the same weights and the other mode; None without any."""
    for other in runs:
        same = other.model.checksum == run.model.checksum and not other.is_control
        if same and {run.plan.mode, other.plan.mode} == set(MODES):
            return other
    return None
