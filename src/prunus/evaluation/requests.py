"""The interface of a backend, which completes requests: Request, Completion and Backend."""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional


class Sampling(NamedTuple):
    """Sampling settings. temperature 0 is greedy; top_p 1 and top_k 0 turn these filters off."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0


class Scores(NamedTuple):
    """The model's confidence in each token id: two float32 numbers per id, NaN for an id that it did not sample.

    p is the softmax of the model's logits over its whole vocabulary at temperature 1, before any id is banned or
    filtered out. logprobs: log p(id). certainties: KL(uniform || p).
    """

    logprobs: "array[float]"
    certainties: "array[float]"

    @classmethod
    def empty(cls) -> "Scores":
        """Empty scores, to which `add` appends."""
        return cls(array("f"), array("f"))

    def add(self, logprob: float, certainty: float) -> None:
        """Append the scores of one more id."""
        self.logprobs.append(logprob)
        self.certainties.append(certainty)


@dataclass(frozen=True)
class Completion:
    """The ids that a backend generated for one request.

    ids: without the stop. stopped: the stop, None if the cap was reached. scores: of the ids, None from a backend that
    does not compute them; comparing completions ignores them, since their last bits depend on the rest of the batch.
    """

    ids: list[int]
    stopped: int | None
    scores: Scores | None = field(default=None, compare=False)

    def first(self, count: int) -> "Completion":
        """The completion cut after `count` ids."""
        scores = self.scores and Scores(self.scores.logprobs[:count], self.scores.certainties[:count])
        return Completion(self.ids[:count], None, scores)


# (a completion, the cut at which it ends or None for its own end) -> the request that continues it, if any.
Then = Callable[[Completion, int | None], Optional["Request"]]


class Request(NamedTuple):
    """One prompt to complete.

    max_new_tokens: at least 1; a stop counts as one. stops: ids that end the completion. banned: ids that are never
    sampled. seed: of the request's own random numbers, so that other requests affect a completion by float rounding
    only, which in float32 hardly ever changes a token (docs/protocol.md). min_new_tokens: number of ids before which
    no stop is sampled.
    then: called with the finished completion, it returns the request that follows, whose prompt must be this prompt,
    the completion's ids and at least one more id. It is also called with the first n ids for every n in `cuts` that the
    completion passes, which means that another id that is no stop comes after them; a cut at 0 is always passed. A
    backend may continue a following request from its cache, and may call `then` again if it has to start over.
    """

    prompt: list[int]
    max_new_tokens: int
    stops: frozenset[int]
    banned: frozenset[int]
    seed: int
    min_new_tokens: int = 0
    cuts: tuple[int, ...] = ()
    then: Then | None = None


class Backend(ABC):
    """An engine that completes prompts of token ids. context: its maximum number of ids per chain, None if unknown."""

    context: int | None = None

    @abstractmethod
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order; the requests that follow them are completed as well."""

    @property
    def description(self) -> dict[str, Any]:
        """The engine and all settings that its results may depend on, to be stored with a run."""
        return {}

    def close(self) -> None:  # noqa: B027  most backends have nothing to release
        """Release processes and connections."""


def follow_ups(request: Request, completion: Completion) -> list[Request]:
    """All requests that follow a finished one, for a backend that receives completions only as a whole."""
    if request.then is None:
        return []
    passed = [cut for cut in request.cuts if cut == 0 or cut < len(completion.ids)]
    found = [request.then(completion.first(cut), cut) for cut in passed]
    return [one for one in (*found, request.then(completion, None)) if one is not None]
