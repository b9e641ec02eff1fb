"""The log of a store: which runs began, which were removed, and which searches were declared, chained by hashes.

Each entry's link is a hash of the entry and of the link before it, so an entry that is changed, added or deleted later
no longer fits. If all later links are computed anew, only a certificate reveals it, since that contains the link of
its search.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from prunus.plain_data import StoredData, canonical_json, content_hash
from prunus.store.rows import DeclaredSearch, Removed, Run


@dataclass(frozen=True, kw_only=True)
class Event(StoredData):
    """Event in the log of a store; only the fields of its kind are set.

    run, checksum, grader: a run began: its id, the checksum of its weights, and the version of the grader.
    search, number, at, had: a search was declared: its id, a hash of the declaration; the others as of DeclaredSearch.
    choice, declared, speeds: a choice was declared: its id, its declaration, and a hash of the speeds.
    chosen, content: a choice was made: its id, and the hash of its choice.json.
    removed: id of a run that was removed.
    regrouped: ids of runs that had rows of problems whose groups changed.
    """

    run: str | None = None
    checksum: str | None = None
    grader: str | None = None
    search: str | None = None
    number: int | None = None
    at: str | None = None
    had: Mapping[str, tuple[int, int]] | None = None
    choice: str | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)
    speeds: str | None = None
    chosen: str | None = None
    content: str | None = None
    removed: str | None = None
    regrouped: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LogEntry:
    """An entry: its number from 1, the UTC time at which it was written, what happened, and its link."""

    number: int
    at: str
    event: Event
    link: str


def link_of(before: str, number: int, at: str, event: Event) -> str:
    """Stored: the link of an entry. before: the link of the entry before it; empty for the first."""
    return hashlib.sha256(f"{before}\n{canonical_json([number, at, event.data])}".encode()).hexdigest()


def search_event(search: DeclaredSearch) -> Event:
    """The event of a search that is declared."""
    had = {run: list(sizes) for run, sizes in search.had.items()}
    return Event.of({"search": search.search_id, "number": search.number, "at": search.at, "had": had})


class Log:
    """The entries of a store's log, with the events of its runs, searches and choices."""

    def __init__(self, entries: Sequence[LogEntry]) -> None:
        self.entries = entries

    @cached_property
    def runs(self) -> dict[str, Event]:
        """The latest event of every run that began."""
        return {entry.event.run: entry.event for entry in self.entries if entry.event.run is not None}

    @cached_property
    def searches(self) -> dict[str, Event]:
        """The latest event of every search that was declared."""
        return {entry.event.search: entry.event for entry in self.entries if entry.event.search is not None}

    def link(self, search_id: str) -> str | None:
        """The link of the entry of a search; None if the log has none."""
        return next((entry.link for entry in self.entries if entry.event.search == search_id), None)

    @property
    def choices(self) -> list[LogEntry]:
        """The entries of choices that were declared, oldest first."""
        return [entry for entry in self.entries if entry.event.choice is not None]

    def outcomes(self, name: str) -> list[str | None]:
        """The hashes of a choice's choice.json, one for each time that the choice was made."""
        return [entry.event.content for entry in self.entries if entry.event.chosen == name]

    def contradictions(
        self, runs: Sequence[Run], searches: Sequence[DeclaredSearch], removed: Sequence[Removed]
    ) -> Iterator[str]:
        """Yield a sentence for each contradiction within the log, or between it and the store's runs and searches."""
        before = ""
        for number, entry in enumerate(self.entries, 1):
            if entry.number != number or entry.link != link_of(before, number, entry.at, entry.event):
                yield f"the log of the store was changed: entry {number} does not fit those before it"
                break
            before = entry.link
        for search in searches:
            if content_hash(search.declared) != search.search_id:
                yield f"search {search.search_id} was changed in the store after it was declared"
            logged = self.searches.get(search.search_id)
            if logged is None:
                yield f"search {search.search_id} is not in the log of the store, so it was changed or added later"
            elif logged != search_event(search):
                name = f"search {search.search_id} of {search.at}"
                yield f"{name} is not as the log of the store has it (of {logged.at})"
        there = {search.search_id for search in searches}
        for name, event in self.searches.items():
            if name not in there:
                yield f"search {name} of {event.at} is in the log of the store; its record was deleted or changed"
        for run in runs:
            event = self.runs.get(run.run_id)
            if event is None:
                yield f"the run {run.run_id} is not in the log of the store, so it was added or renamed later"
            elif event.checksum != run.model.checksum:
                yield f"the run {run.run_id} is of other weights in the log of the store"
            elif event.grader is not None and not run.environment.grader:
                yield f"the run {run.run_id} names no grader any more, which it did when it began"
        kept = {run.run_id for run in runs} | {lost.run.run_id for lost in removed}
        emptied = {entry.event.removed for entry in self.entries}
        for name in self.runs:
            if name not in kept | emptied:
                yield f"the run {name} is in the log of the store, and was deleted otherwise than by `prunus runs`"
