"""Engines, which draw the chains of a plan; prunus.settings.engines.BACKENDS lists them.

A Backend completes prompts of token ids batch after batch, a Streaming backend schedules all requests itself, and a
ChatServer (backends/chat.py) sends messages instead of token ids. The seeds of a row follow from the key of its chain,
so the order in which chains end changes no row.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

from prunus.evaluation.budget import Draw, force_budgets, force_budgets_as_completed
from prunus.evaluation.requests import Completer, no_progress
from prunus.evaluation.resolved_plan import ResolvedPlan, check_context, tokens_needed
from prunus.evaluation.side_by_side import side_by_side
from prunus.store.rows import Key
from prunus.store.stored import Environment

MOST_AT_ONCE = 32  # most chains that one call of `done` in the background takes
Batch = Sequence[tuple[int, int]]  # chains, as (index of the problem, draw)
Batches = Sequence[Batch]
Finished = tuple[tuple[int, int], list[Draw]]  # a chain, and its draws under its budgets
Show = Callable[[float, str], None] | None  # called with the amount of work that is done, and a note
_T = TypeVar("_T")
_R = TypeVar("_R")
Done = Callable[[list[Finished]], _R]


class Engine:
    """Base class of all engines.

    context: maximum number of ids per chain, None if unknown. keeps_batches: whether the chains of a batch are computed
    together, and with no others. samples_by_key: whether sampled rows follow the protocol KEYED_PROTOCOL.
    """

    context: int | None = None
    keeps_batches: bool = False
    samples_by_key: bool = False

    @property
    def description(self) -> Environment:
        """The engine and all settings that its results may depend on, to be stored with a run."""
        return Environment()

    def check(self, work: ResolvedPlan) -> None:
        """Raise PrunusError unless every chain fits into the context with which the engine was started, if it is known.

        The model's context may cut off an answer, but the engine's must not do so earlier. Ids that are requested
        beyond the cap of an answer, to see whether it ends there, count as part of the answer.
        """
        markers = work.rules.markers
        self.check_stops(markers.think_stops | markers.answer_stops)
        if self.context is not None:
            budget, context = work.largest_budget, work.rules.context or 0
            at_most = [
                chain._replace(
                    answer_tokens=chain.answer_tokens
                    + min(markers.answer_slack, context - tokens_needed(budget, markers, chain))
                )
                for chain in work.chains
            ]
            check_context(self.context, "engine", budget, markers, at_most)

    def check_stops(self, stops: frozenset[int]) -> None:
        """Raise PrunusError unless the engine stops at each of these ids; most stop at any id and check nothing."""

    def draws(self, work: ResolvedPlan, batches: Batches, done: Done[_R], stored: Set[Key], show: Show) -> Iterator[_R]:
        """Draw the chains of these batches; yield what `done` returns, which is called with completed chains.

        done: may be called in another thread, so that the engine need not wait for it. stored: keys of rows that need
        not be drawn. show: engines that can tell their progress within a batch call it with the number of rows done,
        and a note.
        """
        raise NotImplementedError

    def warning(self, work: ResolvedPlan, draws: Sequence[Sequence[Draw]]) -> str | None:
        """A warning if the first draws show that the engine does not do what the requests ask for; else None."""
        return None

    def close(self) -> None:
        """Release processes and connections."""


class Backend(Completer, Engine):
    """An engine that completes prompts of token ids; `generate` is all that it needs."""

    keeps_batches = True

    def draws(self, work: ResolvedPlan, batches: Batches, done: Done[_R], stored: Set[Key], show: Show) -> Iterator[_R]:
        """As Engine.draws: whole batches, so that a resumed run decodes the same chains together."""
        pace = BatchProgress(work.largest_budget)
        for batch in batches:
            if not work.keys(batch) <= stored:
                with pace.shown(self, len(batch), len(batch) * len(work.budgets), show):
                    draws = run_batch(work, self, batch)
                yield done(list(zip(batch, draws, strict=True)))


class Streaming(Backend):
    """A backend that overrides `completed`, since it schedules requests itself and completes them in any order.

    It gets all chains at once, so that none waits for another. Only an A/A control, which repeats a run in batches of
    another size, gets them batch after batch.
    """

    keeps_batches = False

    def sent_together(self, groups: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
        """As Completer.sent_together: all of them at once."""
        return [groups]

    def draws(self, work: ResolvedPlan, batches: Batches, done: Done[_R], stored: Set[Key], show: Show) -> Iterator[_R]:
        """As Engine.draws: only the chains of which a row is not stored."""
        for at_once in batches if work.plan.aa_control else [list(chain.from_iterable(batches))]:
            missing = [key for key in at_once if not work.keys([key]) <= stored]
            chains = [work.chain(*key) for key in missing]
            drawn = force_budgets_as_completed(self, chains, work.budgets, work.rules, work.reuse)
            yield from in_background(done, ((missing[place], draws) for place, draws in drawn))


def run_batch(work: ResolvedPlan, backend: Backend, batch: Batch) -> list[list[Draw]]:
    """Generate a batch: for each of its chains the draws, one per budget."""
    chains = [work.chain(index, draw) for index, draw in batch]

    def draws_of(part: Sequence[int]) -> list[list[Draw]]:
        return force_budgets(backend, [chains[place] for place in part], work.budgets, work.rules, work.reuse)

    return side_by_side(backend, [len(chain.prompt) for chain in chains], draws_of)


def in_background(function: Callable[[list[_T]], _R], items: Iterable[_T]) -> Iterator[_R]:
    """Call a function in another thread with the items that arrived since its last call; yield the results.

    After the last item, or an error in the items, pending calls are finished first. An error of the function is raised
    here.
    """
    waiting, calls = deque[_T](), deque[Future[_R | None]]()

    def call() -> _R | None:
        some = [waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(waiting)))]
        return function(some) if some else None

    with ThreadPoolExecutor(1) as thread:
        for item in items:
            waiting.append(item)
            calls.append(thread.submit(call))
            while calls and calls[0].done():
                if (result := calls.popleft().result()) is not None:
                    yield result
    yield from (result for call in calls if (result := call.result()) is not None)


class BatchProgress:
    """Progress and speed of the batch in progress; on a CPU a large model takes minutes to decode one.

    budget: maximum number of thinking tokens of a chain. The chains of the first batch are expected to use all of it,
    so progress is underestimated where they end earlier; later ones are expected to have the mean length of earlier
    chains. clock: returns seconds.
    """

    def __init__(self, budget: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget, self.clock = budget, clock
        self.chains = self.tokens = 0  # of the batches that are complete

    @contextmanager
    def shown(self, backend: Completer, chains: int, units: int, show: Show) -> Iterator[None]:
        """Within the context the backend completes a batch. chains, units: its size in chains and in units of progress.

        show: called whenever the model has read more tokens, with the work done so far in units and a note.
        """
        if show is None:
            yield
            return
        started, prompt_tokens, tokens = self.clock(), 0, 0
        expected = chains * (self.tokens / self.chains if self.chains else self.budget)

        def count(prompt_ids: int, later_ids: int) -> None:
            nonlocal prompt_tokens, tokens
            prompt_tokens, tokens = prompt_tokens + prompt_ids, tokens + later_ids
            rate = tokens / max(1e-9, self.clock() - started)
            reading = f"reading prompts, {prompt_tokens:,} tokens"
            writing = f"{tokens:,} tokens of this batch, {rate:,.0f} tokens/s"
            # At least one token of every chain is thought to be missing as long as the batch is.
            show(units * tokens / max(expected, tokens + chains), writing if tokens else reading)

        backend.on_tokens = count
        try:
            yield
        finally:
            backend.on_tokens = no_progress
        self.chains, self.tokens = self.chains + chains, self.tokens + tokens
