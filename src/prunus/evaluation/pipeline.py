"""Evaluate a model under a plan: compute the rows that the store lacks.

The plan is cut into fixed batches of chains; a chain is one draw of a problem under all budgets. A resumed run has
the same batches. The loop over them is in run.py.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, get_args

from prunus import plain_data, progress
from prunus.checkpoint.longrope import has_longrope
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.disk import as_path
from prunus.errors import PrunusError
from prunus.evaluation import backends
from prunus.evaluation.backends.served import ServedModel, serving_file
from prunus.evaluation.engine import Batches, Engine
from prunus.evaluation.grading import GRADER_VERSION, Grader
from prunus.evaluation.kept_chains import answer_kept_chains, copy_natural_ends, sources_of
from prunus.evaluation.lm_eval import evaluate_harness
from prunus.evaluation.preflight import check_plan, is_harness_task
from prunus.evaluation.provenance import (
    begin,
    computed_otherwise,
    describe_environment,
    describe_model,
    describe_use,
    open_for,
)
from prunus.evaluation.resolved_plan import ResolvedPlan, renew_groups, resolve_plan, store_problems
from prunus.evaluation.reused_rows import reuse_rows, reuse_some_rows
from prunus.evaluation.run import fill_store, missing_batches, sampled_tokens
from prunus.evaluation.tasks import Problem
from prunus.progress import Steps
from prunus.recipes import EvalPlan
from prunus.results.summary import Summary, summarise
from prunus.settings.engines import EngineOptions, options_for
from prunus.settings.serving import Serving
from prunus.statistics import least_margin
from prunus.store.rows import ProblemRow, Run, Sample
from prunus.store.store import Kept, Store, claim

EVALUATING = "evaluating"  # the label of its progress


def evaluate(
    model: str | Path,
    plan: EvalPlan,
    store: str | Path,
    *,
    device: str = "auto",
    options: EngineOptions | None = None,
    mixed: bool = False,
) -> Summary:
    """Evaluate a model under thinking budgets, add every missing row of the plan to the store, and return the run.

        plan = prunus.EvalPlan(tasks=("tiny",), budgets=(16, 64), limit=20)
        for model in ("tiny", "wanda-20"):
            run = prunus.evaluate(model, plan, "results.db")
            print(run.run_id, run.accuracy["tiny"][64])

    model: `tiny`, a folder or a hub id.
    plan: tasks, budgets, and all other settings of the evaluation.
    store: SQLite file, created if missing.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    options: how the plan's engine is started or reached (docs/engines.md).
    mixed: continue a run although something that affects results has changed, such as the device, dtype or a version;
        the run gets a verdict only if each of its problems was computed as in the base.

    The run's id is a hash of the model (weights, configuration, tokenizer, chat template), of the plan with the values
    that take effect, and of the settings by which it is served (docs/runs.md). Rows that the store already has, also
    from a run with another number of problems, budgets or draws, are not computed again; if no row is missing, the
    model is not loaded. Raises PrunusError if the model or the plan is wrong, before anything is generated, if another
    process is working on this run, or if the run was started differently (without mixed).
    """
    run_id = complete_run(model, plan, store, device, options, mixed)
    with Store(store) as opened:
        return summarise(opened, run_id)


def complete_run(
    model: str | Path, plan: EvalPlan, store: str | Path, device: str, options: EngineOptions | None, mixed: bool
) -> str:
    """Add every missing row to the store, and return the run's id; arguments as of evaluate."""
    check_plan(model, plan, options, store)
    if any(map(is_harness_task, plan.tasks)):
        return evaluate_harness(model, plan, Path(store), device)
    if plan.base_samples is not None:
        raise PrunusError("base_samples is of studies and searches, which compare models: here samples is the number")
    with serving_file(model, plan.engine, options or EngineOptions()) as reached:
        return complete(model, plan, store, device, options_for(plan.engine, reached), mixed)


def complete(
    model: str | Path, plan: EvalPlan, store: str | Path, device: str, engine: EngineOptions, mixed: bool
) -> str:
    """Add every missing row of tasks that do not need lm_eval, and return the run's id; arguments as of evaluate."""
    path = as_path(store, "store")
    resolved = PlanOfModel.of(model, plan, engine)
    work = resolved.work
    if path.exists():
        with Store(path, create=True) as opened:
            reuse_rows(opened, work)
            if not missing_batches(opened, work):
                renew_groups(opened, work.problems)
                if line := computed_otherwise(opened.run(work.run_id), plan.backend, device):
                    progress.say(line)
                return work.run_id
    with claim(path, work.run_id), resolved.loaded(device) as backend:
        progress.say(least_margin.in_words(work.groups, work.budgets, plan.samples))
        with Store(path, create=True) as opened:  # after loading: a model that cannot be loaded leaves no empty store
            checkpoint = resolved.checkpoint
            description = describe_use(describe_model(model, checkpoint), checkpoint.cache_size(work.serving), work)
            store_problems(opened, work.problems)
            environment = describe_environment(backend, work.plan)
            begin(opened, Run(work.run_id, description, work.plan, environment, planned=work.planned), mixed)
            reuse_some_rows(opened, work, environment)
            sources = sources_of(opened, work, environment)
            copy_natural_ends(opened, work, sources)
            # The missing batches are determined again, since another process may have added some before claim().
            fill(opened, work, backend, missing_batches(opened, work), sources)
    return work.run_id


@dataclass(frozen=True)
class PlanOfModel:
    """A plan resolved for a model, which is open as the plan's backend needs it.

    engine: the options with which the backend is started.
    """

    plan: EvalPlan
    checkpoint: ModelFolder | ServedModel
    engine: EngineOptions
    work: ResolvedPlan

    @classmethod
    def of(
        cls, model: str | Path, plan: EvalPlan, engine: EngineOptions, problems: list[Problem] | None = None
    ) -> Self:
        """Open the model and resolve the plan. problems: None to load those of the plan's tasks.

        With engine.tokenizer the model has no local files: `model` is its name on a server, and the options get it as
        served_model unless they have one. Raises PrunusError as open_for and resolve_plan do.
        """
        engine.check(plan.backend)
        if engine.tokenizer is None:
            checkpoint = open_for(plan.backend, resolve(model))
        else:
            checkpoint = ServedModel(str(model), engine)
            engine = replace(engine, served_model=engine.served_model or str(model))
        serving = Serving.of(plan.backend, engine, longrope=has_longrope(checkpoint.folder))
        work = resolve_plan(checkpoint, load_tokenizer(checkpoint.folder), plan, serving, problems)
        return cls(plan, checkpoint, engine, work)

    @contextmanager
    def loaded(self, device: str) -> Iterator[Engine]:
        """Within the context, the plan's engine with the model; PrunusError if chains do not fit into its context."""
        folder, vocabulary, plan = self.checkpoint.folder, len(self.work.tokenizer), self.plan
        with backends.opened(plan.backend, folder, device, vocabulary, self.engine, plan.control) as engine:
            engine.check(self.work)
            yield engine


def fill(store: Store, work: ResolvedPlan, engine: Engine, missing: Batches, sources: Sequence[str] = ()) -> None:
    """Compute and store the missing rows of some batches, and show the progress. sources: as of answer_kept_chains."""
    left = {key for batch in work.batches for key in work.keys(batch)}
    total, left = len(left), left - store.keys(work.run_id)
    started, tokens = time.monotonic(), 0
    with Grader() as grader, Steps(EVALUATING, total, "answers", done=total - len(left)) as steps:

        def show(samples: Sequence[Sample]) -> None:
            speed = tokens / max(1e-9, time.monotonic() - started)
            new = left & {(sample.problem_id, sample.budget, sample.draw) for sample in samples}
            steps.advance(len(new), note=f"{speed:,.0f} tokens/s")

        for samples in answer_kept_chains(store, work, engine, grader, missing, sources):
            tokens += sum(sample.answer_tokens for sample in samples)
            show(samples)
        for portion in fill_store(store, work, engine, grader, missing, steps.within, warns=True):
            tokens += sampled_tokens([draws for _, draws in portion.finished])
            show(portion.samples)


class Regraded(plain_data.PrintedRecord):
    """Numbers of runs and answers that were graded again.

    runs: number of runs.
    graded: number of answers.
    changed: answers with a new grade.
    kept: answers that are not graded again, because the store lacks the texts of a gated set or because another tool
        graded them.
    """

    runs: int
    graded: int
    changed: int
    kept: int


def regrade(store: str | Path) -> Regraded:
    """Grade all stored texts again and update the store; nothing is generated. Returns counts.

        print(prunus.regrade("results.db").changed)

    store: SQLite file of the results.

    Raises PrunusError if it does not exist.
    """
    runs = graded = altered = kept = 0
    with Store(Path(store)) as opened, Grader() as grader:
        problems = opened.problems()
        for run in opened.runs():
            runs += 1
            if run.imported:
                kept += len(opened.samples(run.run_id))
                continue
            for table in get_args(Kept):
                samples = opened.samples(run.run_id, texts=True, table=table)
                with_texts = [sample for sample in samples if has_texts(problems[sample.problem_id])]
                kept += len(samples) - len(with_texts)
                grades = grader.grade([(problems[sample.problem_id], sample.text) for sample in with_texts])
                changed = [
                    (sample.problem_id, sample.budget, sample.draw, grade.answer, grade.status, grade.correct)
                    for sample, grade in zip(with_texts, grades, strict=True)
                    if (sample.answer, sample.status, sample.correct) != (grade.answer, grade.status, grade.correct)
                ]
                graded += len(with_texts)
                altered += len(changed)
                opened.update_grades(run.run_id, changed, table)
            opened.update_environment(run.run_id, {"grader": GRADER_VERSION})
    return Regraded(runs=runs, graded=graded, changed=altered, kept=kept)


def has_texts(problem: ProblemRow) -> bool:
    """Whether answers can be graded again: Prunus graded them, and their texts are stored, as the set is not gated."""
    return (not problem.choices or any(problem.choices)) and not is_harness_task(problem.task)
