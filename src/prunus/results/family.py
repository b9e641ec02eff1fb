"""Which comparisons of a store are corrected together: all that could be shown in place of those that are.

Who sees the results of many runs and names one of them has made all of these comparisons. So it does not matter which
runs are named: every run that can be compared with the base counts, also one that was removed after its rows could be
seen. Other seeds, budgets, batches and servings of a model are other draws of the same comparison, of which the best
could be shown: each counts as one more. Runs that differ in the limit, the problems or the number of draws alone count
as one, since one game of bets goes on over them (`growth`). Every further run of the base model could take the base's
place, so it counts as another look at all of them; so does every number of draws that the base had before the variants,
and a copy of the base that was saved again.
"""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

from prunus.plain_data import content_hash
from prunus.results.cells import Looks
from prunus.statistics.paired import holm
from prunus.store.rows import Removed, Run

WITHIN_HYPOTHESIS = {"limit", "samples", "problems"}  # settings of a plan in which the runs of one game differ


@dataclass(frozen=True)
class Family:
    """The comparisons that are corrected together.

    hypotheses: of each run, the comparison that it counts as. unseen: comparisons that cannot be computed, since their
    runs were removed. bases: runs of the base model that could be the base.
    """

    hypotheses: Sequence[Hashable]
    unseen: int = 0
    bases: int = 1

    @property
    def size(self) -> int:
        """The number of comparisons."""
        return (len(set(self.hypotheses)) + self.unseen) * self.bases

    def looks(self, shown: int) -> Looks:
        """The family in numbers. shown: how many of the first runs are shown."""
        return Looks(
            comparisons=self.size,
            others=len(set(self.hypotheses)) - len(set(self.hypotheses[:shown])),
            removed=self.unseen,
            bases=self.bases,
        )

    def adjusted(self, p: Sequence[float], of: Sequence[tuple[int, Hashable]]) -> list[float]:
        """The p-values of tests of one kind, corrected over all of them (Holm).

        of: the place of the run of each test in `hypotheses`, and what of the run it tests. Tests of the same quantity
        in the same game of bets are one hypothesis, whose p is the smallest of theirs, as the game guarantees.
        """
        keys = [(self.hypotheses[run], what) for run, what in of]
        best: dict[tuple[Hashable, Hashable], float] = {}
        for key, value in zip(keys, p, strict=True):
            best[key] = min(value, best.get(key, 1.0))
        each = max(Counter(hypothesis for hypothesis, _ in best).values(), default=0) if self.unseen else 0
        unseen = [1.0] * (self.unseen * each)

        def corrected(values: dict[tuple[Hashable, Hashable], float]) -> dict[tuple[Hashable, Hashable], float]:
            return dict(zip(values, holm([*values.values(), *unseen]), strict=False))

        together = corrected(best)
        p_values = [
            together[key] if value == best[key] else corrected(best | {key: value})[key]
            for key, value in zip(keys, p, strict=True)
        ]
        return [min(1.0, self.bases * float(value)) for value in p_values]


def hypothesis_of(run: Run) -> str:
    """Hash of the hypothesis that a run tests: of the model, with what is served of it and how, and of the plan."""
    plan = {name: value for name, value in run.plan.data.items() if name not in WITHIN_HYPOTHESIS}
    return content_hash([run.model.weights, run.model.about, plan])


def same_model(run: Run, other: Run) -> bool:
    """Whether two runs are of the same model: of the same weights, or as large and made by the same steps.

    The latter finds a model that was saved again in another dtype or format, which changes its checksum.
    """
    model, other_model = run.model, other.model
    if model.weights == other_model.weights:
        return True
    size = model.parameters
    return (
        size is not None
        and size == other_model.parameters
        and run.model.manifest.history == other.model.manifest.history
    )


@dataclass(frozen=True)
class OtherComparisons:
    """Comparisons that belong to a family besides those that are shown.

    hidden: their runs. unseen, bases: as Family has them.
    """

    hidden: list[Run]
    unseen: int
    bases: int


def other_comparisons(
    base: Run,
    shown: Sequence[Run],
    stored: Iterable[Run],
    removed: Iterable[Removed],
    alike: Callable[[Run, Run], bool],
) -> OtherComparisons:
    """Comparisons that are corrected together with those that are shown.

    stored, removed: all runs of the store that have rows, and those that had, in their order. alike: whether the plans
    of two runs allow to compare them, apart from WITHIN_HYPOTHESIS. Of the runs of a game that are not shown, the last
    counts. Runs of the base model count as variants only where they are shown.
    """

    def belongs(run: Run) -> bool:
        return not run.is_control and any(alike(other, run) for other in (base, *shown))

    def of_base(run: Run) -> bool:
        return same_model(run, base)

    gone = [lost.run for lost in removed if lost.complete and belongs(lost.run)]
    near = [run for run in stored if belongs(run)]
    hypotheses = {hypothesis_of(run) for run in shown}
    hidden = {hypothesis_of(run): run for run in near if hypothesis_of(run) not in hypotheses and not of_base(run)}
    present = [*shown, *hidden.values()]
    bases = {run.run_id: run for run in (base, *near) if of_base(run) and alike(base, run)}
    return OtherComparisons(
        hidden=list(hidden.values()),
        unseen=_looks(present, [run for run in gone if not of_base(run)])
        - len({hypothesis_of(run) for run in present}),
        bases=_looks(bases.values(), [run for run in gone if of_base(run) and alike(base, run)])
        + _more_draws(bases.values(), present),
    )


def _more_draws(bases: Collection[Run], present: Collection[Run]) -> int:
    """Number of further runs of the base before the last variant that differ in the number of draws alone.

    Whoever has seen the variant could choose between two such runs; `growth` counts those that came later.
    """
    last = max((run.stages[0].place for run in present if run.stages), default=inf)
    before = {
        (hypothesis_of(run), stage.samples)
        for run in bases
        for stage in run.stages
        if stage.place < last and stage.complete != 0 and (stage.run_id == run.run_id or stage.removed is not None)
    }
    return len(before) - len({hypothesis for hypothesis, _ in before})


def _looks(present: Collection[Run], removed: Collection[Run]) -> int:
    """How many comparisons these runs made: one for each game, and one more each time that a run began anew."""
    drawn = Counter(run.run_id for run in removed) + Counter({run.run_id for run in present})
    games: dict[str, int] = {}
    for run in (*present, *removed):
        games[hypothesis_of(run)] = max(games.get(hypothesis_of(run), 0), drawn[run.run_id])
    return sum(games.values())
