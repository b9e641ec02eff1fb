"""A backend that replays given ids: for tests and examples, no model needed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from prunus.evaluation.budget import Completion, Sampling, Scores


@dataclass
class ScriptedBackend:
    """Continues every prompt with the ids that `replay` gives for it.

    replay: (prompt ids, seed) -> ids, stops among them; may be endless. Banned ids, and stops that come before
    min_new_tokens, are passed over, as a model would have picked something else. score: (all ids up to one that was
    generated) -> its log-probability and self-certainty; None: completions have no scores. calls: (prompt, cap, seed)
    of every row asked for so far.
    """

    replay: Callable[[Sequence[int], int], Iterable[int]]
    score: Callable[[Sequence[int]], tuple[float, float]] | None = None
    calls: list[tuple[tuple[int, ...], int, int]] = field(default_factory=list)

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
        """As Backend.generate; ValueError where the script of a row ends too early."""
        found = []
        for prompt, cap, seed in zip(prompts, max_new_tokens, seeds, strict=True):
            self.calls.append((tuple(prompt), cap, seed))
            ids, stopped = _complete(self.replay(prompt, seed), cap, stops, banned, min_new_tokens)
            found.append(Completion(ids, stopped, self._scores(prompt, ids)))
        return found

    def _scores(self, prompt: list[int], ids: list[int]) -> Scores | None:
        if self.score is None:
            return None
        scores = Scores.none_yet()
        for end in range(1, len(ids) + 1):
            scores.add(*self.score(prompt + ids[:end]))
        return scores


def _complete(
    script: Iterable[int], cap: int, stops: frozenset[int], banned: frozenset[int], min_new_tokens: int
) -> tuple[list[int], int | None]:
    ids: list[int] = []
    for token in script:
        if token in banned or (token in stops and len(ids) < min_new_tokens):
            continue
        if token in stops:
            return ids, token
        ids.append(token)
        if len(ids) == cap:
            return ids, None
    raise ValueError(f"the script ends after {len(ids)} ids, before a stop and before the cap of {cap}")
