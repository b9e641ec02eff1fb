"""Run chains: the one loop behind `eval`, studies, searches, the workers of a cluster, and `traces`.

Chains are drawn, graded and kept in portions, each in one transaction. An engine that streams gets all chains at once,
so that none waits for another, and yields each as soon as it is complete; meanwhile they are graded and kept in a
thread of their own, so that grading does not hold the engine up. Any other engine gets one batch after the other. Rows
follow from the keys of their chains, so the order in which chains end changes none of them.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from prunus import progress
from prunus.evaluation.backends.chat import ChatServer, check_server, drawn_by_server, ignored
from prunus.evaluation.budget import Draw, answer_text, force_budgets, force_budgets_as_completed
from prunus.evaluation.grading import Grader
from prunus.evaluation.profiles.markers import decode
from prunus.evaluation.requests import Backend, no_progress
from prunus.evaluation.resolved_plan import PlannedChain, ResolvedPlan, check_context, tokens_needed
from prunus.evaluation.side_by_side import side_by_side
from prunus.store.looping import loops, repetition_rate
from prunus.store.rows import Key, Sample
from prunus.store.rows import sampled_tokens as tokens_of
from prunus.store.store import Store

MOST_AT_ONCE = 32  # chains at most of a portion, if the engine streams
JUDGED_BY = 64  # chains by which a model or a server is judged
Finished = tuple[PlannedChain, list[Draw]]  # a chain, and its draws under its budgets
Show = Callable[[float, str], None]
_T = TypeVar("_T")
_R = TypeVar("_R")


class Portion(NamedTuple):
    """Chains that are complete, their graded rows, and the tokens sampled for them."""

    finished: list[Finished]
    samples: list[Sample]
    tokens: int


def fill_store(
    store: Store,
    work: ResolvedPlan,
    engine: Backend | ChatServer,
    grader: Grader,
    planned: Sequence[Sequence[PlannedChain]],
    show: Show | None = None,
    warns: bool = False,
) -> Iterator[Portion]:
    """Compute chains and add them to the store; yield each portion once it is stored.

    The other arguments are those of run_chains.
    """

    def keep(portion: Portion) -> None:
        with Store(store.path) as opened:  # since this may be in another thread
            opened.add_samples(work.run_id, portion.samples)

    return run_chains(work, engine, grader, planned, keep, show, warns)


def planned_chains(
    work: ResolvedPlan,
    engine: Backend | ChatServer,
    batches: Sequence[Sequence[tuple[int, int]]],
    stored: Set[Key] = frozenset(),
) -> list[list[PlannedChain]]:
    """The chains of some batches, as an engine is to draw them, in lots.

    An engine that streams gets, in one lot, those of which a row is not stored; the others get whole batches, so that
    their chains are decoded in the same company as without an interruption.
    """
    lots = [[PlannedChain(chain, work.budgets) for chain in batch] for batch in batches]
    if not engine.streams:
        return lots
    chains = [chain for lot in lots for chain in lot]
    if isinstance(engine, ChatServer):  # each budget is a conversation of its own
        chains = [chain._replace(budgets=(budget,)) for chain in chains for budget in chain.budgets]
    return [[chain for chain in chains if not work.keys([chain.key], chain.budgets) <= stored]]


def run_chains(
    work: ResolvedPlan,
    engine: Backend | ChatServer,
    grader: Grader,
    planned: Sequence[Sequence[PlannedChain]],
    keep: Callable[[Portion], None] = lambda _: None,
    show: Show | None = None,
    warns: bool = False,
) -> Iterator[Portion]:
    """Draw and grade chains; yield each portion once it is kept.

    planned: as planned_chains returns it. keep: is called with each portion, in another thread if the engine streams.
    show: while an engine that does not stream works on a lot, it is called with the part of the lot's rows that is
    done, and a note. warns: whether to say that the profile does not seem to fit the model, if the first chains show
    it; that a server ignores the budget is always said.
    """
    chains = [chain for lot in planned for chain in lot]
    judged, wanted = list[list[Draw]](), min(JUDGED_BY, len(chains))

    def kept(finished: list[Finished]) -> Portion:
        samples, draws = graded(work, grader, finished), [drawn for _, drawn in finished]
        portion = Portion(finished, samples, sampled_tokens(draws))
        keep(portion)
        if len(judged) < wanted:
            judged.extend(draws)
            if len(judged) >= wanted and (warning := warning_about(work, judged, warns)):
                progress.say(f"warning: {warning}")
        return portion

    if isinstance(engine, ChatServer) or engine.streams:
        if isinstance(engine, ChatServer):
            drawn = drawn_by_server(work, engine, chains)
        else:
            asked = [work.chain(*chain.key) for chain in chains]
            drawn = force_budgets_as_completed(engine, asked, work.budgets, work.rules, work.reuse)
        yield from in_background(kept, ((chains[place], draws) for place, draws in drawn))
        return
    pace = Pace(work.largest_budget)
    for lot in planned:
        with pace.shown(engine, len(lot), len(lot) * len(work.budgets), show):
            draws = run_batch(work, engine, [chain.key for chain in lot])
        yield kept(list(zip(lot, draws, strict=True)))


def run_batch(work: ResolvedPlan, backend: Backend, batch: Sequence[tuple[int, int]]) -> list[list[Draw]]:
    """Generate a batch: for each of its chains the draws, one per budget."""
    chains = [work.chain(index, draw) for index, draw in batch]

    def draws_of(part: Sequence[int]) -> list[list[Draw]]:
        return force_budgets(backend, [chains[place] for place in part], work.budgets, work.rules, work.reuse)

    return side_by_side(backend, [len(chain.prompt) for chain in chains], draws_of)


def graded(work: ResolvedPlan, grader: Grader, finished: Sequence[Finished]) -> list[Sample]:
    """Graded rows for the store. The texts of private problems are left out, since models quote the question."""
    rows = [(work.problems[index], number, draw) for ((index, number), _), draws in finished for draw in draws]
    texts = [answer_text(work.profile, work.tokenizer, draw) for _, _, draw in rows]
    grades = grader.grade([(problem, text) for (problem, _, _), text in zip(rows, texts, strict=True)])
    samples = []
    for (problem, number, draw), text, grade in zip(rows, texts, grades, strict=True):
        thinking = decode(work.tokenizer, draw.thinking)
        repetition = repetition_rate(text if text == thinking else f"{thinking}\n{text}")
        samples.append(
            Sample(
                task=problem.task,
                problem_id=problem.id,
                budget=draw.budget,
                draw=number,
                thinking_tokens=draw.thinking_tokens,
                answer_tokens=len(draw.answer),
                forced_tokens=draw.forced_tokens,
                ended=draw.ended,
                answer_truncated=draw.answer_truncated,
                reopened_think=draw.reopened_think,
                answer_cap=draw.answer_cap,
                answer=grade.answer,
                status=grade.status,
                correct=grade.correct,
                thinking="" if problem.private else thinking,
                text="" if problem.private else text,
                logprob=draw.logprob,
                self_certainty=draw.self_certainty,
                repetition=repetition,
                loops=loops(thinking, text, repetition),
            )
        )
    return samples


def sampled_tokens(draws: Sequence[Sequence[Draw]]) -> int:
    """Number of tokens generated: for each chain its longest thinking and every distinct answer."""
    chains = [
        [(draw.budget, draw.thinking_tokens, len(draw.answer), draw.ended) for draw in of_chain] for of_chain in draws
    ]
    return sum(tokens_of(chains))


def missing_batches(store: Store, work: ResolvedPlan) -> list[list[tuple[int, int]]]:
    """The batches of which the store lacks a row, in order."""
    stored = store.keys(work.run_id)
    return [batch for batch in work.batches if not work.keys(batch) <= stored]


def missing_chains(store: Store, work: ResolvedPlan, batch: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The chains of a batch of which the store lacks a row, in order."""
    stored = store.keys(work.run_id)
    return [chain for chain in batch if not work.keys([chain]) <= stored]


def check_engine(work: ResolvedPlan, engine: Backend | ChatServer) -> None:
    """Raise PrunusError unless every chain fits into the context with which the engine was started, if that is known.

    An answer that the model's context cuts off must not be cut off earlier by the engine's; ids beyond its cap, which
    show its end, count as part of it. A backend may also refuse the plan's stops, and a server its requests.
    """
    markers = work.rules.markers
    engine.check_stops(markers.think_stops | markers.answer_stops)
    if engine.context is not None:
        budget, context = work.largest_budget, work.rules.context or 0
        at_most = [
            one._replace(
                answer_tokens=one.answer_tokens
                + min(markers.answer_slack, context - tokens_needed(budget, markers, one))
            )
            for one in work.chains
        ]
        check_context(engine.context, "engine", budget, markers, at_most)
    if isinstance(engine, ChatServer):
        check_server(work, engine)


def warning_about(work: ResolvedPlan, draws: Sequence[Sequence[Draw]], of_profile: bool) -> str | None:
    """What these chains show of a server that ignores the budget, or of a profile that does not fit the model.

    It does not if no chain ended its thinking with the profile's marker, and most ended their turn in it.
    """
    if work.native is not None:
        return ignored(work, [draw for of_chain in draws for draw in of_chain])
    last = [of_chain[-1] for of_chain in draws]
    turns = sum(draw.ended_turn for draw in last)
    closed = any(not draw.ended_turn and draw.ended == "natural" for draw in last)
    if not of_profile or work.profile.answer_in_chain or closed or turns < len(last) / 2:
        return None
    return (
        f"the model ends its turn without ending its thinking ({work.profile.think_stops[0]}); if it is not a thinking"
        " model, use --profile plain"
    )


def in_background(function: Callable[[list[_T]], _R], items: Iterable[_T]) -> Iterator[_R]:
    """Yield what the function returns of the items that have come since its last call, in another thread.

    Once all items have come, or an error ends them, all calls are waited for. An error of the function is raised here.
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
                if (found := calls.popleft().result()) is not None:
                    yield found
    yield from (found for one in calls if (found := one.result()) is not None)


class Pace:
    """How far the batch in progress is, and how fast; a large model on a CPU takes minutes to decode one.

    budget: the largest number of thinking tokens of a chain. The first batch is compared with chains that use all of
    it, so its share is too small where chains end earlier; later batches with the mean of those before. clock: seconds.
    """

    def __init__(self, budget: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget, self.clock = budget, clock
        self.chains = self.tokens = 0  # of the batches that are complete

    @contextmanager
    def shown(self, backend: Backend, chains: int, units: int, show: Show | None) -> Iterator[None]:
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
