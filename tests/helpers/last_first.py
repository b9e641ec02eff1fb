"""A backend that finishes the last chains first."""

from collections.abc import Iterable, Iterator, Sequence

from tiny_chains import tiny

from prunus.errors import PrunusError
from prunus.evaluation.engine import Streaming
from prunus.evaluation.requests import Completion, Outstanding, Request, Sampling


class LastFirst(Streaming):
    """The tiny reasoner, whose requests are completed one by one, the last one that was sent first."""

    def __init__(self, window: int = 5, ends_after: int = 10**9) -> None:
        self.window, self.ends_after, self.log = window, ends_after, list[str]()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        raise AssertionError("a backend that streams is not asked for groups")

    def completed(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[int]:
        waiting, sent = Outstanding(requests), list[int]()
        while True:
            while len(waiting) < self.window and (number := waiting.take()) is not None:
                self.log.append("take")
                sent.append(number)
            if not sent:
                return
            number = sent.pop()
            [found] = tiny().generate([waiting.requests[number]._replace(cuts=(), then=None)], sampling)
            following, chain = waiting.complete(number, found)
            sent += following
            if chain is not None:
                self.log.append("chain")
                if self.log.count("chain") > self.ends_after:
                    raise PrunusError("the engine is gone")
                yield chain
