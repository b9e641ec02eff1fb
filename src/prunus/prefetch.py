"""Compute results of a function in a thread before they are needed."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(work: Callable[[Item], Result], items: Iterable[Item], most: int = 1) -> Generator[Result, None, None]:
    """Yield work(item) of each item in order, while a thread computes up to `most` of the next results.

    An error in work is raised when its item is due. Close the generator (contextlib.closing), so that the thread ends
    after its current item if the loop over the results ends early.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        waiting = deque(thread.submit(work, item) for item in islice(remaining, 1))
        try:
            while waiting:
                while len(waiting) <= most and (upcoming := list(islice(remaining, 1))):
                    waiting.append(thread.submit(work, *upcoming))
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
