"""The number of requests at once follows the server: none is lost, and rows do not depend on it."""

import heapq
from collections.abc import Callable
from random import Random
from statistics import mean

import pytest
from babbling import babble
from completions_server import Server, serving
from scripted_backend import ScriptedBackend
from tiny_chains import MARKERS, TOKENIZER, chains

from prunus.checkpoint.resolve import tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation.backends import openai, opened, transport
from prunus.evaluation.backends.transport import MOST_REQUESTS, START, RequestLimit, queue_of
from prunus.evaluation.budget import Draw, Rules, force_budgets_as_completed
from prunus.evaluation.requests import Sampling
from prunus.settings.engines import EngineOptions

RULES = Rules(MARKERS, Sampling(1.0, 0.95, 20), seed=3)
MANY = [one._replace(key=("t", "p", number)) for number, one in enumerate(chains())]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(transport, "BACKOFF_SECONDS", 0.001)


def babbling(**settings) -> Server:
    return Server(ScriptedBackend(babble), TOKENIZER, **settings)


def drawn(server: Server, before: Callable[[], None] = lambda: None, **engine) -> dict[int, list[Draw]]:
    """The draws of MANY on a server. before: called between the probe and the first chain."""
    with serving(server):
        options = EngineOptions(url=server.url, **engine)
        with opened("openai", tiny_folder(), "auto", len(TOKENIZER), options) as backend:
            assert isinstance(backend, openai.OpenAIBackend)
            before()
            server.seen.clear()
            server.loads.clear()
            server.refused = server.most_together = 0
            return dict(force_budgets_as_completed(backend, MANY, (0, 6, 12), RULES))


def simulated(places: Callable[[int], int], requests: int) -> tuple[list[int], int]:
    """(requests at the server whenever it takes one, number of refusals), without HTTP.

    places: requests that the server takes at once, by the number that it has taken. Each lasts a random time.
    """
    window, now, noise = RequestLimit(), 0.0, Random(0)
    ends: list[float] = []
    loads: list[int] = []
    refused = 0
    while len(loads) < requests:
        sent = 0
        while window.has_room(len(ends) + sent, now):
            sent += 1
        for left in reversed(range(sent)):  # all were sent before the first reply came
            if len(ends) >= places(len(loads)):
                refused += 1
                window.refused(now, len(ends) + left, now, 0.0)
            else:
                heapq.heappush(ends, now + noise.expovariate(1.0))
                loads.append(len(ends))
        if not ends:
            return loads, refused
        now = heapq.heappop(ends)
        window.completed(len(ends) + 1)
    return loads, refused


@pytest.mark.parametrize("places", [1, 7, 16, 300, 3000])
def test_in_flight_settles_at_what_the_server_takes(places):
    loads, refused = simulated(lambda _: places, 20_000)
    settled = loads[len(loads) // 2 :]
    assert max(settled) == places and mean(settled) > 0.9 * places
    assert refused < START + len(loads) / 3, "all are sent at first; afterwards few are refused"


def test_it_follows_a_server_whose_room_changes():
    loads, _ = simulated(lambda taken: 40 if 10_000 < taken < 20_000 else 400, 40_000)
    assert mean(loads[15_000:20_000]) > 36 and mean(loads[35_000:]) > 360


@pytest.mark.slow
def test_no_request_is_lost_and_rows_do_not_depend_on_the_window():
    free, small = babbling(), babbling(limit=3, seconds=0.03, retry_after="0.01")
    expected = drawn(free)
    assert len(expected) == len(MANY)
    assert drawn(small) == expected
    assert small.most_together == 3 and small.refused > 0
    assert drawn(babbling(limit=1), concurrency=2) == expected


def test_a_server_that_takes_nothing_ends_the_run():
    server = babbling()

    def close() -> None:
        server.limit = 0

    with pytest.raises(PrunusError, match=r"answers 429: too many requests \(6 tries\); stored results are kept"):
        drawn(server, close)


def test_the_window_follows_a_queue():
    """A server with 100 places takes every request; its metrics show how many wait."""
    window, now = RequestLimit(), 0.0
    assert (window.size, window.most) == (START, MOST_REQUESTS)
    in_flight = START
    for _ in range(40):
        running = min(100, in_flight)
        window.follow(in_flight - running, running, in_flight, now)
        in_flight = max(int(window.size), in_flight - 50)  # 50 are completed between two looks
    assert 100 < in_flight <= 100 + 100 / transport.RESERVE + 1
    for _ in range(40):  # now it has 3000 places
        window.follow(0, in_flight, in_flight, now)
        in_flight = int(window.size)
    assert in_flight == MOST_REQUESTS
    assert not RequestLimit(5).has_room(5, now) and RequestLimit(5).has_room(4, now) and RequestLimit(None, 7).most == 7
    assert RequestLimit(None, MOST_REQUESTS, 4).most == 8 and RequestLimit(None, MOST_REQUESTS, 160).most == 180


@pytest.mark.slow
def test_metrics_of_a_server_are_read(monkeypatch):
    monkeypatch.setattr(transport, "POLL_SECONDS", 0.01)
    told = list[tuple[float, float]]()
    monkeypatch.setattr(RequestLimit, "follow", lambda _self, waiting, running, *_: told.append((waiting, running)))
    drawn(babbling(queue=(50, 20), seconds=0.02))
    assert set(told) == {(50.0, 20.0)}


def test_queues_by_metrics():
    assert queue_of(babbling(queue=(7, 12)).metrics()) == (2 * 3, 12), "two replicas, where 3 and 4 wait"
    assert queue_of("llamacpp:requests_deferred 3\nllamacpp:requests_processing 4\n") == (3, 4)
    assert queue_of('sglang:num_queue_reqs{a="b c"} 1e1\nsglang:num_running_reqs 2') == (10, 2)
    assert queue_of("vllm:num_requests_running 4\n") is None and queue_of("<html>") is None
