"""Budget forcing, written once over any backend that completes token ids.

Two phases (s1, arXiv:2501.19393; the edge rules are ours): the model thinks after `prompt` until it stops by itself or
has used its budget; then a closing is appended and it answers. What is appended is never counted as thinking or answer.

When does a chain end naturally for budget b? When b > 0 and the model's stop comes after at most b thinking ids. So
that a stop right behind id b is seen, b + 1 ids are asked for and the last one is dropped. Budget 0 never asks: it is
forced. This holds for a chain of its own as for one that is cut, so both give the same draws where rounding does not
depend on the batch (docs/protocol.md).
"""

import hashlib
import math
import operator
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from prunus.evaluation.profiles import Markers
from prunus.recipes import canonical_json

SeedPhase = Literal["think", "answer", "forced answer"]


class Sampling(NamedTuple):
    """How to pick a token. temperature 0: the most likely one; top_p 1 and top_k 0: off."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0


class Scores(NamedTuple):
    """What the model thought of the ids it sampled: two float32 numbers an id, nan for one that was put in.

    With p the softmax of the model's logits over its whole vocabulary, at temperature 1 and before anything is banned
    or cut off: logprobs holds log p(id), certainties KL(uniform || p).
    """

    logprobs: "array[float]"
    certainties: "array[float]"

    @classmethod
    def none_yet(cls) -> "Scores":
        """Of no ids."""
        return cls(array("f"), array("f"))

    def add(self, logprob: float, certainty: float) -> None:
        """Those of the next id."""
        self.logprobs.append(logprob)
        self.certainties.append(certainty)


@dataclass(frozen=True)
class Completion:
    """What a backend generated for one prompt: its ids without the stop, and the stop (None: the cap was reached).

    scores: of the ids, None from a backend that gives none. They are no part of what makes two completions equal:
    their last bits depend on the rows decoded beside.
    """

    ids: list[int]
    stopped: int | None
    scores: Scores | None = field(default=None, compare=False)


class Backend(Protocol):
    """Anything that continues token ids."""

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: Sequence[int],
        stops: frozenset[int],
        banned: frozenset[int],
        seeds: Sequence[int],
        sampling: Sampling,
        min_new_tokens: int = 0,
    ) -> list[Completion]:
        """One completion per prompt, in order.

        max_new_tokens: per row, at least 1; the stop counts. banned: never sampled. min_new_tokens: so many ids come
        before a stop may. seeds: per row; a row depends on its own prompt, cap and seed, and on its neighbours by no
        more than how sums round, which float32 keeps below what decides a token (docs/protocol.md).
        """
        ...


class Continuation(NamedTuple):
    """How a chain goes on once its thinking is over: the closing to append, then an answer with this cap and seed."""

    closing: tuple[int, ...]
    max_new_tokens: int
    seed: int


# (index of the chain, its thinking ids, the budget that cut it or None) -> how it goes on.
Continue = Callable[[int, list[int], int | None], Continuation]


@dataclass
class Thought:
    """One chain under its largest budget: up to budget + 1 ids, and the answer after every way in which it ended.

    answers: budget -> answer of the chain cut there; None -> answer after its natural end.
    """

    thinking: Completion
    answers: dict[int | None, Completion] = field(default_factory=dict)

    def is_natural(self, budget: int) -> bool:
        """Whether the chain ends by itself within the budget."""
        return budget > 0 and self.thinking.stopped is not None and len(self.thinking.ids) <= budget


@runtime_checkable
class ForkingBackend(Protocol):
    """A backend that can go on from one chain in several ways without reading it again."""

    def think_and_answer(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        budgets: Sequence[int],
        markers: Markers,
        sampling: Sampling,
        continue_: Continue,
    ) -> list[Thought]:
        """The same as the function think_and_answer below, faster."""
        ...


class Chain(NamedTuple):
    """One draw of one problem. prompt: ids including thinking_start; key: (task, problem_id, draw).

    answer_tokens: cap on the answer, which the context may lower.
    """

    prompt: list[int]
    key: tuple[str, str, int]
    answer_tokens: int


@dataclass(frozen=True)
class Rules:
    """What all chains of a run share. wait: how often an attempt to stop is refused; seed: of the plan.

    context: how many ids a chain may come to with its prompt; an answer ends there at the latest. None: any number.
    """

    markers: Markers
    sampling: Sampling
    wait: int = 0
    seed: int = 0
    context: int | None = None

    def seed_of(self, chain: Chain, phase: SeedPhase, index: int = 0) -> int:
        """63 bits that follow from what is drawn and from nothing else. index: round of thinking, or budget."""
        text = canonical_json([self.seed, *chain.key, phase, index])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1

    def continuation(self, chain: Chain, thinking: list[int], budget: int | None) -> Continuation:
        """How the chain goes on after thinking; budget: the one that cut it, None where it ended by itself."""
        closing = self.markers.closing(thinking, natural=budget is None)
        seed = self.seed_of(chain, "answer") if budget is None else self.seed_of(chain, "forced answer", budget)
        return Continuation(closing, self.answer_cap(chain, len(thinking) + len(closing)), seed)

    def answer_cap(self, chain: Chain, appended: int) -> int:
        """The chain's cap, or what the context leaves behind its prompt and so many ids if that is less."""
        if self.context is None:
            return chain.answer_tokens
        return min(chain.answer_tokens, self.context - len(chain.prompt) - appended)


@dataclass(frozen=True)
class Draw:
    """One chain under one budget.

    prompt + thinking + closing + answer are all the ids the model saw or wrote, apart from stops. forced_tokens: of
    thinking_start and closing. reopened_think: the answer holds the marker that opens thinking. answer_cap: how many
    tokens the answer could have, after what the context left.
    logprob, self_certainty: means of Scores over the ids that were sampled, of thinking and answer together; None
    without scores or such ids.
    """

    budget: int
    thinking: list[int]
    closing: tuple[int, ...]
    answer: list[int]
    forced_tokens: int
    ended: Literal["natural", "forced"]
    answer_truncated: bool
    reopened_think: bool
    answer_cap: int
    logprob: float | None = field(default=None, compare=False)
    self_certainty: float | None = field(default=None, compare=False)


def force_budgets(
    backend: Backend, chains: Sequence[Chain], budgets: Sequence[int], rules: Rules, reuse: bool = True
) -> list[list[Draw]]:
    """Draws of every chain (outer list) under every budget, in the order of budgets.

    reuse: think once, under the largest budget, and cut that chain for the others; not with refusals (rules.wait).
    """
    if reuse and rules.wait == 0:
        return _cut_chains(backend, chains, budgets, rules)
    by_budget = [_one_budget(backend, chains, budget, rules) for budget in budgets]
    return [list(draws) for draws in zip(*by_budget, strict=True)]


def _one_budget(backend: Backend, chains: Sequence[Chain], budget: int, rules: Rules) -> list[Draw]:
    if rules.wait == 0:
        return [draws[0] for draws in _cut_chains(backend, chains, [budget], rules)]
    thoughts = think_with_refusals(backend, chains, budget, rules)
    cut_at = [None if thought.is_natural(budget) else budget for thought in thoughts]
    continuations = [
        rules.continuation(chain, thought.thinking.ids, cut)
        for chain, thought, cut in zip(chains, thoughts, cut_at, strict=True)
    ]
    prompts = [chain.prompt + thought.thinking.ids for chain, thought in zip(chains, thoughts, strict=True)]
    answers = _answer(backend, prompts, continuations, rules.markers, rules.sampling)
    for thought, cut, answer in zip(thoughts, cut_at, answers, strict=True):
        thought.answers[cut] = answer
    return [_draw(chain, thought, budget, rules) for chain, thought in zip(chains, thoughts, strict=True)]


def _cut_chains(backend: Backend, chains: Sequence[Chain], budgets: Sequence[int], rules: Rules) -> list[list[Draw]]:
    def continue_(index: int, thinking: list[int], budget: int | None) -> Continuation:
        return rules.continuation(chains[index], thinking, budget)

    prompts, seeds = [chain.prompt for chain in chains], [rules.seed_of(chain, "think") for chain in chains]
    if isinstance(backend, ForkingBackend):
        thoughts = backend.think_and_answer(prompts, seeds, budgets, rules.markers, rules.sampling, continue_)
    else:
        thoughts = think_and_answer(backend, prompts, seeds, budgets, rules.markers, rules.sampling, continue_)
    return [
        [_draw(chain, thought, budget, rules) for budget in budgets]
        for chain, thought in zip(chains, thoughts, strict=True)
    ]


def think_and_answer(
    backend: Backend,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    budgets: Sequence[int],
    markers: Markers,
    sampling: Sampling,
    continue_: Continue,
) -> list[Thought]:
    """Think once under the largest budget; answer after the natural end and at every budget that cuts the chain.

    One generate call thinks, one answers the natural ends, and one answers per budget.
    """
    caps = [max(budgets) + 1] * len(prompts)
    if max(budgets) == 0:
        thoughts = [Thought(Completion([], None)) for _ in prompts]
    else:
        found = backend.generate(prompts, caps, markers.think_stops, frozenset(), seeds, sampling)
        thoughts = [Thought(completion) for completion in found]
    for cut in (None, *budgets):
        rows = [
            index
            for index, thought in enumerate(thoughts)
            if (thought.is_natural(max(budgets)) if cut is None else not thought.is_natural(cut))
        ]
        kept = [thoughts[index].thinking.ids[:cut] for index in rows]
        continuations = [continue_(index, ids, cut) for index, ids in zip(rows, kept, strict=True)]
        texts = [prompts[index] + ids for index, ids in zip(rows, kept, strict=True)]
        for index, answer in zip(rows, _answer(backend, texts, continuations, markers, sampling), strict=True):
            thoughts[index].answers[cut] = answer
    return thoughts


def think_with_refusals(backend: Backend, chains: Sequence[Chain], budget: int, rules: Rules) -> list[Thought]:
    """Thinking in which the first `wait` stops are replaced by the wait string, which counts as thinking.

    Every round writes at least one id before it may stop. A chain that has no room for another round is forced.
    """
    thinking: list[list[int]] = [[] for _ in chains]
    scores: list[Scores | None] = [Scores.none_yet() for _ in chains]
    stopped: list[int | None] = [None] * len(chains)
    for turn in range(rules.wait + 1):
        open_rows = [row for row, ids in enumerate(thinking) if len(ids) < budget]
        found = _generate(
            backend,
            [chains[row].prompt + thinking[row] for row in open_rows],
            [budget - len(thinking[row]) + 1 for row in open_rows],
            [rules.seed_of(chains[row], "think", turn) for row in open_rows],
            (rules.markers.think_stops, frozenset(), rules.sampling),
            min_new_tokens=1,
        )
        for row, completion in zip(open_rows, found, strict=True):
            thinking[row] += completion.ids
            scores[row] = _joined(scores[row], completion.scores)
            stopped[row] = completion.stopped
            if completion.stopped is not None and turn < rules.wait:
                refusal = rules.markers.refusal(thinking[row])
                thinking[row] += refusal
                scores[row] = _joined(scores[row], Scores(*2 * [array("f", len(refusal) * [math.nan])]))
                stopped[row] = None
    return [
        Thought(Completion(ids[:budget], stop, of_ids))
        for ids, stop, of_ids in zip(thinking, stopped, scores, strict=True)
    ]


def _joined(first: Scores | None, then: Scores | None) -> Scores | None:
    return Scores(*map(operator.add, first, then)) if first is not None and then is not None else None


def _answer(
    backend: Backend,
    texts: Sequence[list[int]],
    continuations: Sequence[Continuation],
    markers: Markers,
    sampling: Sampling,
) -> list[Completion]:
    prompts = [ids + list(how.closing) for ids, how in zip(texts, continuations, strict=True)]
    caps, seeds = [how.max_new_tokens for how in continuations], [how.seed for how in continuations]
    return _generate(backend, prompts, caps, seeds, (markers.answer_stops, markers.answer_banned, sampling))


def _generate(
    backend: Backend,
    prompts: list[list[int]],
    caps: list[int],
    seeds: list[int],
    how: tuple[frozenset[int], frozenset[int], Sampling],
    min_new_tokens: int = 0,
) -> list[Completion]:
    """Backend.generate, which is not asked where there is nothing to do."""
    stops, banned, sampling = how
    return backend.generate(prompts, caps, stops, banned, seeds, sampling, min_new_tokens) if prompts else []


def _draw(chain: Chain, thought: Thought, budget: int, rules: Rules) -> Draw:
    natural = thought.is_natural(budget)
    thinking = thought.thinking.ids[:budget]
    answer = thought.answers[None if natural else budget]
    closing, answer_cap, _ = rules.continuation(chain, thinking, None if natural else budget)
    logprob, self_certainty = _means(thought.thinking, answer, budget)
    return Draw(
        budget=budget,
        thinking=thinking,
        closing=closing,
        answer=answer.ids,
        forced_tokens=len(rules.markers.start) + len(closing),
        ended="natural" if natural else "forced",
        answer_truncated=answer.stopped is None,
        reopened_think=contains(answer.ids, rules.markers.reopening),
        answer_cap=answer_cap,
        logprob=logprob,
        self_certainty=self_certainty,
    )


def _means(thinking: Completion, answer: Completion, budget: int) -> tuple[float | None, float | None]:
    """Of logprobs and of certainties, over the ids that were sampled: thinking up to the budget, and the answer."""
    parts = [(found.scores, stop) for found, stop in ((thinking, budget), (answer, None)) if found.ids[:stop]]
    scores_2T = [np.array(scores, dtype=np.float64)[:, :stop] for scores, stop in parts if scores is not None]
    if not parts or len(scores_2T) < len(parts):
        return None, None
    logprobs, certainties = (row[~np.isnan(row)] for row in np.concatenate(scores_2T, axis=1))
    return _finite_mean(logprobs), _finite_mean(certainties)


def _finite_mean(values: NDArray[np.float64]) -> float | None:
    mean = float(values.mean()) if len(values) else math.nan
    return mean if math.isfinite(mean) else None


def contains(ids: Sequence[int], part: Sequence[int]) -> bool:
    """Whether part occurs in ids, in one piece."""
    width = len(part)
    return any(tuple(ids[at : at + width]) == tuple(part) for at in range(len(ids) - width + 1))
