"""Run a study: every cell that is missing, in an order that shows something early, then verdicts and a page."""

import gc
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch

from prunus import progress
from prunus.checkpoint.checkpoint import MANIFEST
from prunus.disk import write_text
from prunus.errors import PrunusError
from prunus.evaluation.backends import opened as opened_backend
from prunus.evaluation.backends.hf import HFBackend
from prunus.evaluation.backends.vllm import VLLMBackend
from prunus.evaluation.grading import Grader
from prunus.evaluation.pipeline import do_batch, is_untimed, measure_run, missing_batches
from prunus.evaluation.provenance import describe_model, describe_versions
from prunus.evaluation.requests import Backend
from prunus.evaluation.resolved_plan import check_engine, problem_row
from prunus.pruning.allocate import find_evidence
from prunus.pruning.calibration.data import HUB_NAMES
from prunus.pruning.drop import drop_blocks
from prunus.pruning.pipeline import prune
from prunus.recipes import PruneRecipe
from prunus.results.store import Run, Store
from prunus.study.cells import Cell, Model, Variant, effective, open_models, plan_names
from prunus.study.file import Study, read_study
from prunus.study.live_table import Board, Row
from prunus.study.pages import conclude
from prunus.study.places import Places
from prunus.study.variants import (
    MAKING,
    blocks_removed,
    files_of,
    make_variant,
    read_about,
    swapped,
    weights_file,
)

Batches = list[list[tuple[int, int]]]


def run_study(
    file: str | Path,
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    ray: str | None = None,
    gpus_per_task: float | None = None,
    cpus_per_task: float = 1,
) -> dict[str, Any]:
    """Run the study of a TOML file (docs/study.md): every missing cell, then verdicts and the page OUT/report.html.

    out: folder for all of it, by default study-NAME here. store: SQLite file, by default OUT/results.db. Stopped at any
    time, the same call goes on; only the batch in flight is lost. Returns plain data: name, out, store, report, cells,
    unreported (runs of the store that the study does not ask for), comparisons (for each model and plan: model, plan,
    base, comparison as `compare` gives it). Wrong input raises PrunusError before anything is run.
    ray: HOST:PORT of a Ray cluster, or `auto`, on which to do it (docs/scale.md); each of its workers has so many GPUs
    (by default 1 where there are any) and CPUs. The rows are the same.
    """
    study = read_study(file)
    places = Places.of(study, out, store)
    cluster = None
    if ray is not None:
        from prunus.study.ray.cluster import find_cluster

        cluster = find_cluster(ray)
    with places.locked():
        models = open_models(study)
        check_variants(study, models, places, device)
        write_text(places.folder / "study.toml", study.text)
        with Store(places.store, create=True) as opened:
            if cluster is None:
                run_cells(study, models, places, opened, device)
            else:
                from prunus.study.ray.driver import run_on_ray

                run_on_ray(study, models, places, opened, device, cluster, gpus_per_task, cpus_per_task)
            if edited(study):
                progress.say(f"{study.path} was edited meanwhile: this was it as it was, run the same command again")
            return conclude(study, models, places, opened)


def edited(study: Study) -> bool:
    """Whether the study's file is there and says something else by now."""
    try:
        return study.path.read_text("utf-8") != study.text
    except (OSError, ValueError):
        return False


def check_variants(study: Study, models: Sequence[Model], places: Places, device: str) -> None:
    """PrunusError, with the line of the recipe, where a variant could not be made; warnings are said once."""
    heard: dict[str, None] = {}
    for model in models:
        for variant in model.variants[1:]:
            if read_about(places.folder, variant) is not None or (making(places, variant) / MANIFEST).exists():
                continue
            try:
                heard |= dict.fromkeys(try_out(model, variant, places, device))
            except PrunusError as error:
                study.fail(variant.line, f"{variant.name} of {model.typed}: {error}")
    for warning in heard:
        progress.say(f"warning: {warning}")


def try_out(model: Model, variant: Variant, places: Places, device: str) -> list[str]:
    """Warnings of a dry run; PrunusError where it refuses, or a package is missing."""
    recipe, target = variant.recipe, making(places, variant)
    assert recipe is not None
    check_package(str(effective(recipe, model.checkpoint).get("calibration")))
    if isinstance(recipe, PruneRecipe):
        if recipe.scores is not None:  # a dry run does not open them
            find_evidence(model.checkpoint, recipe, torch.device("cpu"), None)
        return prune(model.typed, target, recipe, device=device, overwrite=True, dry_run=True)["warnings"]
    return drop_blocks(model.typed, target, recipe, device=device, overwrite=True, dry_run=True)["warnings"]


def check_package(calibration: str) -> None:
    """PrunusError where a corpus of the hub cannot be read for want of a package."""
    if calibration in HUB_NAMES and find_spec("datasets") is None:
        raise PrunusError(
            f"calibration '{calibration}' needs the package datasets: pip install 'prunus[hub]'; "
            "or give a .txt or .jsonl file"
        )


def making(places: Places, variant: Variant) -> Path:
    """Where a variant's checkpoint is for a while."""
    return places.folder / MAKING / variant.key


def run_cells(study: Study, models: Sequence[Model], places: Places, store: Store, device: str) -> None:
    """First each dense model and one batch of every variant, then the rest."""
    rows, bases = board_rows(study, models, store)
    with (
        Grader() as grader,
        Board(f"study {study.name}", list(rows.values()), bases) as board,
        Engine(study, device) as engine,
    ):
        if study.backend == "vllm":  # which takes the whole GPU from its start on
            for model in models:
                for variant, _ in to_do(store, model, early=False):
                    make_missing(study, model, variant, places, board, device)
        for early in (True, False):
            for model in models:
                for variant, cells in to_do(store, model, early):
                    make_missing(study, model, variant, places, board, device)
                    board.say(f"evaluating {variant.name} of {model.label}")
                    with engine.holding(model, variant, places.folder) as backend:
                        for cell, batches in cells:
                            check_engine(cell.work, backend)
                            with store.claim(cell.work.run_id):
                                add_cell(store, model, cell, places, describe_versions(backend))
                                for batch in batches:
                                    done = do_batch(store, cell.work, backend, grader, batch)
                                    board.add(rows[cell.work.run_id], done.samples, done.tokens, done.seconds)
        if study.measure_seconds:
            measure_cells(models, places, store, engine, board)
    shutil.rmtree(places.folder / MAKING, ignore_errors=True)


def measure_cells(models: Sequence[Model], places: Places, store: Store, engine: "Engine", board: Board) -> None:
    """The speed of every variant alone, where it is not known of this machine."""
    for model in models:
        for variant in model.variants:
            cells = [cell for cell in model.cells_of(variant) if is_untimed(store, cell.work, engine.device)]
            if cells:
                board.say(f"timing {variant.name} of {model.label}")
                with engine.holding(model, variant, places.folder) as backend, board.aside():
                    for cell in cells:
                        measure_run(store, cell.work, backend, model.checkpoint)


def make_missing(study: Study, model: Model, variant: Variant, places: Places, board: Board, device: str) -> None:
    """Make a variant that is not there yet."""
    if variant.recipe is not None and read_about(places.folder, variant) is None:
        board.say(f"making {variant.name} of {model.label}", aloud=True)
        with board.aside():
            make_variant(model, variant, places.folder, device, study.keep_checkpoints)


def to_do(store: Store, model: Model, early: bool) -> list[tuple[Variant, list[tuple[Cell, Batches]]]]:
    """Variants of which something is missing, and which batches. early: all of the dense model, one of each other."""
    found = []
    for variant in model.variants:
        cells = []
        for cell in model.cells_of(variant):
            missing = missing_batches(store, cell.work)
            if early and variant.recipe is not None:
                missing = [batch for batch in missing if batch == cell.work.batches[0]]
            if missing:
                cells.append((cell, missing))
        if cells:
            found.append((variant, cells))
    return found


class Engine:
    """The dense model that is loaded, one at a time: `with Engine(study, device) as engine: ...`."""

    def __init__(self, study: Study, device: str) -> None:
        self.name, self.options, self.device = study.backend, study.engine, device
        self.model: Model | None = None
        self.backend: Backend | None = None
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def of(self, model: Model) -> Backend:
        """A backend that holds this model."""
        if self.backend is None or self.model is not model:
            self.backend = None
            self.stack.close()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            folder, vocabulary = model.checkpoint.folder, len(model.tokenizer)
            loading = opened_backend(self.name, folder, self.device, vocabulary, self.options)
            self.model, self.backend = model, self.stack.enter_context(loading)
        return self.backend

    @contextmanager
    def holding(self, model: Model, variant: Variant, folder: Path) -> Iterator[Backend]:
        """Within this, the backend has the variant's weights. folder: of the study."""
        backend = self.of(model)
        if isinstance(backend, HFBackend):
            with swapped(backend.model, model.checkpoint, folder, variant):
                yield backend
        else:
            if isinstance(backend, VLLMBackend):
                backend.hold(*files_of(folder, variant), blocks_removed(model.checkpoint, folder, variant))
            yield backend


def add_cell(store: Store, model: Model, cell: Cell, places: Places, versions: dict[str, Any]) -> None:
    """Tell the store of a cell's problems and run, before its rows. versions: of what computes it."""
    store.add_problems(problem_row(problem) for problem in cell.work.problems)
    store.add_run(describe_run(model, cell, places, versions))


def describe_run(model: Model, cell: Cell, places: Places, versions: dict[str, Any]) -> Run:
    """What the store keeps of a cell: of a variant the same as of the checkpoint that it would be."""
    described = describe_model(model.typed, model.checkpoint)
    if cell.variant.recipe is not None:
        about = read_about(places.folder, cell.variant)
        assert about is not None
        described |= {
            "name": f"{model.label}/{cell.variant.name}",
            "source": str(weights_file(places.folder, cell.variant)),
            "checksum": about.checksum,
            "manifest": about.manifest,
            "parameters": about.parameters,
            "blocks": about.blocks,
        }
    return Run(cell.work.run_id, described, cell.work.plan, versions)


def board_rows(
    study: Study, models: Sequence[Model], store: Store
) -> tuple[dict[str, Row], dict[tuple[str, int], Row]]:
    """The row of every cell by its run, and the rows that the others are compared with."""
    rows = {cell.work.run_id: board_row(store, model, cell, study) for model in models for cell in model.cells}
    bases = {row_group(model, c): rows[c.work.run_id] for model in models for c in model.cells if is_base(study, c)}
    return rows, bases


def board_row(store: Store, model: Model, cell: Cell, study: Study) -> Row:
    """The row of a cell with what the store has of it."""
    label = cell.variant.name if len(study.models) == 1 else f"{model.label} {cell.variant.name}"
    if len(study.plans) > 1:
        label += f" ({plan_names(study.plans)[cell.plan]})"
    total = sum(map(len, cell.work.batches)) * len(cell.work.budgets)
    right = {(s.problem_id, s.budget, s.draw): s.correct for s in store.samples(cell.work.run_id)}
    return Row(label, row_group(model, cell), total, right)


def row_group(model: Model, cell: Cell) -> tuple[str, int]:
    """What is compared with one another."""
    return model.typed, cell.plan


def is_base(study: Study, cell: Cell) -> bool:
    """Whether the others are compared with this one."""
    return cell.variant.name == study.base
