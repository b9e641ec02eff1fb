"""The searches of a study: its [[find]] tables, each for every model and plan, with results in OUT/found."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunus import progress
from prunus.cards.certified import CERTIFICATE
from prunus.checkpoint.writer import check_target
from prunus.disk import disk_errors
from prunus.errors import PrunusError
from prunus.finding.certificate import read_certificate
from prunus.finding.find import carry_out, is_finished, work_folder
from prunus.finding.ladders import Ladder, ladders_of
from prunus.finding.on_ray import Cluster, on_cluster
from prunus.finding.page import NAME as PAGE
from prunus.finding.prospects import prospects, refuse_impossible
from prunus.finding.search import Search, open_search
from prunus.study.cells import model_label, plan_names
from prunus.study.file import Study
from prunus.study.find_table import BEGUN, FINISHED, WAITING, FindTable, SearchState
from prunus.study.variants import check_variants

FOUND = "found"  # folder of a study


@dataclass(frozen=True)
class StudySearch:
    """A search of a study, opened. plan: its name. target: folder of its results."""

    table: FindTable
    plan: str
    search: Search
    target: Path

    @property
    def name(self) -> str:
        """`wanda of tiny`."""
        return f"{self.table.name} of {self.search.model.label}{f' ({self.plan})' if self.plan else ''}"


def open_searches(study: Study, models: Mapping[str, Path], folder: Path) -> list[StudySearch]:
    """The searches for these models of the study, which are given with their folders. folder: of the study.

    Raises PrunusError, with the line of the table, where one is wrong; all tables are read before any model is opened.
    """
    tables = [(table, ladders(study, table)) for table in study.finds]
    return [
        opened(study, table, rungs, (model, at), number, folder)
        for model, at in models.items()
        for number in range(len(study.plans))
        for table, rungs in tables
    ]


def ladders(study: Study, table: FindTable) -> list[Ladder]:
    """The ladders of a table."""
    try:
        return ladders_of(table.ladder, table.methods, table.settings, table.recovery, table.shared)
    except PrunusError as error:
        study.fail(table.line, f"{table.name}: {error}")


def opened(
    study: Study, table: FindTable, rungs: Sequence[Ladder], model: tuple[str, Path], number: int, folder: Path
) -> StudySearch:
    """The search of a table for a model (its name and folder), under the plan of this number."""
    try:
        search = open_search(
            model[0], study.plans[number], rungs, margin=table.margin, stop_margin=table.stop_margin, alpha=table.alpha,
            max_tokens=table.max_tokens, look=table.look, engine=study.engine, as_given=table.as_given,
            file=Path(table.ladder) if table.ladder.endswith(".toml") else None, folder=model[1],
        )  # fmt: skip
    except PrunusError as error:
        study.fail(table.line, f"{table.name}: {error}")
    plan = plan_names(study.plans)[number]
    name = "-".join([table.name, *re.findall(r"[\w.+]+", plan)])
    target = folder / FOUND / model_label(model[0]).replace("/", "--") / name
    return StudySearch(table, plan, search, target)


def check_searches(study: Study, searches: Sequence[StudySearch], store: Path, device: str) -> None:
    """Raise PrunusError, with the line of the table, for a search that cannot be carried out or cannot certify."""
    for one in searches:
        if is_finished(one.search, one.target):
            continue
        try:
            if not (one.target / CERTIFICATE).exists():
                check_target(one.search.model.checkpoint.folder, one.target, True)
            check_variants(one.search.study, [one.search.model], work_folder(one.target), device)
            if not one.table.anyway:
                refuse_impossible(prospects(one.search, store))
        except PrunusError as error:
            study.fail(one.table.line, f"{one.table.name}: {error}")


def run_searches(searches: Sequence[StudySearch], store: Path, device: str, cluster: Cluster | None = None) -> None:
    """Carry out what is missing, on a Ray cluster if one is given.

    The result of an earlier search by another table of this name is replaced.
    """
    for one in searches:
        if is_finished(one.search, one.target):
            shutil.rmtree(work_folder(one.target), ignore_errors=True)  # it was stopped just before this
            continue
        progress.say(f"searching: {one.name}")
        with disk_errors(one.target, 0):
            one.target.parent.mkdir(parents=True, exist_ok=True)
        search, rungs = on_cluster(one.search, cluster)
        carry_out(search, one.target, store, device, overwrite=True, always=True, rungs=rungs)


def states(searches: Sequence[StudySearch], store: Path | None = None) -> list[SearchState]:
    """How far each search has come. store: for what to expect of those that are not finished; None: leave that out."""
    return [state(one, store) for one in searches]


def state(one: StudySearch, store: Path | None) -> SearchState:
    """How far a search has come."""
    of = one.search.model.name, one.plan, one.table.name, str(one.target)
    runs = frozenset(rung.cell.run_id for rung in one.search.rungs)
    if is_finished(one.search, one.target):
        shown = read_certificate(one.target / CERTIFICATE)["shown"]
        found = shown["found"]
        page = str(one.target / PAGE)
        if found is None:
            return SearchState(*of, FINISHED, runs, page)
        return SearchState(*of, FINISHED, runs, page, found["name"], found["removed"], tuple(shown["claims"]))
    lines = () if store is None else prospects(one.search, store).lines
    return SearchState(*of, BEGUN if work_folder(one.target).exists() else WAITING, runs, lines=lines)
