"""Budget forcing for every backend that completes requests.

There are two phases (s1, arXiv:2501.19393; the rules for edge cases are ours). The model thinks after `prompt` until it
stops or has used its budget; then a closing is appended, and the model answers. Appended ids never count as answer, and
count as thinking only if they replace a suppressed stop.

A chain ends naturally for budget b if b > 0 and the model's stop comes after at most b thinking ids. To see a stop
directly after id b, b + 1 ids are requested and the last one is dropped. If the stop is a text of several tokens, its
first id counts, and more ids are requested. Budget 0 is always forced. The rule is the same for a chain that is drawn
for a budget and for a chain that is drawn once and cut at several budgets. So both have the same draws, provided that
rounding does not depend on the batch (docs/protocol.md).

An answer ends in the same way: it is truncated unless its stop comes after at most as many ids as its cap. To see a
stop directly after the last one, more ids are requested here too, and dropped, unless the context has no room for them.

Budget OFF does not cut a chain: a separate request answers a prompt in which the thinking is switched off.
"""

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunus.evaluation.profiles import Profile
from prunus.evaluation.profiles.markers import Markers, decode
from prunus.evaluation.requests import Completer, Completion, Request, Sampling, Scores
from prunus.plain_data import canonical_json
from prunus.settings.budgets import OFF, without_off

# Stored with every run. In version 2 an answer as long as its cap is complete if its stop follows; in 1 it was not.
# Runs sampled by hf have version 3: one exponential number per token id replaces the inverse of the cumulative sums.
PROTOCOL_VERSION = "2"

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SeedPhase = Literal["think", "answer", "forced answer", "off", "native"]


class Chain(NamedTuple):
    """One draw of a problem.

    prompt: ids including thinking_start. key: (task, problem_id, draw). answer_tokens: cap on the answer, which the
    context may lower. off: ids of the prompt with the thinking switched off, for budget OFF.
    """

    prompt: list[int]
    key: tuple[str, str, int]
    answer_tokens: int
    off: Sequence[int] = ()


@dataclass(frozen=True)
class Rules:
    """The settings that all chains of a run share.

    wait: number of stops of thinking that are suppressed. seed: of the plan. context: maximum number of ids of a chain,
    prompt included, where every answer ends; None means no limit. off_appended: number of ids of the
    empty block of thinking that is appended to an `off` prompt.
    """

    markers: Markers
    sampling: Sampling
    wait: int = 0
    seed: int = 0
    context: int | None = None
    off_appended: int = 0

    def seed_of(self, chain: Chain, phase: SeedPhase, index: int = 0) -> int:
        """A seed of 63 bits that depends only on the plan's seed, the chain, the phase and the index.

        index: number of the round of thinking, or the budget.
        """
        text = canonical_json([self.seed, *chain.key, phase, index])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1

    def answer_cap(self, chain: Chain, appended: int) -> int:
        """The cap on the answer: the chain's answer_tokens, or less if the context has no room for them.

        appended: number of ids between prompt and answer.
        """
        if self.context is None:
            return chain.answer_tokens
        return min(chain.answer_tokens, self.context - len(chain.prompt) - appended)


@dataclass(frozen=True)
class Draw:
    """One chain under a budget.

    budget: OFF for an answer to the chain's `off` prompt, without thinking; ended is then `natural`.
    prompt + thinking + closing + answer are all ids that the model read or wrote, except stops. forced_tokens: number
    of ids of thinking_start and closing. reopened_think: whether the answer contains the marker that opens thinking.
    answer_cap: maximum number of answer tokens within the context.
    logprob, self_certainty: means of Scores over all sampled ids of thinking and answer; None without scores or sampled
    ids.
    ended_turn: whether the model ended its whole turn, and not only its thinking. counted: number of thinking tokens by
    a server that does not return the thinking itself; else None. scores: of the thinking.
    """

    budget: int
    thinking: list[int]
    closing: tuple[int, ...]
    answer: list[int]
    forced_tokens: int
    ended: Literal["natural", "forced"]
    answer_truncated: bool = False
    reopened_think: bool = False
    answer_cap: int = 0
    logprob: float | None = field(default=None, compare=False)
    self_certainty: float | None = field(default=None, compare=False)
    ended_turn: bool = field(default=False, compare=False)
    counted: int | None = None
    scores: Scores | None = field(default=None, compare=False, repr=False)

    @property
    def thinking_tokens(self) -> int:
        """Number of tokens of thinking."""
        return len(self.thinking) if self.counted is None else self.counted


def answer_text(profile: Profile, tokenizer: "PreTrainedTokenizerBase", draw: Draw) -> str:
    """Text that is graded: the answer without the marks of the profile's `strip` around it.

    The profile's answer_lead precedes the answer after a forced closing. For a profile with answer_in_chain the text is
    the whole chain if the model ended it.
    """
    if profile.answer_in_chain and draw.ended == "natural":
        return decode(tokenizer, draw.thinking)
    lead = profile.answer_lead if draw.ended == "forced" and draw.closing else ""
    text = lead + decode(tokenizer, draw.answer)
    for mark in profile.strip:
        text = text.strip().removeprefix(mark).removesuffix(mark)
    return text


def force_budgets(
    backend: Completer, chains: Sequence[Chain], budgets: Sequence[int], rules: Rules, reuse: bool = True
) -> list[list[Draw]]:
    """The draws of every chain (outer list) under every budget (inner list), both in the given order.

    reuse: think once under the largest budget and cut that chain for the smaller ones. It has no effect with
    rules.wait, since suppressing a stop changes the rest of the chain, nor with budget OFF.
    """
    draws = dict(force_budgets_as_completed(backend, chains, budgets, rules, reuse))
    return [draws[index] for index in range(len(chains))]


def force_budgets_as_completed(
    backend: Completer, chains: Sequence[Chain], budgets: Sequence[int], rules: Rules, reuse: bool = True
) -> Iterator[tuple[int, list[Draw]]]:
    """Yield the index of each chain and its draws, as force_budgets has them, as soon as the backend completes them."""
    numbers = without_off(budgets)
    together = bool(numbers) and reuse and rules.wait == 0
    groups: list[Sequence[int]] = [[OFF]] if OFF in budgets else []  # each is drawn separately
    groups += [numbers] if together else [[budget] for budget in numbers]
    forced: dict[int, ForcedChain] = {}
    draws: dict[int, dict[int, Draw]] = {}

    def requests(sent: Sequence[Sequence[int]]) -> Iterator[Request]:
        for number, (chain, group) in enumerate(product(chains, sent)):
            forced[number] = ForcedChain(chain, group, rules)
            yield forced[number].first_request()

    for sent in backend.sent_together(groups):
        for number in backend.completed(requests(sent), rules.sampling):
            index = number // len(sent)
            by_budget = draws.setdefault(index, {})
            by_budget.update(forced.pop(number).draws)
            if len(by_budget) == len(budgets):
                del draws[index]
                yield index, [by_budget[budget] for budget in budgets]


def answer_cuts(backend: Completer, cuts: Sequence[tuple[Chain, Completion]], rules: Rules) -> list[Draw]:
    """Draws of chains whose known thinking is cut at a budget; only their answers are generated.

    cuts: each chain with its thinking up to the cut; the chain itself thought longer.
    """
    forced = [ForcedChain(chain, [len(thinking.ids)], rules) for chain, thinking in cuts]
    requests = [chain.answer_to(thinking) for chain, (_, thinking) in zip(forced, cuts, strict=True)]
    for _ in backend.completed(requests, rules.sampling):
        pass
    return [chain.draws[chain.largest] for chain in forced]


class ForcedChain:
    """One chain under budgets that share its thinking: its requests and the draws made from their completions.

    draws: by budget; complete once first_request and all requests that follow it are completed.
    """

    def __init__(self, chain: Chain, budgets: Sequence[int], rules: Rules) -> None:
        self.chain, self.budgets, self.rules = chain, budgets, rules
        self.largest = max(budgets)
        self.draws: dict[int, Draw] = {}

    def first_request(self) -> Request:
        """The request to think, or to answer immediately if the only budget is 0 or OFF."""
        chain, rules, nothing = self.chain, self.rules, Completion([], None, Scores.empty())
        if self.largest != OFF:
            return self._think(nothing, 0) if self.largest > 0 else self._answer(nothing, 0)
        return self._answer_request(
            list(chain.off),
            rules.answer_cap(chain, len(chain.off) - len(chain.prompt)),
            rules.seed_of(chain, "off"),
            [OFF],
            nothing,
            closing=(),
            forced_tokens=rules.off_appended,
            ended="natural",
        )

    def answer_to(self, thinking: Completion) -> Request:
        """The request to answer after this thinking, which ends at the chain's only budget."""
        return self._answer(thinking, self.largest)

    def _think(self, before: Completion, refused: int) -> Request:
        """The request to continue thinking after `before`. refused: number of stops suppressed so far."""
        chain, markers, used = self.chain, self.rules.markers, len(before.ids)

        def then(completion: Completion, cut: int | None) -> Request | None:
            thinking = _joined(before, completion.first(completion.content))
            if cut is not None:
                return self._answer(thinking, used + cut)
            if (completion.stopped is None and completion.marker is None) or len(thinking.ids) > self.largest:
                return None  # the chain was cut at the largest budget
            ended_turn = completion.stopped in markers.ends
            if refused == self.rules.wait and markers.answer_in_chain:  # the chain is its own answer
                return self._record(
                    self._natural(thinking.ids),
                    thinking,
                    Completion([], None, Scores.empty()),
                    closing=(),
                    forced_tokens=len(markers.start),
                    ended="natural",
                    ended_turn=True,
                )
            if refused == self.rules.wait:
                return self._answer(thinking, None, completion.written, ended_turn)
            refusal = list(markers.refusal(thinking.ids))
            unsampled = Scores(*2 * [array("f", len(refusal) * [math.nan])])
            thinking = _joined(thinking, Completion(refusal, None, unsampled))
            if len(thinking.ids) < self.largest:
                return self._think(thinking, refused + 1)
            return self._answer(thinking.first(self.largest), self.largest)

        return Request(
            prompt=chain.prompt + before.ids,
            max_new_tokens=self.largest - used + markers.slack,
            stops=markers.think_stops,
            banned=frozenset(),
            seed=self.rules.seed_of(chain, "think", refused),
            min_new_tokens=1 if self.rules.wait else 0,  # so that no two suppressed stops follow each other directly
            cuts=tuple(budget - used for budget in self.budgets),
            then=then,
            texts=markers.think_texts,
        )

    def _record(self, budgets: Sequence[int], thinking: Completion, answer: Completion, **rest: Any) -> None:
        """Record the draws of these budgets. rest: the other fields of Draw, except scores."""
        logprob, self_certainty = _means(thinking, answer)
        for budget in budgets:
            self.draws[budget] = Draw(
                budget=budget,
                thinking=thinking.ids,
                answer=answer.ids,
                logprob=logprob,
                self_certainty=self_certainty,
                scores=thinking.scores,
                **rest,
            )

    def _natural(self, thinking: Sequence[int]) -> list[int]:
        """The budgets under which a chain that the model ended after these ids has a natural end."""
        return [budget for budget in self.budgets if budget >= max(1, len(thinking))]

    def _answer(
        self, thinking: Completion, cut: int | None, written: Sequence[int] = (), ended_turn: bool = False
    ) -> Request:
        """The request to answer after this thinking. cut: the budget that ended it; None if the model did.

        written: ids of the marker with which the model ended it, if the marker has several ids. ended_turn: whether the
        model ended its whole turn.
        """
        chain, rules, ids = self.chain, self.rules, thinking.ids
        closing = rules.markers.closing(ids, cut is None, written)
        return self._answer_request(
            [*chain.prompt, *ids, *closing],
            rules.answer_cap(chain, len(ids) + len(closing)),
            rules.seed_of(chain, "answer") if cut is None else rules.seed_of(chain, "forced answer", cut),
            self._natural(ids) if cut is None else [cut],
            thinking,
            closing=closing,
            forced_tokens=len(rules.markers.start) + len(closing) - len(written),
            ended="natural" if cut is None else "forced",
            ended_turn=ended_turn,
        )

    def _answer_request(
        self, prompt: list[int], cap: int, seed: int, budgets: Sequence[int], thinking: Completion, **rest: Any
    ) -> Request:
        """The request to answer with at most cap ids, from which the draws of these budgets are made.

        rest: the fields of Draw that are known before the answer.
        """
        markers, context = self.rules.markers, self.rules.context
        wanted = cap + markers.answer_slack  # more than the cap, if the context has room, to see the answer's end

        def then(completion: Completion, _: int | None) -> None:
            ended = (completion.stopped is not None or completion.marker is not None) and completion.content <= cap
            completion = completion if ended else completion.first(cap)
            self._record(
                budgets,
                thinking,
                completion.first(completion.content),
                answer_truncated=not ended,
                reopened_think=contains(completion.ids, markers.reopening) or markers.reopens(completion.written),
                answer_cap=cap,
                **rest,
            )

        return Request(
            prompt=prompt,
            max_new_tokens=wanted if context is None else min(wanted, context - len(prompt)),
            stops=markers.answer_stops,
            banned=markers.answer_banned,
            seed=seed,
            then=then,
            texts=markers.answer_texts,
        )


def _joined(first: Completion, then: Completion) -> Completion:
    """Both completions as one, with scores if both have them."""
    scores = None
    if first.scores is not None and then.scores is not None:
        scores = Scores(
            first.scores.logprobs + then.scores.logprobs, first.scores.certainties + then.scores.certainties
        )
    return Completion(first.ids + then.ids, then.stopped, scores)


def _means(thinking: Completion, answer: Completion) -> tuple[float | None, float | None]:
    """Mean log-probability and mean self-certainty over the sampled ids of both phases; None without any."""
    parts = [part.scores for part in (thinking, answer) if part.ids]
    scores_2T = [np.array(scores, dtype=np.float64) for scores in parts if scores is not None]
    if not parts or len(scores_2T) < len(parts):
        return None, None
    logprobs, certainties = (row[~np.isnan(row)] for row in np.concatenate(scores_2T, axis=1))
    return _finite_mean(logprobs), _finite_mean(certainties)


def _finite_mean(values: NDArray[np.float64]) -> float | None:
    mean = float(values.mean()) if len(values) else math.nan
    return mean if math.isfinite(mean) else None


def contains(ids: Sequence[int], part: Sequence[int]) -> bool:
    """Whether part is not empty and occurs in ids as a contiguous subsequence."""
    width = len(part)
    return bool(part) and any(tuple(ids[start : start + width]) == tuple(part) for start in range(len(ids) - width + 1))
