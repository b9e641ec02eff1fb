"""What the store lacks of a variant's rows in some rounds of problems."""

from collections.abc import Sequence

from prunus.evaluation.resolved_plan import ResolvedPlan, cut_into_batches
from prunus.statistics.anytime import Round
from prunus.store.store import Store

Batch = list[tuple[int, int]]  # (index of the problem, draw)


def missing_in(store: Store, work: ResolvedPlan, rounds: Sequence[Round]) -> list[Batch]:
    """The chains of a plan in these rounds of which rows are missing, in batches."""
    index = {problem.id: place for place, problem in enumerate(work.problems)}
    places = [index[problem] for round in rounds for _, problem in round]
    batches = cut_into_batches([len(work.chains[place].prompt) for place in places], work.plan.samples, work.rows)
    stored = store.keys(work.run_id)  # interim analyses of another search may have cut the problems otherwise
    chains = ([(places[place], draw) for place, draw in batch] for batch in batches)
    lefts = ([chain for chain in batch if not work.keys([chain]) <= stored] for batch in chains)
    return [left for left in lefts if left]
