"""From a model and a plan to rows of a store: the loop over the batches that are still missing.

The plan is cut into fixed batches of chains (a chain is one draw of one problem under all budgets). A batch is thought,
answered, graded and written in one transaction, or not at all; a run that was stopped meets the very same batches.
"""

import hashlib
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus.checkpoint.files import Checkpoint, is_packed
from prunus.checkpoint.packed_folder import PackedCheckpoint
from prunus.checkpoint.source import load_tokenizer, resolve
from prunus.engines import EngineOptions
from prunus.errors import PrunusError
from prunus.evaluation import backends
from prunus.evaluation.budget import Backend, Chain, Draw, Rules, Sampling, force_budgets
from prunus.evaluation.grading import GRADER_VERSION, Grader
from prunus.evaluation.harness import ask, harness_plan, is_harness_task, name_of
from prunus.evaluation.profiles import Markers, Profile, decode, encode_markers, encode_prompt, resolve_profile
from prunus.evaluation.tasks import Problem, load_task, prompt_text
from prunus.progress import Steps
from prunus.recipes import EvalPlan, content_hash
from prunus.results.repetition import repetition_rate
from prunus.results.store import ProblemRow, Run, Sample, Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Work:
    """A plan made concrete for one model: what is asked of it, and how.

    prompts: ids of each problem including thinking_start. caps: answer tokens of each problem. plan: as stored.
    """

    run_id: str
    plan: dict[str, Any]
    profile: Profile
    tokenizer: "PreTrainedTokenizerBase"
    problems: list[Problem]
    prompts: list[list[int]]
    caps: list[int]
    rules: Rules
    budgets: tuple[int, ...]
    reuse: bool
    batches: list[list[tuple[int, int]]]  # (index of the problem, draw)

    def keys(self, batch: Sequence[tuple[int, int]]) -> set[tuple[str, int, int]]:
        """Store keys of the rows that a batch makes."""
        return {(self.problems[index].id, budget, draw) for index, draw in batch for budget in self.budgets}


def evaluate(
    model: str | Path,
    plan: EvalPlan,
    store: str | Path,
    *,
    device: str = "auto",
    engine: EngineOptions | None = None,
    measure_seconds: bool = False,
) -> str:
    """Accuracy of a model under thinking budgets: every missing row of the plan is added to the store.

    model: `tiny`, a folder (also a packed one, for hf) or a hub id. store: SQLite file, made where missing. device:
    `auto` is cuda if there is one.
    engine: how the plan's backend is started or reached (docs/engines.md). measure_seconds: also measure, once for the
    run and this machine, how long a token takes one chain alone, so that the report can tell budgets in seconds.
    Returns the run's id, a hash of the model's weights and the plan with the values that take effect; the sparse kernel
    is one of them, so that a packed model and the same dense are two runs of a store, and compared. What the store
    holds already is not done again; without missing rows the model is not even loaded. PrunusError if another process
    is at this run.
    """
    if any(map(is_harness_task, plan.tasks)):
        return evaluate_harness(model, plan, Path(store), device)
    if measure_seconds and plan.backend != "hf":
        raise PrunusError(
            f"seconds are measured with the backend hf only, not {plan.backend}; leave --measure-seconds out"
        )
    folder = resolve(model)
    checkpoint, kernel = open_for(plan.backend, folder, device, engine or EngineOptions())
    work = make_work(checkpoint, load_tokenizer(folder), plan, kernel)
    with Store(Path(store), create=True) as opened:
        untimed = measure_seconds and is_untimed(opened, work, device)
        if missing_batches(opened, work) or untimed:
            with (
                opened.claim(work.run_id),
                backends.opened(plan.backend, folder, device, len(work.tokenizer), engine) as backend,
            ):
                check_engine(work, backend)
                description = describe_model(model, checkpoint, kernel)
                opened.add_problems(problem_row(problem) for problem in work.problems)
                opened.add_run(Run(work.run_id, description, work.plan, describe_versions(backend)))
                # Asked again: another process may have stored some before the run was ours.
                fill(opened, work, backend, missing_batches(opened, work))
                if untimed:
                    measure_run(opened, work, backend, checkpoint)
    return work.run_id


def is_untimed(store: Store, work: Work, device: str) -> bool:
    """Whether the speed of the run's model on this machine is not known."""
    from prunus.evaluation.backends.loading import pick
    from prunus.evaluation.seconds import machine_of

    return machine_of(pick(device)) not in store.timings(work.run_id)


def measure_run(store: Store, work: Work, backend: Backend, checkpoint: Checkpoint) -> None:
    """Measure the speed of a run's model, and store it."""
    store.set_timing(work.run_id, *speed_here(work, backend, checkpoint))


def speed_here(work: Work, backend: Backend, checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """This machine, and how fast the run's model is on it."""
    from prunus.evaluation.seconds import machine_of, measure

    prompts: dict[str, list[int]] = {}
    for problem, ids in zip(work.problems, work.prompts, strict=True):
        prompts.setdefault(problem.task, []).append(len(ids))
    markers, context = work.rules.markers, int(checkpoint.config.max_position_embeddings)
    longest = max(map(len, work.prompts)) + work.budgets[-1] + markers.longest + max(work.caps)
    speed = measure(backend, prompts, len(markers.start), longest, context)
    return machine_of(str(getattr(backend, "description", {}).get("device"))), speed


def evaluate_harness(model: str | Path, plan: EvalPlan, store: Path, device: str) -> str:
    """As evaluate, for a task of lm-evaluation-harness, which is done at once and stored in one transaction."""
    stored, folder = harness_plan(plan), resolve(model)
    checkpoint, kernel = open_for("hf", folder, device, EngineOptions())
    if kernel is not None:
        stored = stored | {"kernel": kernel}
    run_id = content_hash({"model": checkpoint.checksum(), "plan": stored})
    with Store(store, create=True) as opened:
        if not opened.keys(run_id):
            with opened.claim(run_id), backends.opened("hf", folder, device, len(load_tokenizer(folder))) as backend:
                loaded = getattr(backend, "model")  # noqa: B009  of the hf backend alone
                problems, samples = ask(loaded, load_tokenizer(folder), name_of(plan), stored)
                versions = describe_versions(backend) | {"grader": f"lm_eval-{stored['lm_eval']}"}
                opened.add_problems(problems)
                opened.add_run(Run(run_id, describe_model(model, checkpoint, kernel), stored, versions))
                opened.add_samples(run_id, samples)
    return run_id


def open_for(backend: str, folder: Path, device: str, engine: EngineOptions) -> tuple[Checkpoint, str | None]:
    """The checkpoint of a folder, and the kernel that its weights will run on: `sparse`, or None for torch's own.

    PrunusError where a packed folder is given to a backend that cannot read it.
    """
    if backend != "hf" or not is_packed(folder):
        return Checkpoint(folder), None
    from prunus.evaluation.backends.loading import runs_sparse

    return PackedCheckpoint(folder), "sparse" if runs_sparse(folder, device, engine.sparse) else None


def fill(store: Store, work: Work, backend: Backend, missing: Sequence[Sequence[tuple[int, int]]]) -> None:
    """Do the missing batches, each in one transaction."""
    total = sum(map(len, work.batches)) * len(work.budgets)
    to_do = sum(map(len, missing)) * len(work.budgets)
    with Grader() as grader, Steps("evaluating", total, "answers", done=total - to_do) as steps:
        for batch in missing:
            done = do_batch(store, work, backend, grader, batch)
            steps.advance(len(done.samples), note=f"{done.tokens / done.seconds:,.0f} tokens/s")


def missing_batches(store: Store, work: Work) -> list[list[tuple[int, int]]]:
    """The batches of which the store lacks a row, in order."""
    stored = store.keys(work.run_id)
    return [batch for batch in work.batches if not work.keys(batch) <= stored]


class Done(NamedTuple):
    """What came of one batch. tokens: how many were sampled, in so many seconds."""

    samples: list[Sample]
    tokens: int
    seconds: float


def do_batch(store: Store, work: Work, backend: Backend, grader: Grader, batch: Sequence[tuple[int, int]]) -> Done:
    """Think, answer, grade, and store the rows in one transaction."""
    done = answer_batch(work, backend, grader, batch)
    store.add_samples(work.run_id, done.samples)
    return done


def answer_batch(work: Work, backend: Backend, grader: Grader, batch: Sequence[tuple[int, int]]) -> Done:
    """Think, answer and grade: the rows of a batch, which no store has yet."""
    started = time.monotonic()
    draws = run_batch(work, backend, batch)
    samples = graded(work, grader, batch, draws)
    return Done(samples, sampled_tokens(draws), max(1e-9, time.monotonic() - started))


def run_batch(work: Work, backend: Backend, batch: Sequence[tuple[int, int]]) -> list[list[Draw]]:
    """Think and answer: for each chain of the batch its draws, one per budget."""
    chains = [
        Chain(work.prompts[index], (work.problems[index].task, work.problems[index].id, draw), work.caps[index])
        for index, draw in batch
    ]
    return force_budgets(backend, chains, work.budgets, work.rules, work.reuse)


def graded(
    work: Work, grader: Grader, batch: Sequence[tuple[int, int]], draws: Sequence[Sequence[Draw]]
) -> list[Sample]:
    """Rows for the store. The texts of private problems are graded, but not kept: models quote the question."""
    rows = [(index, number, draw) for (index, number), of_chain in zip(batch, draws, strict=True) for draw in of_chain]
    texts = [answer_text(work.profile, work.tokenizer, draw) for _, _, draw in rows]
    grades = grader.grade([(work.problems[index], text) for (index, _, _), text in zip(rows, texts, strict=True)])
    samples = []
    for (index, number, draw), text, grade in zip(rows, texts, grades, strict=True):
        problem, thinking = work.problems[index], decode(work.tokenizer, draw.thinking)
        samples.append(
            Sample(
                task=problem.task,
                problem_id=problem.id,
                budget=draw.budget,
                draw=number,
                thinking_tokens=len(draw.thinking),
                answer_tokens=len(draw.answer),
                forced_tokens=draw.forced_tokens,
                ended=draw.ended,
                answer_truncated=draw.answer_truncated,
                reopened_think=draw.reopened_think,
                answer=grade.answer,
                status=grade.status,
                correct=grade.correct,
                thinking="" if problem.private else thinking,
                text="" if problem.private else text,
                logprob=draw.logprob,
                self_certainty=draw.self_certainty,
                repetition=repetition_rate(f"{thinking}\n{text}"),
            )
        )
    return samples


def answer_text(profile: Profile, tokenizer: "PreTrainedTokenizerBase", draw: Draw) -> str:
    """The answer phase as graded: what the model wrote, after the words that a forced closing put in its mouth."""
    lead = profile.answer_lead if draw.ended == "forced" else ""
    return lead + decode(tokenizer, draw.answer)


def sampled_tokens(draws: Sequence[Sequence[Draw]]) -> int:
    """Tokens that were generated, not counting cut copies: the longest thinking, and every distinct answer."""
    total = 0
    for of_chain in draws:
        total += max(len(draw.thinking) for draw in of_chain)
        total += sum(len(draw.answer) for draw in of_chain if draw.ended == "forced")
        total += max((len(draw.answer) for draw in of_chain if draw.ended == "natural"), default=0)
    return total


def make_work(
    checkpoint: Checkpoint, tokenizer: "PreTrainedTokenizerBase", plan: EvalPlan, kernel: str | None = None
) -> Work:
    """Load the problems, fix profile, sampling and caps, and check that every chain fits the model's context.

    kernel: as open_for tells; None leaves no trace in the plan.
    """
    profile = resolve_profile(plan.profile, tokenizer, checkpoint.manifest)
    markers = encode_markers(profile, tokenizer, plan.mode)
    problems = load_problems(plan)
    sampling = effective_sampling(profile, plan)
    caps = [plan.answer_tokens or profile.answer_cap(problem.kind, plan.mode) for problem in problems]
    prompts = [
        encode_prompt(profile, tokenizer, prompt_text(problem, plan.prompt)) + list(markers.start)
        for problem in problems
    ]
    context = int(checkpoint.config.max_position_embeddings)
    check_context(context, "model", plan.budgets[-1], markers, problems, prompts, caps)
    resolved = plan.to_json() | {
        "tasks": list(
            dict.fromkeys(problem.task for problem in problems)
        ),  # not as typed: a path may be spelled anyhow
        "profile": profile.name,
        "strings": profile.strings(),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "batch_size": plan.rows,
        "answer_tokens": caps[0] if len(set(caps)) == 1 else caps_by_kind(problems, caps),
        "problems": digest_of(problems),
    }
    if kernel is not None:
        resolved["kernel"] = kernel
    return Work(
        run_id=content_hash({"model": checkpoint.checksum(), "plan": resolved}),
        plan=resolved,
        profile=profile,
        tokenizer=tokenizer,
        problems=problems,
        prompts=prompts,
        caps=caps,
        rules=Rules(markers, sampling, plan.wait, plan.seed),
        budgets=plan.budgets,
        reuse=plan.reuse,
        batches=cut_into_batches([len(prompt) for prompt in prompts], plan.samples, plan.rows),
    )


def load_problems(plan: EvalPlan) -> list[Problem]:
    """The problems of all tasks; PrunusError if two share an id."""
    problems = [problem for task in plan.tasks for problem in load_task(task, plan.limit)]
    seen: dict[str, str] = {}
    for problem in problems:
        if problem.id in seen:
            raise PrunusError(
                f"problem '{problem.id}' is in task '{seen[problem.id]}' and in '{problem.task}':"
                " evaluate these tasks one by one, or rename it"
            )
        seen[problem.id] = problem.task
    return problems


def effective_sampling(profile: Profile, plan: EvalPlan) -> Sampling:
    """The plan's values, the profile's where the plan has none."""
    temperature, top_p, top_k = profile.sampling(plan.mode)
    return Sampling(
        temperature if plan.temperature is None else plan.temperature,
        top_p if plan.top_p is None else plan.top_p,
        top_k if plan.top_k is None else plan.top_k,
    )


def caps_by_kind(problems: Sequence[Problem], caps: Sequence[int]) -> dict[str, int]:
    """Answer tokens for each kind of problem."""
    return {problem.kind: cap for problem, cap in zip(problems, caps, strict=True)}


def check_context(
    context: int,
    whose: str,
    budget: int,
    markers: Markers,
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    caps: Sequence[int],
) -> None:
    """PrunusError unless prompt, thinking, markers and answer fit the context for every problem."""
    for problem, prompt, cap in zip(problems, prompts, caps, strict=True):
        template = len(prompt) - len(markers.start)
        needed = template + markers.longest + budget + cap
        if needed > context:
            raise PrunusError(
                f"problem '{problem.id}' needs {needed} tokens ({template} of prompt, {budget} to think,"
                f" {markers.longest} of markers, {cap} to answer), but the {whose}'s context is {context}:"
                " lower --budgets or --answer-tokens"
            )


def check_engine(work: Work, backend: Backend) -> None:
    """PrunusError unless every chain fits the context that the engine was started with, where it tells."""
    context: int | None = getattr(backend, "context", None)
    if context is not None:
        check_context(context, "engine", work.budgets[-1], work.rules.markers, work.problems, work.prompts, work.caps)


def cut_into_batches(lengths: Sequence[int], samples: int, size: int) -> list[list[tuple[int, int]]]:
    """All (problem index, draw), draw after draw, each from short prompts to long ones, in lots of at most size."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    chains = [(index, draw) for draw in range(samples) for index in order]
    return [list(chains[start : start + size]) for start in range(0, len(chains), size)]


def digest_of(problems: Sequence[Problem]) -> str:
    """16 hex digits that stand for the problems asked, so that another edition of a file is another run."""
    text = "\n".join(f"{problem.task}\t{problem.id}\t{problem.digest}" for problem in problems)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def problem_row(problem: Problem) -> ProblemRow:
    """What the store keeps of a problem; of private ones not the texts of the choices either."""
    choices = tuple("" for _ in problem.choices) if problem.private else problem.choices
    return ProblemRow(problem.task, problem.id, problem.gold, problem.kind, choices, problem.digest)


def describe_model(model: str | Path, checkpoint: Checkpoint, kernel: str | None = None) -> dict[str, Any]:
    """The model as the store keeps it. name: what people read: a folder's last part, else what was typed.

    A kernel is one more step of what was done to the model, so that tables tell it from the same weights dense.
    """
    manifest = checkpoint.manifest
    if kernel is not None:
        source = {"name": str(model), "checksum": checkpoint.checksum()}
        step = {"action": "pack", "recipe": {"kernel": kernel}, "versions": {}, "source": source, "warnings": []}
        manifest = manifest | {"history": [*manifest.get("history", []), step]}
    return {
        "name": Path(model).resolve().name if Path(model).is_dir() else str(model),
        "source": str(model),
        "checksum": checkpoint.checksum(),
        "manifest": manifest,
        "parameters": checkpoint.parameters,
        "blocks": checkpoint.blocks,
    }


def describe_versions(backend: Backend) -> dict[str, Any]:
    """What the numbers may depend on besides model and plan."""
    packages = {package: version(package) for package in ("prunus", "torch", "transformers")}
    computing = getattr(backend, "description", {})
    return packages | {"python": platform.python_version(), "grader": GRADER_VERSION} | computing


def regrade(store: str | Path) -> dict[str, int]:
    """Grade all stored texts again, in place; nothing is generated.

    Returns counts: runs, answers graded, answers whose grade changed, and answers kept as they are because the set is
    gated and its texts are not in the store, or because lm-evaluation-harness graded them.
    """
    counts = {"runs": 0, "graded": 0, "changed": 0, "kept": 0}
    with Store(Path(store)) as opened, Grader() as grader:
        problems = opened.problems()
        for run in opened.runs():
            counts["runs"] += 1
            samples = opened.samples(run.run_id, texts=True)
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
