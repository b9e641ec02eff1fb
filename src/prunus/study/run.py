"""Run the cells of a study: evaluate what is missing, a first batch of every variant early."""

import shutil
from collections.abc import Iterator, Sequence

from prunus.errors import PrunusError
from prunus.evaluation.backends.chat import ChatServer
from prunus.evaluation.grading import Grader
from prunus.evaluation.pipeline import is_untimed, measure_run
from prunus.evaluation.provenance import describe_versions
from prunus.evaluation.requests import Backend
from prunus.evaluation.resolved_plan import renew_groups
from prunus.evaluation.run import check_engine, fill_store, missing_batches
from prunus.results.store import Store
from prunus.study.cells import Cell, Model, Variant
from prunus.study.engine import Engine, made_before
from prunus.study.file import Study
from prunus.study.live_table import LiveTable
from prunus.study.paths import StudyPaths
from prunus.study.ray.cluster import Cluster
from prunus.study.ray.driver import run_on_ray
from prunus.study.variants import MAKING, add_run, is_made, make_variant, same_recipe

Batches = list[list[tuple[int, int]]]


def check_ray(study: Study) -> None:
    """Raise PrunusError for a study that cannot run on Ray."""
    if study.engine.serve is not None:
        raise PrunusError(f"{study.path}: 'serve' starts one server here; leave --ray out, or use backend = \"vllm\"")
    if any(plan.control == "native" for plan in study.plans):
        raise PrunusError(f"{study.path}: control native asks one server from here; leave --ray out")


def run_cells(
    study: Study,
    models: Sequence[Model],
    paths: StudyPaths,
    device: str,
    cluster: Cluster | None,
) -> None:
    """Evaluate every missing cell, here or on a Ray cluster."""
    with Store(paths.store, create=True) as opened:
        for cell in [cell for model in models for cell in model.cells_of(model.variants[0])]:
            renew_groups(opened, cell.resolved.problems)
        if cluster is None:
            run_here(study, models, paths, opened, device)
        else:
            run_on_ray(study, models, paths, opened, device, cluster)
        shutil.rmtree(paths.folder / MAKING, ignore_errors=True)


def run_here(study: Study, models: Sequence[Model], paths: StudyPaths, store: Store, device: str) -> None:
    """Evaluate every missing cell in this process, beginning with the dense models and one batch of every variant."""
    table = LiveTable.of(study, models, store)
    with table, Grader() as grader, Engine(study, device) as engine:
        if made_before(study.backend, device):
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
                        evaluate_cells(model, forced, paths, store, backend, grader, table)
                chats = [(cell, batches) for cell, batches in cells if cell.resolved.native is not None]
                if chats:
                    with engine.chatting(model) as server:
                        evaluate_cells(model, chats, paths, store, server, grader, table)
        if study.measure_seconds:
            measure_latency(models, paths, store, engine, table)


def evaluate_cells(
    model: Model,
    cells: Sequence[tuple[Cell, Batches]],
    paths: StudyPaths,
    store: Store,
    backend: Backend | ChatServer,
    grader: Grader,
    table: LiveTable,
) -> None:
    """Evaluate batches of some cells of a variant, which the backend has loaded."""
    for cell, batches in cells:
        work = cell.resolved
        check_engine(work, backend)
        with store.claim(cell.run_id):
            add_run(store, model, cell, paths.folder, describe_versions(backend))
            for portion in fill_store(store, work, backend, grader, batches, table.within):
                table.add(cell.run_id, portion.samples, portion.tokens, portion.seconds)


def missing_work(
    models: Sequence[Model], store: Store, in_rounds: bool = True
) -> Iterator[tuple[Model, Variant, list[tuple[Cell, Batches]]]]:
    """Yield each variant with its cells and their missing batches, in two rounds.

    The first round yields all batches of the dense models and the first batch of every variant, the second all others.
    in_rounds: whether there are two; a variant that is started anew each time is evaluated in one go.
    """
    for first_round in (True, False) if in_rounds else (False,):
        for model in models:
            for variant in model.variants:
                missing = [(cell, missing_batches(store, cell.resolved)) for cell in model.cells_of(variant)]
                if first_round and variant.recipe is not None:
                    missing = [
                        (cell, [b for b in batches if b == cell.resolved.batches[0]]) for cell, batches in missing
                    ]
                if cells := [(cell, batches) for cell, batches in missing if batches]:
                    yield model, variant, cells


def make_missing(
    study: Study, model: Model, variant: Variant, paths: StudyPaths, table: LiveTable, device: str
) -> None:
    """Make a variant unless its files exist, and the others of its pruning recipe, which share the pruned model."""
    if variant.recipe is None or is_made(paths.folder, variant):
        return
    for one in same_recipe(model, variant):
        if not is_made(paths.folder, one):
            table.say(f"making {one.name} of {model.label}", log=True)
            with table.hidden():
                make_variant(model, one, paths.folder, device, study.keep_checkpoints)


def measure_latency(models: Sequence[Model], paths: StudyPaths, store: Store, engine: Engine, table: LiveTable) -> None:
    """Measure the decoding speed of a single chain for every cell that has no timing of this machine."""
    for model in models:
        for variant in model.variants:
            cells = [cell for cell in model.cells_of(variant) if is_untimed(store, cell.resolved, engine.device)]
            if cells:
                table.say(f"timing {variant.name} of {model.label}")
                with engine.holding(model, variant, paths.folder) as backend, table.hidden():
                    for cell in cells:
                        measure_run(store, cell.resolved, backend, model.checkpoint)
