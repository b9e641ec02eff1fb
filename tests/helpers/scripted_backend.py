"""A backend that replays given ids, without a model; for tests and examples."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from prunus.evaluation.engine import Backend
from prunus.evaluation.requests import Completion, Request, Sampling, Scores, follow_ups


@dataclass
class ScriptedBackend(Backend):
    """A Backend that continues every prompt with the ids that `replay` returns for it.

    replay: (prompt ids, seed) -> ids including stops; may be endless. Banned ids, and stops before min_new_tokens, are
    skipped, since a model would have sampled another id. score: ids of prompt and completion up to an id ->
    (log-probability, self-certainty) of that id; None: completions have no scores. calls: (prompt, cap, seed) of every
    request so far.
    """

    replay: Callable[[Sequence[int], int], Iterable[int]]
    score: Callable[[Sequence[int]], tuple[float, float]] | None = None
    calls: list[tuple[tuple[int, ...], int, int]] = field(default_factory=list)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """As Backend.generate; ValueError if the ids of a request end before a stop and before its cap."""
        return [self._complete(request) for request in requests]

    def _complete(self, request: Request) -> Completion:
        self.calls.append((tuple(request.prompt), request.max_new_tokens, request.seed))
        ids, stopped, marker = _replayed(self.replay(request.prompt, request.seed), request)
        completion = Completion(ids, stopped, self._scores(request.prompt, ids), marker)
        for following in follow_ups(request, completion):
            self._complete(following)
        return completion

    def _scores(self, prompt: list[int], ids: list[int]) -> Scores | None:
        if self.score is None:
            return None
        scores = Scores.empty()
        for end in range(1, len(ids) + 1):
            scores.add(*self.score(prompt + ids[:end]))
        return scores


def _replayed(script: Iterable[int], request: Request) -> tuple[list[int], int | None, int | None]:
    """(ids, stop or None, index at which a marker of several tokens begins or None)."""
    ids, cap = list[int](), request.max_new_tokens
    for token in script:
        if token in request.banned or (token in request.stops and len(ids) < request.min_new_tokens):
            continue
        if token in request.stops:
            return ids, token, None
        ids.append(token)
        marker = request.texts.ending_at(ids) if request.texts else None
        if marker is not None or len(ids) == cap:
            return ids, None, marker
    raise ValueError(f"the script ends after {len(ids)} ids, before a stop and before the cap of {cap}")
