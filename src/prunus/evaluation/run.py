"""Run chains: the one loop behind `eval`, studies, searches, the workers of a cluster, and `traces`.

Chains are drawn, graded and kept in portions, each in a transaction.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from prunus import progress
from prunus.evaluation.budget import Draw, answer_text
from prunus.evaluation.engine import Batches, Engine, Finished, Show
from prunus.evaluation.grading import Grader
from prunus.evaluation.profiles.markers import decode
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.store.looping import loops, repetition_rate
from prunus.store.rows import Key, Sample
from prunus.store.rows import sampled_tokens as tokens_of
from prunus.store.store import Store
from prunus.store.thought import Thought

JUDGED_BY = 64  # number of first chains that decide on warnings about the model or the engine


class Portion(NamedTuple):
    """Chains that are complete, and their graded rows."""

    finished: list[Finished]
    samples: list[Sample]


def fill_store(
    store: Store,
    work: ResolvedPlan,
    engine: Engine,
    grader: Grader,
    batches: Batches,
    show: Show = None,
    warns: bool = False,
) -> Iterator[Portion]:
    """Compute the rows of some batches that the store lacks; yield each portion once it is stored.

    The other arguments are those of run_chains.
    """

    def keep(portion: Portion) -> None:
        with Store(store.path) as opened:  # since this may be in another thread
            opened.add_samples(work.run_id, portion.samples, thoughts_of(work, portion.finished))

    return run_chains(work, engine, grader, batches, keep, store.keys(work.run_id), show, warns)


def run_chains(
    work: ResolvedPlan,
    engine: Engine,
    grader: Grader,
    batches: Batches,
    keep: Callable[[Portion], None] = lambda _: None,
    stored: Set[Key] = frozenset(),
    show: Show = None,
    warns: bool = False,
) -> Iterator[Portion]:
    """Draw and grade chains; yield each portion once it is kept.

    keep: is called with each portion, maybe in another thread. stored, show: as of Engine.draws. warns: whether to
    print a warning if the first chains show that the profile does not seem to fit the model; a warning of the engine is
    always printed.
    """
    judged = list[list[Draw]]()

    def judge() -> None:
        if warning := engine.warning(work, judged) or (misfit(work, judged) if warns else None):
            progress.say(f"warning: {warning}")

    def kept(finished: list[Finished]) -> Portion:
        portion = Portion(finished, graded(work, grader, finished))
        keep(portion)
        if len(judged) < JUDGED_BY:
            judged.extend(draws for _, draws in finished)
            if len(judged) >= JUDGED_BY:
                judge()
        return portion

    yield from engine.draws(work, batches, kept, stored, show)
    if 0 < len(judged) < JUDGED_BY:
        judge()


def graded(work: ResolvedPlan, grader: Grader, finished: Sequence[Finished]) -> list[Sample]:
    """Graded rows for the store. The texts of private problems are left out, since models quote the question."""
    rows = [(work.problems[index], number, draw) for (index, number), draws in finished for draw in draws]
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


def thoughts_of(work: ResolvedPlan, finished: Sequence[Finished]) -> list[Thought]:
    """The thinking to store of chains that are cut for all budgets; chains of private problems are left out."""
    thoughts = []
    for (index, number), draws in finished if work.cuts_chains else ():
        problem, longest = work.problems[index], max(draws, key=attrgetter("budget"))
        if longest.thinking and not problem.private:
            scores = longest.scores and np.array(longest.scores, dtype=np.float32)
            thoughts.append(Thought(problem.id, number, longest.thinking, scores))
    return thoughts


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


def misfit(work: ResolvedPlan, draws: Sequence[Sequence[Draw]]) -> str | None:
    """A warning where these chains show that the profile does not fit the model; else None.

    It does not fit if no chain ended its thinking with the profile's marker, and most ended their turn in it.
    """
    last = [of_chain[-1] for of_chain in draws]
    turns = sum(draw.ended_turn for draw in last)
    closed = any(not draw.ended_turn and draw.ended == "natural" for draw in last)
    if work.profile.answer_in_chain or closed or turns < len(last) / 2:
        return None
    return (
        f"the model ends its turn without ending its thinking ({work.profile.think_stops[0]}); if it is not a thinking"
        " model, use --profile plain"
    )
