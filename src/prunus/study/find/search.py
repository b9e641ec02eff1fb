"""A search, opened and checked: its model, rungs, plan, rules and order of problems, before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

from prunus.engines import BACKENDS, EngineOptions
from prunus.errors import PrunusError
from prunus.evaluation.lm_eval.tasks import is_harness_task
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.margins import MarginLike
from prunus.recipes import EvalPlan
from prunus.results.anytime import Round, whole_groups
from prunus.results.ladder import ACCURACY, ENDS, Forecast, Rule, forecast
from prunus.study.cells import Cell, Model, Variant, folder_of, open_model
from prunus.study.file import Study
from prunus.study.find.certificate import declare
from prunus.study.find.ladders import Ladder, check_order, removed

MOST_CHAINS = 128  # of one look, with engines that take more at once


@dataclass(frozen=True)
class Rung:
    """One rung of a ladder. removed: share of the weights of the blocks' Linears that its recipe removes."""

    cell: Cell
    removed: float

    @property
    def variant(self) -> Variant:
        """The variant that the recipe makes."""
        return self.cell.variant


@dataclass(frozen=True)
class Search:
    """What is searched, and by which rules.

    name: of the model, as given. ladders: name and rungs of each; each is walked under `rule`, whose alpha is its part
    of alpha. order: in which problems are taken. look: rounds that are evaluated between two decisions. max_tokens: the
    search ends when the rows that it has looked at took as many; None: never.
    """

    study: Study
    model: Model
    ladders: tuple[tuple[str, tuple[Rung, ...]], ...]
    rule: Rule
    alpha: float
    order: tuple[Round, ...]
    look: int
    max_tokens: int | None

    @property
    def plan(self) -> EvalPlan:
        """The plan by which every rung is evaluated."""
        return self.study.plans[0]

    @property
    def dense(self) -> Cell:
        """The dense model under the plan."""
        return self.model.cells[0]

    @property
    def rungs(self) -> list[Rung]:
        """The rungs of all ladders."""
        return [rung for _, rungs in self.ladders for rung in rungs]

    @cached_property
    def places(self) -> dict[str, int]:
        """The index of each problem in the resolved plan, by its id."""
        return {problem.id: index for index, problem in enumerate(self.dense.resolved.problems)}

    @cached_property
    def groups(self) -> dict[str, str]:
        """The first problem of the group of each problem that is neither first nor alone."""
        return {problem.id: problem.group for problem in self.dense.resolved.problems if problem.group}

    @cached_property
    def forecasts(self) -> dict[str, Forecast]:
        """What to expect of a rung that changes little, at each endpoint."""
        return self.forecasts_at(None)

    def forecasts_at(self, dense: Mapping[str, float] | None) -> dict[str, Forecast]:
        """The same for a dense model that has this at each endpoint, on which margins relative to it depend."""
        return forecast(self.rule, len(self.order), self.plan.samples, dense=dense)

    def expected_rounds(self) -> int:
        """The rounds that such a rung takes until it is certified, at most all."""
        return min(len(self.order), ceil(min(1e9, max(one.rounds for one in self.forecasts.values()))))

    def declared(self) -> dict[str, object]:
        """What the certificate says was fixed beforehand."""
        checkpoint = self.model.checkpoint
        return declare(
            model={"name": self.model.label, "source": self.model.name, "checksum": checkpoint.checksum()},
            dense=self.dense.run_id,
            problems=ids_by_task(self.dense.resolved),
            groups=self.groups,
            seed=self.plan.seed,
            budgets=self.plan.budgets,
            samples=self.plan.samples,
            reuse=self.dense.resolved.reuse,
            ladders=[
                {
                    "name": name,
                    "rungs": [
                        {"name": rung.variant.name, "run": rung.cell.run_id, "removed": rung.removed} for rung in rungs
                    ],
                }
                for name, rungs in self.ladders
            ],
            rule=self.rule,
            alpha=self.alpha,
            look=self.look,
            max_tokens=self.max_tokens,
        )

    def identity(self) -> dict[str, object]:
        """What decides the result, as plain data by the name under which a user gave it."""
        return {
            "model": self.model.checkpoint.checksum(),
            "plan": self.dense.resolved.plan,
            "ladder": [
                [name, [[rung.variant.name, rung.variant.key] for rung in rungs]] for name, rungs in self.ladders
            ],
            "margin": self.rule.margins[ACCURACY].to_json(),
            "stop-margin": self.rule.margins[ENDS].to_json(),
            "alpha": self.alpha,
            "look": self.look,
            "max-tokens": self.max_tokens,
            **({"groups": self.groups} if self.groups else {}),
        }


def open_search(
    model: str | Path,
    plan: EvalPlan,
    ladders: Sequence[Ladder],
    *,
    margin: MarginLike,
    stop_margin: MarginLike,
    alpha: float,
    max_tokens: int | None,
    look: int | None,
    engine: EngineOptions,
    file: Path | None,
    folder: Path | None = None,
) -> Search:
    """The search that these arguments ask for. Raises PrunusError, and writes nothing, where one of them is wrong.

    file: of the ladder, if it is in one. folder: of the model, if it was looked for before. The other arguments are
    those of `find`.
    """
    rule = Rule(margin, stop_margin, alpha / len(ladders) if 0 < alpha < 1 else alpha)
    for name, value in (("max_tokens", max_tokens), ("look", look)):
        if value is not None and value < 1:
            raise PrunusError(f"{name} must be at least 1, not {value}")
    check_plan(plan, engine)
    study = Study(
        file or Path("find"), "find", (str(model),), (plan,), engine, tuple(e for one in ladders for e in one.entries),
        margin=margin, stop_margin=stop_margin,
        keep_checkpoints=engine.serve is not None,  # else a server's folder would be made anew for every look
    )  # fmt: skip
    opened = open_model(study, study.models[0], folder or folder_of(study, study.models[0]))
    source, native = opened.source, opened.cells[0].resolved.native
    if native is not None and not native.bounds:
        raise PrunusError(
            f"control native tells the model its budget ({native}) and does not end the thinking there, so no row says"
            " whether a chain ended by itself: leave control out"
        )
    for ladder in ladders:
        check_order(ladder, source)
    cells = iter(opened.cells[1:])  # one plan, so one cell for each variant, in the order of the entries
    found = tuple(
        (ladder.name, tuple(Rung(next(cells), removed(entry, source)) for entry in ladder.entries))
        for ladder in ladders
    )
    resolved = opened.cells[0].resolved
    groups = {problem.id: problem.group for problem in resolved.problems if problem.group}
    order = tuple(whole_groups(ids_by_task(resolved), plan.seed, groups))
    batch = ceil(min(plan.rows, MOST_CHAINS) / (plan.samples * max(1, len(order[0]))))
    return Search(study, opened, found, rule, alpha, order, look or batch, max_tokens)


def check_plan(plan: EvalPlan, engine: EngineOptions) -> None:
    """Raise PrunusError for a plan by which rungs cannot be evaluated."""
    if tasks := [task for task in plan.tasks if is_harness_task(task)]:
        raise PrunusError(
            f"{tasks[0]} is evaluated by lm-evaluation-harness, which takes no problem alone: name another"
        )
    if max(plan.budgets) <= 0:
        raise PrunusError("whether chains end by themselves needs a budget above 0: add one to --budgets")
    engine.check(plan.backend)
    if "serve" in BACKENDS[plan.backend].settings and engine.serve is None:
        raise PrunusError(
            f"the backend {plan.backend} needs a server for every rung, which --serve starts: --serve 'vllm serve"
            " {model} --port {port}'"
        )
    if engine.tokenizer is not None:
        raise PrunusError("tokenizer is for `prunus eval`: rungs are made from the model's folder, which has its own")


def ids_by_task(work: ResolvedPlan) -> dict[str, list[str]]:
    """The ids of the problems of each task."""
    found: dict[str, list[str]] = {}
    for problem in work.problems:
        found.setdefault(problem.task, []).append(problem.id)
    return found
