"""The searches of a study: its [[find]] tables, each for every model and plan, with results in OUT/found."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from prunus import progress
from prunus.cards.certified import CERTIFICATE
from prunus.checkpoint.writer import check_target
from prunus.disk import disk_errors
from prunus.evaluation.provenance import model_label
from prunus.results.certificate import read_certificate
from prunus.studies.cells import plan_names
from prunus.studies.file import FindTable, Study
from prunus.studies.find.certificate import stops
from prunus.studies.find.find import is_finished, run_search, work_folder
from prunus.studies.find.forecast import refuse_impossible, search_forecast
from prunus.studies.find.page import NAME as PAGE
from prunus.studies.find.search import Ladders, Search, ladders_of, open_search
from prunus.studies.ray import Cluster
from prunus.studies.variants import StudyPaths, check_variants

FOUND = "found"  # folder of a study
FINISHED, PART, WAITING = "finished", "not finished", "not started"  # states of a search


@dataclass(frozen=True)
class StudySearch:
    """A search of a study, opened. plan: its name. target: folder of its results."""

    table: FindTable
    plan: str
    search: Search
    target: Path


@dataclass(frozen=True)
class SearchState:
    """How far a search has come, for the pages of the study and its results.

    model, plan: names.
    name: of the search.
    out: the folder of its results.
    state: how far it has come, in words.
    page: its find.html; None until it is finished.
    found: name of the rung that was found.
    removed: the share of the weights that it removes.
    claims: sentences.
    lines: what to expect, for a plan.
    stops: whether the rung may be said to stop (`certificate.stops`).
    """

    model: str
    plan: str
    name: str
    out: str
    state: str
    page: str | None = None
    found: str | None = None
    removed: float = 0.0
    claims: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    stops: bool = True

    @property
    def sentence(self) -> str:
        """The outcome in a sentence, such as `Search wanda: the checkpoint made by wanda-30 still solves ...`."""
        if self.state != FINISHED:
            return f"Search {self.name}: {self.state}."
        if self.found is None:
            return f"Search {self.name}: no rung was certified."
        claim = "still solves and still stops" if self.stops else "still solves, and stops as seldom as the original"
        return (
            f"Search {self.name}: the checkpoint made by {self.found} {claim}; it removes"
            f" {100 * self.removed:.3g} % of the weights."
        )

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {**vars(self), "claims": list(self.claims), "lines": list(self.lines)}


def open_searches(study: Study, models: Mapping[str, Path], paths: StudyPaths) -> list[StudySearch]:
    """The searches of a study: one for each model, plan and [[find]] table. models: {name: folder}.

    Raises PrunusError, with the line of the table, where one is wrong; all tables are read before any model is opened.
    """
    tables, searches = list[tuple[FindTable, Ladders]](), list[StudySearch]()
    for table in study.finds:
        with study.located(table.line, table.name):
            tables.append((table, ladders_of(table)))
    plans = zip(study.plans, plan_names(study.plans), strict=True)
    for (model, at), (plan, name), (table, rungs) in product(models.items(), plans, tables):
        with study.located(table.line, table.name):
            search = open_search(model, plan, table, rungs, engine=study.servings[0].engine, folder=at)
        label = "-".join([table.name, *re.findall(r"[\w.+]+", name)])
        target = paths.folder / FOUND / model_label(model).replace("/", "--") / label
        searches.append(StudySearch(table, name, search, target))
    return searches


def check_searches(study: Study, searches: Sequence[StudySearch], store: Path, device: str) -> None:
    """Raise PrunusError, with the line of the table, for a search that cannot be carried out or cannot certify."""
    for planned in searches:
        if is_finished(planned.search, planned.target):
            continue
        with study.located(planned.table.line, planned.table.name):
            if not (planned.target / CERTIFICATE).exists():
                check_target(planned.search.model.checkpoint.folder, planned.target, True)
            check_variants(planned.search.grid, [planned.search.model], work_folder(planned.target), device)
            refuse_impossible(search_forecast(planned.search, store))


def run_searches(searches: Sequence[StudySearch], store: Path, device: str, cluster: Cluster | None = None) -> None:
    """Carry out the searches that are not finished, on a Ray cluster if one is given.

    The result of an earlier search by another table of this name is replaced.
    """
    for planned in searches:
        if is_finished(planned.search, planned.target):
            shutil.rmtree(work_folder(planned.target), ignore_errors=True)  # it was stopped just before this
            continue
        plan = f" ({planned.plan})" if planned.plan else ""
        progress.say(f"searching: {planned.table.name} of {planned.search.model.label}{plan}")
        with disk_errors(planned.target, 0):
            planned.target.parent.mkdir(parents=True, exist_ok=True)
        run_search(planned.search, planned.target, store, device, cluster, overwrite=True, always=True)


def state(planned: StudySearch, store: Path | None = None) -> SearchState:
    """How far a search has come. store: for what to expect of an unfinished search; None: leave that out."""
    of = planned.search.model.name, planned.plan, planned.table.name, str(planned.target)
    if is_finished(planned.search, planned.target):
        data, page = read_certificate(planned.target / CERTIFICATE), str(planned.target / PAGE)
        if (found := data.shown.found) is None:
            return SearchState(*of, FINISHED, page)
        claims, seen = tuple(data.shown.claims), stops(data.declared, data.endings)
        return SearchState(*of, FINISHED, page, found.name, found.removed, claims, stops=seen)
    lines = () if store is None else search_forecast(planned.search, store).lines
    return SearchState(*of, PART if work_folder(planned.target).exists() else WAITING, lines=lines)
