"""A plan made concrete for one model: prompts, caps, rules and batches, checked before anything is generated."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunus.checkpoint.checkpoint import ModelFolder
from prunus.checkpoint.resolve import load_end_ids
from prunus.errors import PrunusError
from prunus.evaluation.budget import Chain, Rules
from prunus.evaluation.profiles import Markers, Profile, encode_markers, encode_prompt, resolve_profile
from prunus.evaluation.requests import Backend, Sampling
from prunus.evaluation.tasks import Problem, load_task, prompt_text
from prunus.recipes import EvalPlan, content_hash
from prunus.results.store import ProblemRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ResolvedPlan:
    """A plan made concrete for one model: what is asked of it, and how.

    prompts: ids of each problem including thinking_start. caps: answer tokens of each problem, which rules.context may
    lower. plan: as stored.
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
        """Store keys (problem id, budget, draw) of a batch's rows."""
        return {(self.problems[index].id, budget, draw) for index, draw in batch for budget in self.budgets}

    def answers_at_most(self, index: int) -> int:
        """The most tokens that the answers to a problem take together, one answer for each budget that cuts a chain."""
        chain = Chain(self.prompts[index], ("", "", 0), self.caps[index])
        closing = self.rules.markers.shortest_closing
        return sum(self.rules.answer_cap(chain, budget + closing) for budget in self.budgets)


def resolve_plan(
    checkpoint: ModelFolder, tokenizer: "PreTrainedTokenizerBase", plan: EvalPlan, kernel: str | None = None
) -> ResolvedPlan:
    """Load the problems, fix profile, sampling and caps, and check that every chain fits the model's context.

    In mode legacy an answer may run to the end of the context, as in the papers' harness: it need only have room to
    begin.

    kernel: as returned by open_for.
    """
    profile = resolve_profile(plan.profile, tokenizer, checkpoint.manifest, plan.mode)
    own = encode_markers(profile, tokenizer, plan.mode)
    markers = own.ending_at(load_end_ids(checkpoint.folder, len(tokenizer)))
    problems = load_problems(plan)
    sampling = effective_sampling(profile, plan)
    caps = [plan.answer_tokens or profile.answer_cap(problem.kind, plan.mode) for problem in problems]
    prompts = [
        encode_prompt(profile, tokenizer, prompt_text(problem, plan.prompt)) + list(markers.start)
        for problem in problems
    ]
    context = checkpoint.context
    needed = [tokens_needed(plan.budgets[-1], markers, prompt, cap) for prompt, cap in zip(prompts, caps, strict=True)]
    least = caps if plan.mode == "strict" else [1] * len(caps)
    check_context(context, "model", plan.budgets[-1], markers, problems, prompts, least)
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
    # Keys that older versions did not have are left out at their default, so that the ids of stored runs stay.
    if kernel is not None:
        resolved["kernel"] = kernel
    if max(needed) > context:
        resolved["context"] = context
    if ends := (markers.think_stops - own.think_stops) | (markers.answer_stops - own.answer_stops):
        resolved["end_ids"] = sorted(ends)
    return ResolvedPlan(
        run_id=content_hash({"model": checkpoint.checksum(), "plan": resolved}),
        plan=resolved,
        profile=profile,
        tokenizer=tokenizer,
        problems=problems,
        prompts=prompts,
        caps=caps,
        rules=Rules(markers, sampling, plan.wait, plan.seed, context),
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


def tokens_needed(budget: int, markers: Markers, prompt: Sequence[int], cap: int) -> int:
    """The most tokens that a chain comes to: prompt (with the opening marker), thinking, markers, answer."""
    return len(prompt) - len(markers.start) + markers.longest + budget + cap


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
        needed = tokens_needed(budget, markers, prompt, cap)
        if needed > context:
            template = len(prompt) - len(markers.start)
            raise PrunusError(
                f"problem '{problem.id}' needs {needed} tokens ({template} of prompt, {budget} to think,"
                f" {markers.longest} of markers, {cap} to answer), but the {whose}'s context is {context}:"
                " lower --budgets or --answer-tokens"
            )


def check_engine(work: ResolvedPlan, backend: Backend) -> None:
    """PrunusError unless every chain fits the context that the engine was started with, where it says what that is.

    An answer that the model's context cuts must be cut there, not earlier.
    """
    if backend.context is not None:
        budget, rules = work.budgets[-1], work.rules
        caps = [
            min(cap, cap + (rules.context or 0) - tokens_needed(budget, rules.markers, prompt, cap))
            for prompt, cap in zip(work.prompts, work.caps, strict=True)
        ]
        check_context(backend.context, "engine", budget, rules.markers, work.problems, work.prompts, caps)


def cut_into_batches(lengths: Sequence[int], samples: int, size: int) -> list[list[tuple[int, int]]]:
    """Batches of (problem index, draw), at most `size` each: draw after draw, each from short prompts to long ones."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    chains = [(index, draw) for draw in range(samples) for index in order]
    return [list(chains[start : start + size]) for start in range(0, len(chains), size)]


def digest_of(problems: Sequence[Problem]) -> str:
    """16 hex digits of a hash of the problems, so that a changed file makes another run."""
    text = "\n".join(f"{problem.task}\t{problem.id}\t{problem.digest}" for problem in problems)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def problem_row(problem: Problem) -> ProblemRow:
    """The stored form of a problem; without the texts of choices where it is private."""
    choices = tuple("" for _ in problem.choices) if problem.private else problem.choices
    asks = None if problem.private else problem.asks
    return ProblemRow(problem.task, problem.id, problem.gold, problem.kind, choices, problem.digest, asks)
