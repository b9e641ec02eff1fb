"""Rows at further budgets for chains whose thinking is in the store: only the forced answers are generated.

Up to rounding such a row is the one of a run with all budgets: its seed follows from the chain and the budget, and the
ids of the thinking are those that the model wrote.
"""

from array import array
from collections.abc import Iterator, Sequence

from prunus.evaluation.budget import Chain, Draw, answer_cuts
from prunus.evaluation.engine import Batches, Engine
from prunus.evaluation.grading import Grader
from prunus.evaluation.requests import Completer, Completion, Scores
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.evaluation.reused_rows import runs_to_reuse
from prunus.evaluation.run import graded
from prunus.evaluation.side_by_side import side_by_side
from prunus.store.rows import Sample
from prunus.store.starts import contradiction
from prunus.store.store import Kept, Store
from prunus.store.stored import Environment
from prunus.store.thought import Thought

Cut = tuple[tuple[int, int], Chain, Completion]  # (index of the problem, draw), the chain, and its thinking to the cut


def sources_of(store: Store, work: ResolvedPlan, environment: Environment) -> list[str]:
    """Ids of the other runs that have chains of this plan and were computed in this environment."""
    if not work.cuts_chains:
        return []
    return [
        run.run_id for run in runs_to_reuse(work, store.runs()) if not run.mixed and not contradiction(run, environment)
    ]


def copy_natural_ends(store: Store, work: ResolvedPlan, sources: Sequence[str], table: Kept = "sample") -> None:
    """Copy the missing rows of chains that ended within the budget from sources that have them at other budgets."""
    wanted = work.keys(chain for batch in work.batches for chain in batch)
    for source in sources:
        if missing := wanted - store.keys(work.run_id, table):
            store.copy_natural(source, work.run_id, missing, table)


def answer_kept_chains(
    store: Store,
    work: ResolvedPlan,
    engine: Engine,
    grader: Grader,
    batches: Batches,
    sources: Sequence[str],
    table: Kept = "sample",
) -> Iterator[list[Sample]]:
    """Generate the missing forced answers of these batches from chains that the sources keep; yield rows once stored.

    sources: run ids, by sources_of. table: the table of the store to which rows are added. Yields nothing for an engine
    that is not a Completer.
    """
    if not isinstance(engine, Completer):
        return
    for batch in batches:
        cuts = cuts_of(store, work, batch, sources, table)
        size = work.rows if engine.keeps_batches else max(1, len(cuts))
        for start in range(0, len(cuts), size):
            some = cuts[start : start + size]
            draws = answered(work, engine, some)
            rows = graded(work, grader, [(place, [draw]) for (place, *_), draw in zip(some, draws, strict=True)])
            store.add_samples(work.run_id, rows, table=table)
            yield rows


def cuts_of(
    store: Store, work: ResolvedPlan, batch: Sequence[tuple[int, int]], sources: Sequence[str], table: Kept
) -> list[Cut]:
    """The cuts of a batch's chains at which a row is missing and whose thinking is kept, from short to long ones."""
    missing, cuts = work.keys(batch) - store.keys(work.run_id, table), list[Cut]()
    for source in sources:
        lacking = {(problem, draw) for problem, _, draw in missing}
        thoughts = store.thoughts(source, lacking)
        for index, draw in batch:
            thought = thoughts.get((work.problems[index].id, draw))
            if thought is None:
                continue
            for budget in work.budgets:
                key = (work.problems[index].id, budget, draw)
                if key in missing and 0 <= budget < len(thought.ids):
                    missing.remove(key)
                    cuts.append(((index, draw), work.chain(index, draw), thinking_to(thought, budget)))
    return sorted(cuts, key=lambda cut: len(cut[1].prompt) + len(cut[2].ids))


def thinking_to(thought: Thought, budget: int) -> Completion:
    """The thinking up to a budget, as the engine returned it."""
    scores = thought.scores_2T
    kept = None if scores is None else Scores(*(array("f", row[:budget].tobytes()) for row in scores))
    return Completion(list(thought.ids[:budget]), None, kept)


def answered(work: ResolvedPlan, engine: Completer, cuts: Sequence[Cut]) -> list[Draw]:
    """The draws at these cuts."""
    lengths = [len(chain.prompt) + len(thinking.ids) for _, chain, thinking in cuts]
    return side_by_side(
        engine, lengths, lambda part: answer_cuts(engine, [cuts[place][1:] for place in part], work.rules)
    )
