"""What a backend is asked for, what it gives back, and what it has to do: complete requests, and nothing else."""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional


class Sampling(NamedTuple):
    """How tokens are sampled. temperature 0 is greedy; top_p 1 and top_k 0 are off."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0


class Scores(NamedTuple):
    """The model's confidence in each token id: two float32 numbers per id, NaN for an id that it did not sample.

    With p the softmax of the model's logits over its whole vocabulary, at temperature 1 and before anything is banned
    or cut off: logprobs holds log p(id), certainties KL(uniform || p).
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
    """What a backend generated for one request: the ids without the stop, and the stop (None: the cap was reached).

    scores: of the ids, None from a backend that gives none. They do not count when completions are compared: their
    last bits depend on the other rows of the batch.
    """

    ids: list[int]
    stopped: int | None
    scores: Scores | None = field(default=None, compare=False)

    def first(self, count: int) -> "Completion":
        """The completion cut after this many ids."""
        scores = self.scores and Scores(self.scores.logprobs[:count], self.scores.certainties[:count])
        return Completion(self.ids[:count], None, scores)


# (a completion, the cut that it ends at; None at its end) -> the request that goes on from there, if any.
Then = Callable[[Completion, int | None], Optional["Request"]]


class Request(NamedTuple):
    """One prompt to complete.

    max_new_tokens: at least 1; a stop counts as one. stops: ids that end the completion. banned: ids that are never
    sampled. seed: of the request's own random numbers, so that a completion does not depend on other requests by more
    than float rounding, which float32 keeps below what decides a token (docs/protocol.md). min_new_tokens: no stop is
    sampled before this many ids.
    then: asked, once the completion has ended, for the request that follows it, whose prompt must begin with this
    prompt and the completion's ids and add at least one id. It is also asked at each of `cuts`, numbers of ids, which
    the completion passes: with the completion so far when another id comes after it that is no stop (a cut at 0 is
    passed in any case). A backend that can, goes on from its cache. It may ask twice, when it has to start over.
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
    """Anything that completes prompts of token ids. context: the longest chain it can hold, None if it does not say."""

    context: int | None = None

    @abstractmethod
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order, after all requests that follow them are completed as well."""

    @property
    def description(self) -> dict[str, Any]:
        """The engine and what its numbers may depend on, to be stored with a run."""
        return {}

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Release processes and connections."""


def follow_ups(request: Request, completion: Completion) -> list[Request]:
    """All requests that follow a finished one, for a backend that learns of a completion only when it has ended."""
    if request.then is None:
        return []
    passed = [cut for cut in request.cuts if cut == 0 or cut < len(completion.ids)]
    found = [request.then(completion.first(cut), cut) for cut in passed]
    return [one for one in (*found, request.then(completion, None)) if one is not None]
