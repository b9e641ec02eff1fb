"""Run a study: the cells that are missing, with a first batch of every variant early, then its searches; report it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunus import progress
from prunus.disk import write_text
from prunus.errors import PrunusError
from prunus.evaluation.resolved_plan import renew_groups
from prunus.results.store import Store, is_begun
from prunus.study.cells import Model, check_beforehand, open_models
from prunus.study.engine import run_here
from prunus.study.file import Study, read_study
from prunus.study.find.tables import check_searches, open_searches, run_searches, state
from prunus.study.pages import write_results
from prunus.study.ray import Cluster, cluster_for
from prunus.study.ray.driver import run_on_ray
from prunus.study.variants import MAKING, StudyPaths, check_variants


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
    """Run the study of a TOML file: evaluate what is missing, write the page OUT/report.html, and return the verdicts.

    The same call resumes a study that was stopped at any time; only the batch that was being computed is repeated.

    file: TOML (docs/study.md). out: folder for everything that the study writes, by default `study-NAME` in the current
    folder. store: SQLite file of the results, by default `results.db` in that folder. device: `cpu`, `cuda`, ...;
    `auto` takes a GPU if there is one. ray: HOST:PORT of a Ray cluster to run on, or `auto` (docs/scale.md); the rows
    are the same as those of a local run. gpus_per_task, cpus_per_task: GPUs (by default 1 where the cluster has any)
    and CPUs of each Ray worker.

    Returns a dict of plain data: name, out, store, report (path of the page), cells (their number), unreported (ids of
    runs in the store that the file does not ask for) and comparisons, a list with one dict for each model and plan:
    model, plan, base (run id), comparison (as `compare` returns it; None if no other variant has answers) and not_begun
    (names of variants without answers), and searches, a list with one dict for each model, plan and [[find]] table:
    model, plan, name, out (its folder), state (`finished`, `not finished` or `not begun`), page (its find.html), found
    (name of the rung; None if none was certified), removed (share of the weights) and claims (sentences).

    Raises PrunusError, with the line of the file, where the file, a model or a recipe is wrong, before anything is
    evaluated; also where another process holds the same folder or store.

        done = prunus.run_study("examples/tiny.toml", out="study")
        [other["verdict"] for other in done["comparisons"][0]["comparison"]["others"]]
    """
    study = read_study(file)
    paths = StudyPaths.of(study, out, store)
    cluster = cluster_for(study, ray, gpus_per_task, cpus_per_task)
    check_beforehand(study, paths.folder.exists())
    with paths.locked():
        models = open_models(study)
        check_variants(study, models, paths.folder, device)
        searches = open_searches(study, folders_of(models), paths.folder)
        check_searches(study, searches, paths.store, device)
        write_text(paths.folder / "study.toml", study.text)
        # Cells come first: their rows are then complete, so that searches add none to them and need not mark them.
        run_cells(study, models, paths, device, cluster)
        run_searches(searches, paths.store, device, cluster)
        if was_edited(study):
            progress.say(
                f"{study.path} was edited while the study ran, and these results are those of the earlier text:"
                " run the same command again"
            )
        with Store(paths.store) as opened:
            return write_results(study, models, paths, opened, [*map(state, searches)])


def report_study(file: str | Path, *, out: str | Path | None = None, store: str | Path | None = None) -> dict[str, Any]:
    """Write the pages of a study from the answers that are stored so far, and return the verdicts.

    It also works while the study runs; the pages say what is missing. Arguments and result are those of run_study.
    Raises PrunusError where no answer of a base is stored yet, or the file is wrong.
    """
    study = read_study(file)
    paths = StudyPaths.of(study, out, store)
    if not is_begun(paths.store):
        raise PrunusError(f"nothing of {study.path} is evaluated yet ({paths.store} does not exist): run it first")
    paths.folder.mkdir(parents=True, exist_ok=True)
    models = open_models(study)
    with Store(paths.store) as opened:
        searches = open_searches(study, folders_of(models), paths.folder)
        return write_results(study, models, paths, opened, [*map(state, searches)])


def folders_of(models: Sequence[Model]) -> dict[str, Path]:
    """{name: folder} of opened models."""
    return {model.name: model.checkpoint.folder for model in models}


def was_edited(study: Study) -> bool:
    """Whether the study's file has changed since it was read."""
    try:
        return study.path.read_text("utf-8") != study.text
    except (OSError, ValueError):
        return False


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
