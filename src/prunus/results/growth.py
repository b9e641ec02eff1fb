"""How the size of a comparison grew after rows could be seen, and which runs are unfinished or mixed.

With an engine that streams, the chains that end first are the short ones, so the finished problems of a run that was
stopped, or is looked at, are not a random sample of its problems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, product
from math import inf

from prunus.results.cells import InterimAnalysis, Unfinished
from prunus.store.rows import Run, Stage, Table
from prunus.store.stages import goes_on, limit_in_words
from prunus.store.starts import computed_apart


@dataclass(frozen=True)
class Growth:
    """The comparisons of two models that could be seen, in their order, the present last.

    series: number, from 1, of the series of the present comparison; within a series only the limit grew. limits: of
    that series. sampled: the tasks of which they took samples, each a part of the next. edited: whether problems, or
    their groups, changed otherwise than by a limit, as those of a file do.
    """

    looks: tuple[InterimAnalysis, ...]
    series: int
    limits: tuple[float, ...]
    sampled: tuple[str, ...] = ()
    edited: bool = False

    @property
    def share(self) -> float:
        """The share of alpha that this series may spend: all in the first, and half in all later ones together."""
        return 1.0 if self.series == 1 else 1 / (self.series * (self.series + 1))

    def __str__(self) -> str:
        draws, limits = [_draws(look) for look in self.looks], [limit_in_words(look.limit) for look in self.looks]
        if len(set(draws)) == len(set(limits)) == 1:
            what, steps = "problems or their groups changed", []
        elif len(set(draws)) == 1:
            what, steps = "limit grew" if self.series == 1 else "limit changed", limits
        elif len(set(limits)) == 1:
            what, steps = "number of draws changed", draws
        else:
            what, steps = "size changed", [f"{limit} x {count}" for limit, count in zip(limits, draws, strict=True)]
        if len(steps) > 6:
            steps = [*steps[:2], f"... ({len(steps) - 4} more)", *steps[-2:]]
        spent = (
            "" if self.series == 1 else f"; p is multiplied by {round(1 / self.share)}, since there were others before"
        )
        how = f" from {' to '.join(steps)}" if steps else ""
        other = ", with other problems," if self.edited and steps else ""
        return (
            f"its {what}{how}{other} after its rows could be seen, so the bounds hold at any time{spent};"
            " this takes the problems' order in the plan as good as random; scaling is not judged"
        )


def _draws(look: InterimAnalysis) -> str:
    return str(look.samples) if look.base_samples is None else f"{look.samples} (base {look.base_samples})"


def growth(base: Run, other: Run) -> Growth | None:
    """How the size of the comparison of two runs changed; None if it is the first that could be seen.

    A comparison can be seen once both models have a run, unless nothing of one of them was complete when its next run
    began. Of each model its latest run counts.
    """
    end = max((run.stages[-1].place for run in (base, other) if run.stages), default=0)
    events: list[tuple[int, str, Stage]] = []
    for side, run in (("base", base), ("other", other)):
        events += [(stage.place, side, stage) for stage in run.stages if stage.complete != 0 and stage.place < end]
    latest: dict[str, Stage] = {}
    looks: list[tuple[Stage, Stage]] = []
    for _, together in groupby(sorted(events, key=lambda event: event[0]), key=lambda event: event[0]):
        latest |= {side: stage for _, side, stage in together}  # of a change of groups those of both
        if len(latest) == 2:
            looks.append((latest["base"], latest["other"]))
    if base.stages and other.stages:
        looks.append((base.stages[-1], other.stages[-1]))
    sizes = [(min(stage.limit or inf for stage in look), tuple(stage.samples for stage in look)) for look in looks]
    edited = {place for place in range(1, len(looks)) if not all(map(goes_on, looks[place - 1], looks[place]))}
    kept = [place for place, size in enumerate(sizes) if place in {0, *edited} or size != sizes[place - 1]]
    if len(kept) < 2:
        return None
    series, limits, sampled = 1, [sizes[0][0]], sampled_in(looks[kept[0]])
    for place, after in pairwise(kept):
        (limit, draws), (next_limit, next_draws) = sizes[place], sizes[after]
        now = sampled_in(looks[after])
        others = next_limit < inf and now != sampled  # a sample is no part of the first problems of a set
        if next_draws != draws or next_limit < limit or others or after in edited:
            series, limits, sampled = series + 1, [], now
        limits.append(next_limit)
    seen = [
        InterimAnalysis(
            limit=None if sizes[place][0] == inf else int(sizes[place][0]),
            samples=sizes[place][1][1],
            base_samples=sizes[place][1][0] if len(set(sizes[place][1])) > 1 else None,
            runs=[stage.run_id for stage in looks[place]],
            started=[stage.started for stage in looks[place]],
            complete=[stage.complete for stage in looks[place]],
        )
        for place in kept
    ]
    return Growth(tuple(seen), series, tuple(limits), tuple(sorted(sampled)), bool(edited))


def sampled_in(look: tuple[Stage, Stage]) -> set[str]:
    """The tasks of which a comparison took samples."""
    return {task for stage in look for task in stage.sampled}


def unfinished(run: Run, tables: Mapping[str, Table]) -> Unfinished | None:
    """How much of its plan an unfinished run has, which gets no verdict; None for any other run.

    A run with problems whose own draws were computed in several ways (`mixed`) gets none either. A run of `find` counts
    as finished, since it takes problems in a fixed order, and so does one whose plan does not tell its problems.
    """
    own = (
        {pair for draw in table.draws for pair in product(table.started(problem, draw), table.started(problem, draw))}
        for table in tables.values()
        for problem in table.problems
    )
    mixed = computed_apart(run, run, own)
    if mixed is None and (run.planned is None or run.adaptive is not None):
        return None
    draws = range(run.plan.samples)
    complete = 0
    for table in tables.values():
        budgets = run.plan.budgets or table.budgets
        if set(budgets) <= set(table.budgets) and set(draws) <= set(table.draws):
            complete += len(table.select(table.problems, budgets, draws).complete())
    count = complete if run.planned is None else run.planned.count
    if mixed is not None:
        return Unfinished(complete=complete, planned=count, mixed=True)
    return None if complete >= count else Unfinished(complete=complete, planned=count)


def of_both(base: Run, other: Run) -> dict[str, Sequence[str]]:
    """{task: problems that both plans have, in the other run's order}, of the tasks that both have."""
    base_order, other_order = (run.planned.order if run.planned else {} for run in (base, other))
    shared = {task: set(base_order[task]) for task in other_order if task in base_order}
    return {task: [problem for problem in other_order[task] if problem in both] for task, both in shared.items()}
