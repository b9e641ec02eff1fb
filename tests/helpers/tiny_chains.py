"""Prompts for the tiny reasoner in tests of backends."""

from collections.abc import Sequence
from functools import cache

from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.evaluation.backends.hf import HFBackend
from prunus.evaluation.budget import Chain
from prunus.evaluation.engine import Backend, Streaming
from prunus.evaluation.profiles import PROFILES, Profile
from prunus.evaluation.profiles.markers import encode_markers, encode_prompt
from prunus.evaluation.requests import Completion, Request, Sampling, follow_ups
from prunus.evaluation.tasks import load_task

TOKENIZER = load_tokenizer(tiny_folder())
MARKERS = encode_markers(PROFILES["tiny"], TOKENIZER, "strict")


def complete(
    backend: Backend,
    prompts: Sequence[list[int]],
    caps: Sequence[int],
    stops: frozenset[int],
    banned: frozenset[int],
    seeds: Sequence[int],
    sampling: Sampling,
    min_new_tokens: int = 0,
) -> list[Completion]:
    """A completion of each prompt, without following requests."""
    rows = zip(prompts, caps, seeds, strict=True)
    requests = [Request(prompt, cap, stops, banned, seed, min_new_tokens) for prompt, cap, seed in rows]
    if not isinstance(backend, Streaming):
        return backend.generate(requests, sampling)
    found: dict[int, Completion] = {}

    def noted(place: int, request: Request) -> Request:
        def then(completion: Completion, _: int | None) -> None:
            found[place] = completion

        return request._replace(then=then)

    list(backend.completed([noted(place, one) for place, one in enumerate(requests)], sampling))
    return [found[place] for place in range(len(requests))]


@cache
def tiny() -> HFBackend:
    return HFBackend.load(tiny_folder(), "cpu", len(TOKENIZER))


@cache
def chains(count: int = 8, cap: int = 12) -> list[Chain]:
    """Chains for problems of all families and levels, with draws 0 and 1 in turn and different caps."""
    problems = load_task("tiny")
    chosen = problems[:: len(problems) // count][:count]
    return [
        Chain(
            encode_prompt(PROFILES["tiny"], TOKENIZER, problem.question),
            (problem.task, problem.id, number % 2),
            cap - number % 3,
        )
        for number, problem in enumerate(chosen)
    ]


class TwoPhases(Backend):
    """A backend without its cache: what follows a request is read again, in a later call."""

    def __init__(self, backend: HFBackend) -> None:
        self.backend = backend

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        found = self.backend.generate([request._replace(cuts=(), then=None) for request in requests], sampling)
        following = [one for pair in zip(requests, found, strict=True) for one in follow_ups(*pair)]
        if following:
            self.generate(following, sampling)
        return found


def spelled(**changes: object) -> Profile:
    """The tiny reasoner's profile with its markers as texts that its chains are full of."""
    texts: dict[str, object] = {
        "name": "spelled",
        "thinking_start": "<think>\n",
        "think_stops": ("=4",),
        "natural_closing": "=4\n</think>\n\n",
        "forced_closing": "</think>\n\n",
        "forced_break": "\n",
        "answer_stops": ("<|im_end|>",),
        "answer_banned": ("4\n",),
    }
    return Profile(**texts | changes)  # pyright: ignore[reportArgumentType]
