"""Phases that end exactly at their limit: every kind of backend against a loop over the tiny model, without a cache.

One rule for both phases: what the model would write next is looked at, and a stop there means that the phase is over.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from completions_server import Server, serving
from last_first import LastFirst
from scripted_backend import ScriptedBackend
from tiny_chains import MARKERS, TOKENIZER, chains, spelled, tiny

from prunus.checkpoint.resolve import tiny_folder
from prunus.evaluation.backends import opened
from prunus.evaluation.budget import Chain, Rules, force_budgets, force_budgets_as_completed
from prunus.evaluation.engine import Backend
from prunus.evaluation.profiles.markers import encode_markers
from prunus.evaluation.requests import Sampling
from prunus.settings.engines import EngineOptions

pytestmark = pytest.mark.xdist_group("exact ends")  # what the model writes by hand is computed once

GREEDY = Sampling(0.0)
PROBLEMS = 2


@cache
def following(ids: tuple[int, ...], banned: frozenset[int] = frozenset()) -> int:
    """The likeliest id after these, computed from all of them."""
    with torch.no_grad():
        logits_V = tiny().model(torch.tensor([ids])).logits[0, -1, : len(TOKENIZER)]
    logits_V[list(banned)] = -torch.inf
    return int(logits_V.argmax())


def phase(prompt: Sequence[int], stops: frozenset[int], banned: frozenset[int], limit: int) -> tuple[list[int], bool]:
    """The ids of a phase of at most `limit`, and whether a stop follows them."""
    ids: list[int] = []
    while (token := following((*prompt, *ids), banned)) not in stops:
        if len(ids) == limit:
            return ids, False
        ids.append(token)
    return ids, True


def by_hand(chain: Chain, budget: int) -> tuple[list[int], str, list[int], bool]:
    """(thinking, how it ended, answer, whether the cap cut it)."""
    thinking, ended = phase(chain.prompt, MARKERS.think_stops, frozenset(), budget)
    closing = MARKERS.closing(thinking, ended)
    prompt = [*chain.prompt, *thinking, *closing]
    answer, complete = phase(prompt, MARKERS.answer_stops, MARKERS.answer_banned, chain.answer_tokens)
    return thinking, "natural" if ended else "forced", answer, not complete


def replay(prompt: Sequence[int], seed: int) -> Iterator[int]:
    """The tiny model as a script, of which the backend skips banned ids: none is the likeliest in these chains."""
    ids = list(prompt)
    while True:
        ids.append(following(tuple(ids)))
        yield ids[-1]


@contextmanager
def backend_of(name: str) -> Iterator[Backend]:
    if name == "server":
        with serving(Server(tiny(), TOKENIZER)) as server:
            engine = EngineOptions(url=server.url)
            with opened("openai", tiny_folder(), "auto", len(TOKENIZER), engine) as backend:
                yield backend
    else:
        yield {"hf": tiny, "scripted": lambda: ScriptedBackend(replay), "streaming": LastFirst}[name]()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf", "scripted", "streaming", "server"])
def test_a_phase_that_stops_right_after_its_limit_is_complete(name):
    """Limits one below, at and one above the lengths that each chain has by itself."""
    exact = 0
    with backend_of(name) as backend:
        for chain in chains(PROBLEMS):
            length = len(phase(chain.prompt, MARKERS.think_stops, frozenset(), 200)[0])
            size = len(by_hand(chain._replace(answer_tokens=200), length)[2])
            budgets = (length - 1, length, length + 1)
            some = [chain._replace(answer_tokens=cap) for cap in (size - 1, size, size + 1)]
            of_chain = dict(force_budgets_as_completed(backend, some, budgets, Rules(MARKERS, GREEDY)))
            for place, one in enumerate(some):
                draws, cap = of_chain[place], one.answer_tokens
                found = [(draw.thinking, draw.ended, draw.answer, draw.answer_truncated) for draw in draws]
                assert found == [by_hand(one, budget) for budget in budgets]
                assert [draw.ended for draw in draws] == ["forced", "natural", "natural"]
                assert [draw.answer_truncated for draw in draws[1:]] == [cap < size] * 2
                exact += len(draws[1].thinking) == length and len(draws[1].answer) == cap == size
    assert exact == PROBLEMS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf", "scripted", "server"])
def test_so_is_an_answer_that_ends_in_a_marker_of_several_tokens(name):
    """The marker's own ids do not count, so a cap of exactly what comes before it cuts nothing."""
    rules = Rules(encode_markers(spelled(), TOKENIZER, "strict"), GREEDY)
    ended = 0
    with backend_of(name) as backend:
        for chain in chains(PROBLEMS):
            [[free]] = force_budgets(backend, [chain._replace(answer_tokens=60)], [5], rules)
            if free.answer_truncated or len(free.answer) < 2:
                continue
            ended += 1
            caps = [len(free.answer) + more for more in (-1, 0, 1)]
            some = [chain._replace(answer_tokens=cap) for cap in caps]
            for cap, [draw] in zip(caps, force_budgets(backend, some, [5], rules), strict=True):
                assert (draw.answer, draw.answer_truncated) == (free.answer[:cap], cap < len(free.answer))
    assert ended
