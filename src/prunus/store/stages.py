"""Stages of a model's evaluation: runs whose limit or number of draws changed after rows could be seen.

A run with another limit has the same problems in the same order. A user who evaluates 50 problems, compares, then
evaluates 60, and so on until there is a verdict, lets rows decide the number of problems. The store knows the runs of
each model, also removed ones, in the order in which they got their last rows, so the comparisons that could be seen
before the present evaluation are known, too.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from prunus.plain_data import content_hash
from prunus.questions import sampling_key
from prunus.store.rows import PlannedProblems, Removed, Run, Stage

# Settings of a plan that may differ between the stages of a run.
SIZES = {"limit", "limit_of", "samples", "problems", "batch_size", "seed"}


def limit_in_words(limit: int | None) -> str:
    return "all" if limit is None else str(limit)


def series_of(run: Run) -> str:
    """A key that is equal for runs of the same weights and serving under plans that differ only in SIZES."""
    model = [run.model.weights, run.model.serving.to_json()]
    return content_hash([model, {name: value for name, value in run.plan.data.items() if name not in SIZES}])


def stages_of(
    runs: Sequence[Run],
    started: Mapping[str, tuple[str, Mapping[str, int]]],
    with_rows: Container[str],
    removed: Sequence[Removed],
    orders: Mapping[str, PlannedProblems],
    regrouped: Sequence[tuple[str, Container[str]]],
) -> dict[str, tuple[Stage, ...]]:
    """{run id: stages that lead to the run, which is the last of them}. runs: all of a store, oldest first.

    started: by run id, when its last evaluation began that lacked rows, and the number of complete problems of each of
    its other stages then. with_rows: ids of runs that have rows now. orders: the problems of plans, by their hash.
    regrouped: when groups of problems changed, and the runs that had rows of them.
    """
    times = {run_id: at for run_id, (at, _) in started.items()}
    there: list[tuple[Run, Removed | None]] = [*((lost.run, lost) for lost in removed), *((run, None) for run in runs)]

    def started_at(run: Run, gone: Removed | None) -> str:
        return (gone.started or "") if gone else times[run.run_id]

    there.sort(key=lambda entry: started_at(*entry))
    began = [started_at(*entry) for entry in there]
    groups: dict[str, list[tuple[int, Run, Removed | None]]] = {}
    for number, (run, gone) in enumerate(there):
        place = number + sum(at < began[number] for at, _ in regrouped)
        groups.setdefault(series_of(run), []).append((place, run, gone))
    changes = [(number + sum(at <= when for at in began), when, who) for number, (when, who) in enumerate(regrouped)]
    by_run: dict[str, tuple[Stage, ...]] = {}
    for group in groups.values():
        stages, waiting = list[Stage](), list(changes)
        for (place, run, gone), after in zip(group, [*group[1:], None], strict=True):
            while waiting and waiting[0][0] < place:
                _change_groups(stages, by_run, *waiting.pop(0))
            size, problems = (run.plan.limit, run.plan.samples), run.plan.problems
            sampled = run.plan.limit_of.tasks if run.plan.limit_of else ()
            planned = orders.get(problems or "")
            of = {"sampled": sampled, "problems": problems, "order": planned and planned.order}
            of["groups"] = stages[-1].groups if stages else 0
            if gone:
                stages.append(Stage(run.run_id, place, *size, gone.started, gone.complete, gone.at, **of))
                continue
            earlier = started.get(after[1].run_id) if after and not after[2] else None
            complete = earlier[1].get(run.run_id) if earlier else None
            if complete == 0 and run.run_id in with_rows:  # it was evaluated at the same time as the next one
                complete = None
            stages.append(Stage(run.run_id, place, *size, times.get(run.run_id), complete, **of))
            by_run[run.run_id] = tuple(stages)
        for change in waiting:
            _change_groups(stages, by_run, *change)
    return by_run


def _change_groups(
    stages: list[Stage], by_run: dict[str, tuple[Stage, ...]], place: int, when: str, who: Container[str]
) -> None:
    """Add the stages that begin when groups of problems change, to the stages of a series and to those of each run.

    place, when: of the change. who: the runs that had rows of these problems.
    """
    touched = [stage for stage in stages if stage.run_id in who]
    if not touched:
        return

    def restarted(stage: Stage, groups: int) -> Stage:
        return replace(stage, place=place, started=when, complete=None, removed=None, groups=groups + 1)

    stages.append(restarted(touched[-1], stages[-1].groups))
    for run_id in {stage.run_id for stage in touched} & by_run.keys():
        own = by_run[run_id]
        by_run[run_id] = (*own, restarted(own[-1], own[-1].groups))


def goes_on(before: Stage, after: Stage) -> bool:
    """Whether one of two stages has the first problems of the other, in the same groups, as far as the store knows.

    If not, a file of problems was changed between them. A task of which only one of two limits took a sample is
    not compared; `sampled` records that.
    """
    if before.groups != after.groups:
        return False
    if before.problems == after.problems or None in (before.problems, after.problems):
        return True
    if before.limit == after.limit or before.order is None or after.order is None:
        return before.limit != after.limit
    for task, names in before.order.items():
        drawn = {task in stage.sampled for stage in (before, after)}
        if len(drawn) == 2 and None not in (before.limit, after.limit):
            continue
        sides = list(names), list(after.order.get(task, ()))
        if True in drawn:  # a plan without a limit has the set's own order
            sides = [sorted(side, key=sampling_key) for side in sides]
        few, many = sorted(sides, key=len)
        if few != many[: len(few)]:
            return False
    return True


def removed_before(run: Run) -> list[str]:
    """A sentence for each removed run of the same model, whose plan differed in SIZES at most."""
    return [
        f"an earlier run of {run.model.name} ({limit_in_words(stage.limit)} problems x {stage.samples}, of which"
        f" {stage.complete} were complete) was removed from the store at {stage.removed}, after its rows could be seen"
        for stage in run.stages
        if stage.removed is not None and stage.complete != 0
    ]
