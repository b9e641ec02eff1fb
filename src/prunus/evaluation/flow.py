"""Evaluate all missing chains at once with a backend that streams: no chain waits for another one.

A chain is graded and stored as soon as it is complete, in a thread of its own, so that grading does not hold the engine
up. Rows follow from the keys of their chains, so the order in which chains end changes none of them.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from prunus.evaluation.budget import Draw, force_budgets_as_completed
from prunus.evaluation.requests import Backend
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.results.rows import Sample
from prunus.results.store import Store

MOST_AT_ONCE = 32  # chains that are graded and stored in one transaction
JUDGED_BY = 64  # chains by which never_closed judges the profile

Finished = tuple[tuple[int, int], list[Draw]]  # (index of the problem, draw), and the draws under every budget
Grade = Callable[[Sequence[tuple[int, int]], Sequence[Sequence[Draw]]], list[Sample]]
_T = TypeVar("_T")


def drawn_as_completed(
    work: ResolvedPlan,
    backend: Backend,
    chains: Sequence[tuple[int, int]],
    judge: Callable[[Sequence[Sequence[Draw]]], None] = lambda _: None,
) -> Iterator[Finished]:
    """Yield chains with their draws as soon as they are complete. judge: as of judged."""
    asked = [work.chain(index, draw) for index, draw in chains]
    found = force_budgets_as_completed(backend, asked, work.budgets, work.rules, work.reuse)
    return judged(((chains[number], draws) for number, draws in found), len(chains), judge)


def judged(
    finished: Iterator[Finished], count: int, judge: Callable[[Sequence[Sequence[Draw]]], None]
) -> Iterator[Finished]:
    """Yield what is finished, `count` in all, and call judge once with the draws of the first."""
    first, wanted = list[list[Draw]](), min(JUDGED_BY, count)
    for chain, draws in finished:
        yield chain, draws
        if len(first) < wanted:
            first.append(draws)
            if len(first) == wanted:
                judge(first)


def fill_as_completed(
    path: Path, run_id: str, finished: Iterator[Finished], grade: Grade, show: Callable[[list[Sample], int], None]
) -> None:
    """Grade what is finished and add it to a run in the store at path.

    show: is called in this thread with rows that were stored since the last call, and the number of tokens sampled
    since then. The other arguments are those of graded_as_completed.
    """

    def store_all(samples: list[Sample]) -> None:
        with Store(path) as store:
            store.add_samples(run_id, samples)

    for samples, tokens in graded_as_completed(finished, grade, store_all):
        show(samples, tokens)


def graded_as_completed(
    finished: Iterator[Finished], grade: Grade, keep: Callable[[list[Sample]], None] = lambda _: None
) -> Iterator[tuple[list[Sample], int]]:
    """Yield (rows, tokens): rows that were graded and kept since the last time, and the tokens sampled since then.

    grade: makes the rows of some chains. keep: is called with them, as grade is, in another thread.
    """
    graded: queue.SimpleQueue[list[Sample]] = queue.SimpleQueue()
    tokens = 0

    def grade_all(some: list[Finished]) -> None:
        samples = grade([chain for chain, _ in some], [draws for _, draws in some])
        keep(samples)
        graded.put(samples)

    def since_then() -> list[Sample]:
        found = list[Sample]()
        while not graded.empty():
            found += graded.get()
        return found

    with InBackground(grade_all) as background:
        for chain, draws in finished:
            background.put((chain, draws))
            tokens += max(draw.thinking_tokens for draw in draws) + sum(len(draw.answer) for draw in draws)
            if found := since_then():
                yield found, tokens
                tokens = 0
    if found := since_then():
        yield found, tokens


class InBackground(Generic[_T]):
    """Calls a function with the items put so far, in another thread; leaving the context waits for all of them.

    An error of the function is raised by the next `put`, or when the context is left.
    """

    def __init__(self, function: Callable[[list[_T]], None]) -> None:
        self.function = function
        self.items: queue.SimpleQueue[_T | None] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def put(self, item: _T) -> None:
        """Hand over an item."""
        if self.error is not None:
            raise self.error
        self.items.put(item)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.items.put(None)
        self.thread.join()
        if self.error is not None and error is None:
            raise self.error

    def _work(self) -> None:
        while (item := self.items.get()) is not None:
            some = [item]
            while len(some) < MOST_AT_ONCE and item is not None and not self.items.empty():
                item = self.items.get()
                some += [] if item is None else [item]
            try:
                if self.error is None:
                    self.function(some)
            except BaseException as error:  # it is raised in the thread that puts
                self.error = error
            if item is None:
                return
