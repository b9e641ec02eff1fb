"""The trace that searches leave in the store: when each was declared, which rows existed then, and its outcome.

A search is stored when it is declared, before it looks at a row (`declare_in`). So a certificate can name the searches
before it, and `verify` can check that. The probability that any of several searches certifies falsely is at most the
sum of their alphas if no declaration depended on rows that existed; the store shows which there were.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from prunus.cards.certified import search_words
from prunus.errors import PrunusError
from prunus.results.certificate import MEANINGLESS, Declaration, DeclaredRung, EarlierRows, EarlierSearch, SearchHistory
from prunus.results.vocabulary import RungVerdict
from prunus.store.rows import DeclaredSearch
from prunus.store.starts import run_differences
from prunus.store.store import Store
from prunus.studies.find.decisions import SearchRows, decided

UNFINISHED = "not finished"


def rung_differences(store: Store, declared: Declaration) -> list[str]:
    """A sentence for each way in which the rows of rungs were computed otherwise than those of the dense model."""
    runs, rungs = {run.run_id: run for run in store.runs_with_rows()}, dict[str, list[str]]()
    dense = runs.get(declared.dense)
    for rung in declared.rungs:
        if dense is not None and rung.run in runs and (apart := run_differences(dense, runs[rung.run])):
            rungs.setdefault(", ".join(apart), []).append(rung.name)
    return [f"{', '.join(names)}: computed otherwise than the original: {how}" for how, names in rungs.items()]


def declare_in(store: Store, declared: Declaration) -> None:
    """Store that a search is declared, unless it was before."""
    store.add_search(declared.to_json(), list(declared.runs))


@dataclass(frozen=True)
class StoredSearch:
    """A search in a store. stored: its record. declared: what that declares."""

    stored: DeclaredSearch
    declared: Declaration

    @classmethod
    def of(cls, stored: DeclaredSearch) -> Self:
        """The search with this record. Raises PrunusError if it declares none."""
        try:
            return cls(stored, Declaration.of(stored.declared))
        except MEANINGLESS as error:
            raise PrunusError(f"search {stored.search_id} of the store makes no sense: {error}") from error


def searches_like(store: Store, declared: Declaration) -> tuple[DeclaredSearch | None, list[StoredSearch]]:
    """(the record of this search or None, the other searches on the same model and tasks, oldest first)."""
    name, searches = declared.search_id, store.searches()
    stored = next((search for search in searches if search.search_id == name), None)
    others = (StoredSearch.of(search) for search in searches if search.search_id != name)
    return stored, [search for search in others if related(search.declared, declared)]


def searches_before(store: Store, declared: Declaration) -> tuple[DeclaredSearch | None, list[StoredSearch]]:
    """(the record of this search or None, the related searches declared before it; all of them if it is not stored)."""
    stored, others = searches_like(store, declared)
    return stored, [search for search in others if stored is None or search.stored.number < stored.number]


def related(declared: Declaration, other: Declaration) -> bool:
    """Whether two searches are of the same model, on a common task or problem."""
    model, other_model = declared.model, other.model
    both = model.checksum and other_model.checksum
    if (model.checksum != other_model.checksum) if both else (model.name != other_model.name):
        return False
    ids = {name for names in declared.problems.values() for name in names}
    return not declared.problems.keys().isdisjoint(other.problems) or any(
        not ids.isdisjoint(names) for names in other.problems.values()
    )


def trace(store: Store, declared: Declaration) -> SearchHistory | None:
    """History of a search and of those before it, for its certificate; None if the store has no record of it."""
    search, before = searches_before(store, declared)
    if search is None:
        return None
    had = [(run, name, *search.had[run]) for run, name in declared.runs.items() if run in search.had]
    return SearchHistory(
        id=search.search_id,
        before=[described(earlier) for earlier in before],
        had=[EarlierRows(run=run, name=name, problems=problems, rows=rows) for run, name, problems, rows in had],
        alpha=sum_of_alphas(declared, *(earlier.declared for earlier in before)),
        link=store.log().link(search.search_id),
    )


def described(search: StoredSearch) -> EarlierSearch:
    """Summary of an earlier search for a certificate: its id, rungs and rules, without the time of its declaration."""
    declared = search.declared
    return EarlierSearch(
        id=search.stored.search_id,
        rungs=[rung.name for rung in declared.rungs],
        problems={task: len(names) for task, names in declared.problems.items()},
        margin=declared.margin,
        stop_margin=declared.stop_margin,
        alpha=declared.alpha,
        seed=declared.seed,
        budgets=declared.budgets,
        samples=declared.samples,
        base_samples=declared.base_samples,
    )


def sum_of_alphas(*declared: Declaration) -> float:
    """The sum of the alphas of several searches, at most 1."""
    return min(1.0, round(sum(search.alpha for search in declared), 12))


def outcomes(store: Store, declared: Declaration) -> Iterator[tuple[DeclaredRung, str]]:
    """Yield (rung, word) for each rung that a search looked at, by the stored rows; UNFINISHED if some are missing."""
    done = 0
    try:
        for outcome in decided(SearchRows(store, declared), declared):
            done += 1
            yield outcome.rung, outcome.decision.word
    except PrunusError:  # a run or rows that it needs next are missing
        yield from ((rung, UNFINISHED) for rung in declared.rungs[done : done + 1])


def search_line(store: Store, search: StoredSearch) -> str:
    """A line on a search: its id, when it was declared, its rules, and the decision on each rung."""
    came = ", ".join(f"{rung.name} {word}" for rung, word in outcomes(store, search.declared))
    words = search_words(described(search))
    return f"search {search.stored.search_id} of {search.stored.at}, {words}: {came or 'no rung was looked at'}"


def warning(store: Store, declared: Declaration) -> str | None:
    """The warning at the start of a search that has earlier ones on the same model and tasks; None for the first."""
    _, before = searches_before(store, declared)
    if not before:
        return None
    tasks = " and ".join(sorted(declared.problems))
    sure = (
        f"this is search {len(before) + 1} of {declared.model.name} on {tasks} in this store, and their errors"
        f" add up to {100 * sum_of_alphas(declared, *(earlier.declared for earlier in before)):g} %"
    )
    for earlier in reversed(before):
        if (failed := failed_before(store, earlier.declared, declared)) is not None:
            name, word = failed
            verb = "was refused" if word != RungVerdict.CANNOT_TELL else "was not decided"
            return f"{name} {verb} by an earlier search ({'; '.join(changes(earlier.declared, declared))}); {sure}"
    return sure


def failed_before(store: Store, before: Declaration, now: Declaration) -> tuple[str, str] | None:
    """(name, word) of a rung that is tried now and that an earlier search looked at and did not certify."""
    keys = {key for rung in now.rungs for key in (rung.run, rung.name)}
    if not any({rung.run, rung.name} & keys for rung in before.rungs):
        return None
    for rung, word in outcomes(store, before):
        if word not in (RungVerdict.CERTIFIED, UNFINISHED) and {rung.run, rung.name} & keys:
            return rung.name, word
    return None


def changes(before: Declaration, now: Declaration) -> list[str]:
    """What differs between two declarations: `margin 2 points, now 5 points`, `another ladder`."""
    settings = zip(settings_of(before), settings_of(now), strict=True)
    texts = [f"{name} {old}, now {new}" for (name, old), (_, new) in settings if old != new]
    rungs = [[[rung.name for rung in ladder.rungs] for ladder in search.ladders] for search in (before, now)]
    if rungs[0] != rungs[1]:
        texts.append("another ladder")
    if before.problems != now.problems:
        texts.append("other problems")
    return texts or ["otherwise made or evaluated"]


def settings_of(declared: Declaration) -> list[tuple[str, object]]:
    """(name, value) of each setting of a search, in words."""
    return [
        ("margin", declared.margin.words("the original's")),
        ("stop margin", declared.stop_margin.words("the original's")),
        ("alpha", f"{100 * declared.alpha:g} %"),
        ("seed", declared.seed),
        ("budgets", declared.budgets),
        ("samples", declared.samples),
        ("base samples", declared.dense_draws),
        ("look", declared.look),
        ("max tokens", declared.max_tokens),
    ]
