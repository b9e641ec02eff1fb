"""Batches of a variant's chains whose rows the store lacks, for some rounds of problems."""

from collections.abc import Sequence

from prunus.evaluation.resolved_plan import ResolvedPlan, cut_into_batches
from prunus.statistics.anytime import Round
from prunus.store.store import Store


def missing_in(store: Store, work: ResolvedPlan, rounds: Sequence[Round]) -> list[list[tuple[int, int]]]:
    """Batches of the chains of these rounds for which at least one row is missing; complete chains are left out.

    Each chain is (index of the problem, draw).
    """
    index = {problem.id: place for place, problem in enumerate(work.problems)}
    places = [index[problem] for round in rounds for _, problem in round]
    batches = cut_into_batches([len(work.chains[place].prompt) for place in places], work.plan.samples, work.rows)
    stored = store.keys(work.run_id)  # another search may have cut the problems into other batches
    chains = ([(places[place], draw) for place, draw in batch] for batch in batches)
    lefts = ([chain for chain in batch if not work.keys([chain]) <= stored] for batch in chains)
    return [left for left in lefts if left]
