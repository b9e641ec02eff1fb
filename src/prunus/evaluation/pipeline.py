"""Evaluate a model under a plan: the loop over the batches whose rows are missing in the store.

The plan is cut into fixed batches of chains; a chain is one draw of one problem under all budgets. The rows of a batch
are generated, graded and written in one transaction. A resumed run has the same batches.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from prunus import progress
from prunus.checkpoint.model_folder import ModelFacts
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.engines import EngineOptions
from prunus.evaluation import backends, native
from prunus.evaluation.backends.chat import ChatServer
from prunus.evaluation.beforehand import check_plan
from prunus.evaluation.budget import Draw, answer_text, force_budgets
from prunus.evaluation.flow import drawn_as_completed, fill_as_completed
from prunus.evaluation.grading import GRADER_VERSION, Grader
from prunus.evaluation.lm_eval.tasks import evaluate_harness, is_harness_task
from prunus.evaluation.pace import Pace
from prunus.evaluation.profiles import decode
from prunus.evaluation.provenance import describe_model, describe_versions, open_for
from prunus.evaluation.repetition import repetition_rate
from prunus.evaluation.requests import Backend
from prunus.evaluation.resolved_plan import ResolvedPlan, check_engine, renew_groups, resolve_plan, store_problems
from prunus.evaluation.side_by_side import side_by_side
from prunus.progress import Steps
from prunus.recipes import EvalPlan
from prunus.results import token_use
from prunus.results.looping import loops
from prunus.results.rows import ProblemRow, Run, Sample
from prunus.results.store import Store, check_folder, claim


def evaluate(
    model: str | Path,
    plan: EvalPlan,
    store: str | Path,
    *,
    device: str = "auto",
    engine: EngineOptions | None = None,
) -> str:
    """Evaluate a model under thinking budgets, add every missing row of the plan to the store, and return the run's id.

    model: `tiny`, a folder (for the backend hf also a packed one) or a hub id. store: SQLite file, created if missing.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU if there is one. engine: options to start or reach the plan's backend
    (docs/engines.md).

    The id is a hash of the model's weights and of the plan with the values that take effect. The sparse kernel is one
    of them, so a packed model and its dense equal are two runs that can be compared. Rows that the store already has
    are not computed again, and if none is missing the model is not loaded. Raises PrunusError where the model or the
    plan is wrong, before anything is generated, and where another process is working on this run.
    """
    check_plan(model, plan, engine, store)
    if any(map(is_harness_task, plan.tasks)):
        return evaluate_harness(model, plan, Path(store), device)
    engine = engine or EngineOptions()
    engine.check(plan.backend)
    checkpoint, kernel, engine = opened_model(model, plan.backend, device, engine)
    folder, path = checkpoint.folder, Path(store)
    work = resolve_plan(checkpoint, load_tokenizer(folder), plan, kernel)
    if holds_all(path, work):
        with Store(path, create=True) as opened:
            renew_groups(opened, work.problems)
        return work.run_id
    vocabulary = len(work.tokenizer)
    if work.native is None:
        loading = backends.opened(plan.backend, folder, device, vocabulary, engine)
    else:
        loading = backends.opened_chat(plan.backend, folder, engine)
    with claim(path, work.run_id), loading as backend:
        check_engine(work, backend)
        if not isinstance(backend, Backend):
            native.check_server(work, backend)
        with Store(path, create=True) as opened:  # after loading: a model that cannot be loaded leaves no empty store
            description = describe_model(model, checkpoint, kernel)
            store_problems(opened, work.problems)
            versions = describe_versions(backend)
            opened.add_run(Run(work.run_id, description, work.plan, versions, planned=work.planned))
            # The missing batches are determined again, since another process may have added some before claim().
            fill(opened, work, backend, missing_batches(opened, work))
    return work.run_id


def opened_model(
    model: str | Path, backend: str, device: str, engine: EngineOptions
) -> tuple[ModelFacts, str | None, EngineOptions]:
    """The model for a backend, the kernel as open_for returns it, and the engine's options.

    With engine.tokenizer the model is only what a server tells of it, under the name `model`.
    """
    if engine.tokenizer is None:
        return *open_for(backend, resolve(model), device, engine), engine
    from prunus.evaluation.backends.served import ServedModel

    return ServedModel(str(model), engine), None, replace(engine, served_model=engine.served_model or str(model))


def holds_all(path: Path, work: ResolvedPlan) -> bool:
    """Whether the store at path has every row of the plan."""
    check_folder(path)
    if not path.exists():
        return False
    with Store(path, create=True) as opened:
        return not missing_batches(opened, work)


def fill(
    store: Store, work: ResolvedPlan, backend: Backend | ChatServer, missing: Sequence[Sequence[tuple[int, int]]]
) -> None:
    """Compute and store the missing batches, each in one transaction; or all missing rows, if the backend streams."""
    total = sum(map(len, work.batches)) * len(work.budgets)
    streams = not isinstance(backend, Backend) or backend.streams
    if not isinstance(backend, Backend):
        to_do = len(native.missing_rows(store, work, missing))
    else:
        chains = sum(map(len, [missing_chains(store, work, missing)] if streams else missing))
        to_do = chains * len(work.budgets)
    with Grader() as grader, Steps("evaluating", total, "answers", done=total - to_do) as steps:
        if not isinstance(backend, Backend) or backend.streams:
            started, sampled = time.monotonic(), 0

            def show(samples: Sequence[Sample], tokens: int) -> None:
                nonlocal sampled
                sampled += tokens
                speed = sampled / max(1e-9, time.monotonic() - started)
                steps.advance(len(samples), note=f"{speed:,.0f} tokens/s")

            stream_batches(store, work, backend, grader, missing, show, partial(warn_of_profile, work))
            return
        pace = Pace(work.largest_budget)
        for batch in missing:
            with pace.shown(backend, len(batch), len(batch) * len(work.budgets), steps.within):
                done = do_batch(store, work, backend, grader, batch)
            if batch is missing[0] and done.never_closed:
                warn_of_profile(work)
            steps.advance(len(done.samples), note=f"{done.tokens / done.seconds:,.0f} tokens/s")


def stream_batches(
    store: Store,
    work: ResolvedPlan,
    backend: Backend | ChatServer,
    grader: Grader,
    batches: Sequence[Sequence[tuple[int, int]]],
    show: Callable[[list[Sample], int], None],
    judge: Callable[[Sequence[Sequence[Draw]]], None] = lambda _: None,
) -> None:
    """Compute and store what is missing of some batches, all at once, with a backend that streams or a chat server.

    show: as of fill_as_completed. judge: as of drawn_as_completed, which it is for.
    """
    grade = partial(graded, work, grader)
    if not isinstance(backend, Backend):
        native.fill_native(store, work, backend, batches, grade, show)
        return
    finished = drawn_as_completed(work, backend, missing_chains(store, work, batches), judge)
    fill_as_completed(store.path, work.run_id, finished, grade, show)


def missing_chains(
    store: Store, work: ResolvedPlan, batches: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[int, int]]:
    """The chains of some batches of which the store lacks a row, in order."""
    stored = store.keys(work.run_id)
    return [chain for batch in batches for chain in batch if not work.keys([chain]) <= stored]


def missing_batches(store: Store, work: ResolvedPlan) -> list[list[tuple[int, int]]]:
    """The batches of which the store lacks a row, in order."""
    stored = store.keys(work.run_id)
    return [batch for batch in work.batches if not work.keys(batch) <= stored]


class Done(NamedTuple):
    """The rows of one batch, the number of tokens sampled for them, and the seconds that it took.

    never_closed: whether the profile seems not to fit the model (see `never_closed`).
    """

    samples: list[Sample]
    tokens: int
    seconds: float
    never_closed: bool


def do_batch(
    store: Store, work: ResolvedPlan, backend: Backend, grader: Grader, batch: Sequence[tuple[int, int]]
) -> Done:
    """Compute the rows of a batch and store them in one transaction."""
    done = answer_batch(work, backend, grader, batch)
    store.add_samples(work.run_id, done.samples)
    return done


def answer_batch(work: ResolvedPlan, backend: Backend, grader: Grader, batch: Sequence[tuple[int, int]]) -> Done:
    """Generate and grade the rows of a batch, without storing them."""
    started = time.monotonic()
    draws = run_batch(work, backend, batch)
    samples = graded(work, grader, batch, draws)
    seconds = max(1e-9, time.monotonic() - started)
    return Done(samples, sampled_tokens(draws), seconds, never_closed(work, draws))


def warn_of_profile(work: ResolvedPlan, draws: Sequence[Sequence[Draw]] | None = None) -> None:
    """Say that the profile does not seem to fit the model, if these draws show it, or None are given."""
    if draws is None or never_closed(work, draws):
        progress.say(
            f"warning: the model ends its turn without ending its thinking ({work.profile.think_stops[0]}); if it is"
            " not a thinking model, use --profile plain"
        )


def never_closed(work: ResolvedPlan, draws: Sequence[Sequence[Draw]]) -> bool:
    """Whether no chain ended its thinking with the profile's marker, and most ended their turn in it."""
    if work.profile.answer_in_chain:
        return False
    last = [of_chain[-1] for of_chain in draws]
    turns = sum(draw.ended_turn for draw in last)
    return turns >= len(last) / 2 and all(draw.ended_turn or draw.ended == "forced" for draw in last)


def run_batch(work: ResolvedPlan, backend: Backend, batch: Sequence[tuple[int, int]]) -> list[list[Draw]]:
    """Generate a batch: for each of its chains the draws, one per budget."""
    chains = [work.chain(index, draw) for index, draw in batch]

    def draws_of(part: Sequence[int]) -> list[list[Draw]]:
        return force_budgets(backend, [chains[place] for place in part], work.budgets, work.rules, work.reuse)

    return side_by_side(backend, [len(chain.prompt) for chain in chains], draws_of)


def graded(
    work: ResolvedPlan, grader: Grader, batch: Sequence[tuple[int, int]], draws: Sequence[Sequence[Draw]]
) -> list[Sample]:
    """Graded rows for the store. The texts of private problems are left out, since models quote the question."""
    rows = [(index, number, draw) for (index, number), of_chain in zip(batch, draws, strict=True) for draw in of_chain]
    texts = [answer_text(work.profile, work.tokenizer, draw) for _, _, draw in rows]
    grades = grader.grade([(work.problems[index], text) for (index, _, _), text in zip(rows, texts, strict=True)])
    samples = []
    for (index, number, draw), text, grade in zip(rows, texts, grades, strict=True):
        problem, thinking = work.problems[index], decode(work.tokenizer, draw.thinking)
        repetition = repetition_rate(text if text == thinking else f"{thinking}\n{text}")
        samples.append(
            Sample(
                task=problem.task,
                problem_id=problem.id,
                budget=draw.budget,
                draw=number,
                thinking_tokens=draw.thinking_tokens,
                answer_tokens=len(draw.answer),
                forced_tokens=draw.forced_tokens,
                ended=draw.ended,
                answer_truncated=draw.answer_truncated,
                reopened_think=draw.reopened_think,
                answer_cap=draw.answer_cap,
                answer=grade.answer,
                status=grade.status,
                correct=grade.correct,
                thinking="" if problem.private else thinking,
                text="" if problem.private else text,
                logprob=draw.logprob,
                self_certainty=draw.self_certainty,
                repetition=repetition,
                loops=loops(thinking, text, repetition),
            )
        )
    return samples


def sampled_tokens(draws: Sequence[Sequence[Draw]]) -> int:
    """Number of tokens generated: for each chain its longest thinking and every distinct answer."""
    chains = [
        [(draw.budget, draw.thinking_tokens, len(draw.answer), draw.ended) for draw in of_chain] for of_chain in draws
    ]
    return sum(token_use.sampled_tokens(chains))


def regrade(store: str | Path) -> dict[str, int]:
    """Grade all stored texts again and update the store; nothing is generated.

    Returns counts: runs, graded (answers), changed (answers with a new grade) and kept (answers that are not graded
    again, because the store lacks the texts of a gated set or because another tool graded them). Raises PrunusError if
    the store does not exist.
    """
    counts = {"runs": 0, "graded": 0, "changed": 0, "kept": 0}
    with Store(Path(store)) as opened, Grader() as grader:
        problems = opened.problems()
        for run in opened.runs():
            counts["runs"] += 1
            samples = opened.samples(run.run_id, texts=not run.imported)
            if run.imported:
                counts["kept"] += len(samples)
                continue
            with_texts = [sample for sample in samples if not _is_kept(problems[sample.problem_id])]
            counts["kept"] += len(samples) - len(with_texts)
            grades = grader.grade([(problems[sample.problem_id], sample.text) for sample in with_texts])
            changed = [
                (sample.problem_id, sample.budget, sample.draw, grade.answer, grade.status, grade.correct)
                for sample, grade in zip(with_texts, grades, strict=True)
                if (sample.answer, sample.status, sample.correct) != (grade.answer, grade.status, grade.correct)
            ]
            counts["graded"] += len(with_texts)
            counts["changed"] += len(changed)
            opened.update_grades(run.run_id, changed)
            opened.update_versions(run.run_id, {"grader": GRADER_VERSION})
    return counts


def _is_kept(problem: ProblemRow) -> bool:
    return (bool(problem.choices) and not any(problem.choices)) or is_harness_task(problem.task)
