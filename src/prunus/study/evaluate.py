"""Evaluate the cells of a study on this machine: a first batch of every variant early, then all others."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.evaluation.backends.chat import ChatServer
from prunus.evaluation.grading import Grader
from prunus.evaluation.provenance import describe_versions
from prunus.evaluation.requests import Backend
from prunus.evaluation.run import check_engine, fill_store, missing_batches
from prunus.results.store import Store
from prunus.study.cells import Cell, Model, Variant
from prunus.study.engine import Engine, makes_all_first
from prunus.study.file import Study
from prunus.study.live_table import LiveTable
from prunus.study.paths import StudyPaths
from prunus.study.variants import add_run, is_made, make_variant

Batch = list[tuple[int, int]]  # (index of the problem, draw)


def run_here(study: Study, models: Sequence[Model], paths: StudyPaths, store: Store, device: str) -> None:
    """Evaluate every missing cell in this process, beginning with the dense models and one batch of every variant."""
    table = LiveTable.of(study, models, store)
    with table, Grader() as grader, Engine(study, device) as engine:
        if makes_all_first(study.backend, device):
            for model, variant, _ in missing_work(models, store):
                make_missing(study, model, variant, paths, table, device)
        for model, variant, cells in missing_work(models, store, in_rounds=study.engine.serve is None):
            if study.engine.serve is None:  # else the checkpoint is made whole when its server is started
                make_missing(study, model, variant, paths, table, device)
            table.say(f"evaluating {variant.name} of {model.label}")
            with engine.served(model, variant, paths.folder):
                forced = [(cell, batches) for cell, batches in cells if cell.resolved.native is None]
                if forced:
                    with engine.holding(model, variant, paths.folder) as backend:
                        evaluate_cells(model, forced, paths.folder, store, backend, grader, table)
                chats = [(cell, batches) for cell, batches in cells if cell.resolved.native is not None]
                if chats:
                    with engine.chatting(model) as server:
                        evaluate_cells(model, chats, paths.folder, store, server, grader, table)


def evaluate_cells(
    model: Model,
    cells: Sequence[tuple[Cell, Sequence[Batch]]],
    folder: Path,
    store: Store,
    backend: Backend | ChatServer,
    grader: Grader,
    table: LiveTable,
    adaptive: Mapping[str, Any] | None = None,
) -> None:
    """Evaluate batches of some cells of a variant, which the backend has loaded.

    folder: of the study. adaptive: as Run.adaptive, of runs whose rows decide how many problems they have.
    """
    for cell, batches in cells:
        work = cell.resolved
        check_engine(work, backend)
        with store.claim(cell.run_id):
            add_run(store, model, cell, folder, describe_versions(backend))
            if adaptive is not None:
                store.mark_adaptive(cell.run_id, adaptive)
            for portion in fill_store(store, work, backend, grader, batches, table.within):
                table.add(cell.run_id, portion.samples, portion.tokens, portion.seconds)


def missing_work(
    models: Sequence[Model], store: Store, in_rounds: bool = True
) -> Iterator[tuple[Model, Variant, list[tuple[Cell, list[Batch]]]]]:
    """Yield each variant with its cells and their missing batches, in two rounds.

    The first round yields all batches of the dense models and the first batch of every variant, the second all others.
    in_rounds: whether there are two; a variant that is started anew each time is evaluated in one go.
    """
    for first_round in (True, False) if in_rounds else (False,):
        for model in models:
            for variant in model.variants:
                missing = [(cell, missing_batches(store, cell.resolved)) for cell in model.cells_of(variant)]
                if first_round and variant.steps:
                    missing = [
                        (cell, [b for b in batches if b == cell.resolved.batches[0]]) for cell, batches in missing
                    ]
                if cells := [(cell, batches) for cell, batches in missing if batches]:
                    yield model, variant, cells


def make_missing(
    study: Study, model: Model, variant: Variant, paths: StudyPaths, table: LiveTable, device: str
) -> None:
    """Make a variant unless its files exist, and the others that begin with the same step, whose result they share."""
    if is_made(paths.folder, variant):
        return
    alike = [one for one in model.variants if one.keys[:1] == variant.keys[:1]]
    for one in sorted(alike, key=lambda one: len(one.steps)):
        if not is_made(paths.folder, one):
            table.say(f"making {one.name} of {model.label}", log=True)
            with table.hidden():
                make_variant(model, one, paths.folder, device, study.keep_checkpoints)
