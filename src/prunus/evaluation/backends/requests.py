"""What the engines that batch by themselves have in common: requests go in, and what follows one goes in as it ends.

So an answer is asked for while the ids of its chain are still in the engine's prefix cache, and chains of other
problems keep the engine busy meanwhile.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from prunus.evaluation.budget import Completion, Continue, Sampling, Thought
from prunus.evaluation.profiles import Markers


class Request(NamedTuple):
    """One prompt to complete. max_new_tokens: the stop counts. follows: on ids that the engine has just read."""

    prompt: list[int]
    max_new_tokens: int
    stops: frozenset[int]
    banned: frozenset[int]
    seed: int
    min_new_tokens: int = 0
    follows: bool = False


# (number of a request, in the order in which they were made; what came of it) -> what to ask next.
Then = Callable[[int, Completion], list[Request]]


class RequestBackend(ABC):
    """A Backend and ForkingBackend over anything that completes requests in any order."""

    @abstractmethod
    def serve(self, requests: Sequence[Request], sampling: Sampling, then: Then) -> list[Completion]:
        """Complete the requests, and those that `then` asks for as each is done; in the order of their making."""

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
        """As Backend.generate."""
        requests = [
            Request(prompt, cap, stops, banned, seed, min_new_tokens)
            for prompt, cap, seed in zip(prompts, max_new_tokens, seeds, strict=True)
        ]
        return self.serve(requests, sampling, lambda *_: [])

    def think_and_answer(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        budgets: Sequence[int],
        markers: Markers,
        sampling: Sampling,
        continue_: Continue,
    ) -> list[Thought]:
        """As prunus.evaluation.budget.think_and_answer, each chain on its own."""
        largest = max(budgets)
        thoughts = [Thought(Completion([], None)) for _ in prompts]
        answering: list[tuple[int, int | None]] = []  # chain and cut of each answer, as they are asked for

        def answers_of(chain: int) -> list[Request]:
            thought = thoughts[chain]
            cuts: list[int | None] = [budget for budget in budgets if not thought.is_natural(budget)]
            if thought.is_natural(largest):
                cuts.append(None)
            requests = []
            for cut in cuts:
                ids = thought.thinking.ids[:cut]
                how = continue_(chain, ids, cut)
                prompt = prompts[chain] + ids + list(how.closing)
                stops, banned = markers.answer_stops, markers.answer_banned
                requests.append(Request(prompt, how.max_new_tokens, stops, banned, how.seed, follows=True))
                answering.append((chain, cut))
            return requests

        def then(number: int, completion: Completion) -> list[Request]:
            if number >= len(thinking):
                return []
            thoughts[number].thinking = completion
            return answers_of(number)

        thinking = [
            Request(prompt, largest + 1, markers.think_stops, frozenset(), seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
            if largest > 0
        ]
        first = thinking or [request for chain in range(len(prompts)) for request in answers_of(chain)]
        found = self.serve(first, sampling, then) if first else []
        for (chain, cut), answer in zip(answering, found[len(thinking) :], strict=True):
            thoughts[chain].answers[cut] = answer
        return thoughts
