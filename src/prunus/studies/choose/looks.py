"""The trace that choices leave in the log of the store: each is written there before it looks at a row.

Whoever tries other limits, models or speeds until a claim pleases makes it false more often than alpha says, but not
more often than the sum of the alphas of all that were tried.
"""

from prunus.errors import PrunusError
from prunus.plain_data import content_hash
from prunus.results.certificate import MEANINGLESS
from prunus.store.log import Event, Log
from prunus.store.store import Store
from prunus.studies.choose.records import ChoiceHistory, Costs, Declared


def declare_in(store: Store, declared: Declared, costs: Costs) -> ChoiceHistory:
    """Write a choice into the log unless it is there already; returns what the log says of it."""
    event = {"choice": id_of_choice(declared, costs), "declared": declared.to_json(), "speeds": speeds_of(costs)}
    store.add_to_log(Event.of(event))
    looks = looks_of(store.log(), declared, costs)
    assert looks is not None
    return looks


def looks_of(log: Log, declared: Declared, costs: Costs) -> ChoiceHistory | None:
    """A choice in the log with related ones before it; None if it is absent. Raises PrunusError for wrong entries."""
    name, before, alpha = id_of_choice(declared, costs), list[str](), declared.alpha
    for entry in log.choices:
        if entry.event.choice == name:
            return ChoiceHistory(id=name, before=before, alpha=min(1.0, round(alpha, 12)), link=entry.link)
        try:
            other = Declared.of(entry.event.declared)
        except MEANINGLESS as error:
            raise PrunusError(f"choice {entry.event.choice} of the store's log makes no sense: {error}") from error
        if related(other, declared):
            before.append(str(entry.event.choice))
            alpha += other.alpha
    return None


def id_of_choice(declared: Declared, costs: Costs) -> str:
    """The id of a choice, which follows from what is declared and from the speeds."""
    return content_hash({"declared": declared.to_json(), "speeds": speeds_of(costs)})


def speeds_of(costs: Costs) -> str:
    """A hash of the speeds and the engines' own bytes on which a choice rests."""
    return content_hash(
        {run: [[timing.to_json() for timing in cost.times], cost.constant] for run, cost in costs.forms.items()}
    )


def related(choice: Declared, other: Declared) -> bool:
    """Whether two choices have a model and a problem in common."""
    models = [{form.model for form in declared.forms} for declared in (choice, other)]
    problems = [{name for names in declared.problems.values() for name in names} for declared in (choice, other)]
    return all(not ours.isdisjoint(theirs) for ours, theirs in (models, problems))


def in_words(looks: ChoiceHistory | None) -> str:
    """End of a claim: `; this is choice 4 over these rows, and the errors of all add up to 20 %`; else empty."""
    if looks is None or not looks.before:
        return ""
    return (
        f"; this is choice {len(looks.before) + 1} over these rows, and the errors of all add up to"
        f" {100 * looks.alpha:g} %"
    )
