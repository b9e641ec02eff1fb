"""Interface between budget forcing and backends: Request, Completion, and the base class Completer."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from prunus.settings.request import COMMON


class Sampling(NamedTuple):
    """Sampling settings. temperature 0 is greedy; top_p 1 and top_k 0 turn these filters off."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0


# Further settings of servers and of vLLM, at values that have no effect; a model's own files may have other defaults.
NEUTRAL = {sampler.name: sampler.default for sampler in COMMON}


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


class TextStops:
    """Markers for which a tokenizer has no single token; a completion ends at the first of them in its text.

    Markers are searched in the text, since a model may write one in several tokenizations: the first token may begin
    before the marker, and the last one may end after it. slack: maximum number of ids of a marker, one per byte.
    """

    def __init__(self, texts: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        """decode: returns the text of ids, including special tokens."""
        self.texts, self.decode = tuple(texts), decode
        self.slack = max(len(text.encode()) for text in self.texts)

    def __repr__(self) -> str:
        return f"TextStops{self.texts}"

    def ending_at(self, ids: Sequence[int]) -> int | None:
        """The index of the id in which a marker begins that the last id completes; None if it completes none."""
        last = self.decode([ids[-1]]) if ids else ""
        if not any(marker[-1] in last for marker in self.texts):
            return None
        earliest = max(0, len(ids) - self.slack)
        for begin in range(len(ids) - 1, earliest - 1, -1):
            text = self.decode(list(ids[begin:]))
            if any(marker in text for marker in self.texts):
                return begin
        return None

    def first(self, ids: Sequence[int], seen: int = 0) -> tuple[int, int] | None:
        """(begin, end) of the first marker in these ids, or None. The first `seen` ids are known to have no marker."""
        for end in range(seen + 1, len(ids) + 1):
            if (begin := self.ending_at(ids[:end])) is not None:
                return begin, end
        return None

    def may_begin_by(self, ids: Sequence[int], index: int) -> bool:
        """Whether later ids may complete a marker that begins at this index or before it."""
        for begin in range(max(0, len(ids) - self.slack), index + 1):
            text = self.decode(list(ids[begin:]))
            if any(text.endswith(marker[:size]) for marker in self.texts for size in range(1, len(marker))):
                return True
        return False


@dataclass(frozen=True)
class Completion:
    """The ids that a backend generated for a request.

    ids: without the stop. stopped: the stop; None if the cap was reached or a text ended it. marker: if one of the
    request's texts ended it, the index of the id in which the text begins; its ids are the last ones. scores: of the
    ids, None from a backend that does not compute them; comparing completions ignores them, since their last bits
    depend on the rest of the batch.
    """

    ids: list[int]
    stopped: int | None
    scores: Scores | None = field(default=None, compare=False)
    marker: int | None = None

    def first(self, count: int) -> "Completion":
        """The completion cut after `count` ids."""
        scores = self.scores and Scores(self.scores.logprobs[:count], self.scores.certainties[:count])
        return Completion(self.ids[:count], None, scores)

    @property
    def written(self) -> list[int]:
        """The ids of the marker that ended the completion, as the model wrote them; empty if none did."""
        return [] if self.marker is None else self.ids[self.marker :]

    @property
    def content(self) -> int:
        """Number of ids before the stop or marker."""
        return len(self.ids) if self.marker is None else self.marker


# (a completion, the cut at which it ends or None for its own end) -> the request that continues it, if any.
Then = Callable[[Completion, int | None], Optional["Request"]]


class Request(NamedTuple):
    """One prompt to complete.

    max_new_tokens: at least 1; a stop counts as one. stops: ids that end the completion. banned: ids that are never
    sampled. seed: of the request's own random numbers, so that other requests affect a completion by float rounding
    only, which in float32 hardly ever changes a token (docs/protocol.md). min_new_tokens: number of ids before which no
    stop is sampled. texts: markers of several tokens, which end the completion and are part of it.
    then: called with the finished completion, it returns the request that follows, whose prompt must be this prompt,
    the completion's ids and at least one more id. It is also called with the first n ids for every n in `cuts` that the
    completion passes, which means that another id comes after them that is no stop and begins no marker; a cut at 0 is
    always passed. A backend may continue a following request from its cache, and may call `then` again if it has to
    start over.
    """

    prompt: list[int]
    max_new_tokens: int
    stops: frozenset[int]
    banned: frozenset[int]
    seed: int
    min_new_tokens: int = 0
    cuts: tuple[int, ...] = ()
    then: Then | None = None
    texts: TextStops | None = None


def no_progress(prompt_ids: int, later_ids: int) -> None:
    """Default of on_tokens: ignore the progress."""


class Completer:
    """Base class of backends that complete prompts of token ids: a batch of them with `generate`.

    on_tokens: `generate` calls it with the numbers of prompt ids and of later ids read since the last call.
    """

    on_tokens: Callable[[int, int], None] = staticmethod(no_progress)

    @property
    def processes(self) -> int:
        """Number of processes, forked from the present one, among which the chains of a batch are best divided."""
        return 1

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order; the requests that follow them are completed as well."""
        raise NotImplementedError

    def completed(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[int]:
        """Yield the number of each request as soon as it and all requests that follow it are completed.

        It takes requests from the iterator as it has room for them.
        """
        requests = list(requests)
        self.generate(requests, sampling)
        yield from range(len(requests))

    def sent_together(self, groups: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
        """Lists of groups of budgets whose requests `completed` gets together; here each list has one group."""
        return [[group] for group in groups]


def follow_ups(request: Request, completion: Completion) -> list[Request]:
    """All requests that follow a finished one, for a backend that receives completions only as a whole."""
    if request.then is None:
        return []
    passed = [cut for cut in request.cuts if cut == 0 or cut < completion.content]
    at_cuts = [request.then(completion.first(cut), cut) for cut in passed]
    return [follow_up for follow_up in (*at_cuts, request.then(completion, None)) if follow_up is not None]


class Outstanding:
    """The uncompleted requests that a streaming backend has taken, and the chains to which they belong.

    A chain is a first request and all requests that follow it; its number is the first request's place in `requests`.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._source = enumerate(requests)
        self._chain: dict[int, int] = {}  # request -> its chain
        self._left: dict[int, int] = {}  # chain -> its requests that are not completed
        self._made = 0
        self.requests: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._left)

    def take(self) -> int | None:
        """The number of the next first request, which is now outstanding; None if there is none left."""
        chain, request = next(self._source, (None, None))
        if chain is None or request is None:
            return None
        self._left[chain] = 0
        return self._add(chain, request)

    def complete(self, number: int, completion: Completion) -> tuple[list[int], int | None]:
        """The numbers of the requests that follow a completed one, and its chain if that is now complete."""
        chain, request = self._chain.pop(number), self.requests.pop(number)
        following = [self._add(chain, follow_up) for follow_up in follow_ups(request, completion)]
        self._left[chain] -= 1
        if self._left[chain]:
            return following, None
        del self._left[chain]
        return following, chain

    def _add(self, chain: int, request: Request) -> int:
        number, self._made = self._made, self._made + 1
        self._chain[number], self.requests[number] = chain, request
        self._left[chain] += 1
        return number
