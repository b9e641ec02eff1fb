"""Find the most compressed rung of a ladder that is certified to still solve and still stop."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunus import progress
from prunus.cards.certified import CERTIFICATE
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.writer import check_target
from prunus.disk import as_path, beside, locked, replace_folder, write_text
from prunus.errors import PrunusError
from prunus.evaluation.backends import check_installed
from prunus.evaluation.preflight import check_plan
from prunus.evaluation.resolved_plan import renew_groups
from prunus.evaluation.reused_rows import reuse_rows
from prunus.manifest import MANIFEST
from prunus.plain_data import canonical_json, parse_json
from prunus.pruning.calibration import check_calibration
from prunus.pruning.job import renew_card
from prunus.recipes import EvalPlan
from prunus.recipes.base import Recipe
from prunus.results.certificate import (
    MEANINGLESS,
    Certificate,
    Declaration,
    DeclaredRung,
    read_certificate,
    write_certificate,
)
from prunus.settings.engines import IN_FIND, EngineOptions, options_for
from prunus.settings.margins import MARGIN, MarginLike
from prunus.store.starts import mixed_line
from prunus.store.store import Store, check_folder
from prunus.studies.file import FindRules, FindTable
from prunus.studies.find.certificate import caution, certificate, files_of
from prunus.studies.find.decisions import SearchRows
from prunus.studies.find.forecast import SearchForecast, refuse_impossible, search_forecast
from prunus.studies.find.found import Found, found_of
from prunus.studies.find.page import NAME as PAGE
from prunus.studies.find.page import write_page
from prunus.studies.find.search import Search, ladder_by_bytes, ladders_of, open_search
from prunus.studies.find.trace import changes, declare_in, rung_differences, warning
from prunus.studies.find.walk import Rungs, Walk
from prunus.studies.ray import Cluster, cluster_for
from prunus.studies.variants import check_variants, missing_package, whole_checkpoint

WORK = "find.json"  # declares the search of a folder of unfinished work


Ladder = str | Path | Sequence[Recipe | Sequence[Recipe]] | None


def find(
    model: str | Path,
    out: str | Path,
    plan: EvalPlan,
    ladder: Ladder = None,
    *,
    methods: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    recovery: Mapping[str, Any] | None = None,
    margin: MarginLike = MARGIN,
    stop_margin: MarginLike = MARGIN,
    alpha: float = 0.05,
    most_tokens: int | None = None,
    look: int | None = None,
    store: str | Path = "results.db",
    device: str = "auto",
    options: EngineOptions | None = None,
    ray: str | None = None,
    gpus_per_task: float | None = None,
    cpus_per_task: float = 1,
    overwrite: bool = False,
) -> Found:
    """Write the most compressed certified version of a model to the folder out; returns what was found (docs/find.md).

    The rungs of a ladder are evaluated under the plan in their order, problem by problem, and compared with the dense
    model. A rung is certified once a loss of accuracy of `margin` or more, and of chains that end by themselves of
    `stop_margin` or more, are ruled out; the walk ends at the first rung that is not. The probability that any rung is
    certified that loses as much is at most alpha, for any number of rungs and problems (docs/certificates.md).
    The search is written into the store before it looks at a row, and the certificate names those before it.

        plan = prunus.EvalPlan(tasks=("tiny",), budgets=(64, 256), limit=20)
        found = prunus.find("tiny", "out", plan, "0.05,0.1", margin=0.2, stop_margin=0.2)
        print(found, found.claims)

    model: a folder, a model of the hub, or `tiny`.
    out: the folder that is written: the checkpoint, certificate.json, which `verify` checks against the rows, and
        find.html, which shows the search. Unfinished work is in out.finding: the same call goes on, and takes the same
        decisions.
    plan: with base_samples, the dense model has as many draws of each problem, and every rung `samples`.
    ladder: sparsities (`0.1:0.7:0.05` or `0.2,0.4`), a .toml file with tables of steps as in a study, or recipes, or
        several for each rung. None: without methods, in vllm and llama.cpp one by the bytes that they load; else
        0.1:0.7:0.05. In these engines every rung must load fewer bytes than the one before, unless one only has zeros.
    methods: for sparsities: each has its own ladder, walked at alpha divided by their number; None: wanda.
    settings: for sparsities: further fields of every PruneRecipe.
    recovery: settings of RecoverRecipe that differ from the pruning's, to recover every rung; None: no recovery.
    margin: the loss of accuracy to rule out, as a share (0.02: two points), or "5%": relative to what the dense model
        solves.
    stop_margin: the same for chains that end by themselves.
    alpha: the most that the probability of a false certificate may be.
    most_tokens: the search ends once the rows that were looked at took this many tokens; None: no limit.
    look: problems of the smallest task that are evaluated between two decisions; None: a batch of the engine.
    store: SQLite file of the results, created if missing; rows that it has are not computed again.
    device: `auto`, `cpu`, `cuda` or `cuda:1`.
    options: how the plan's engine is started or reached (docs/engines.md).
    ray: as for `study`; workers share the batches of a rung (docs/scale.md).
    gpus_per_task: as for `study`.
    cpus_per_task: as for `study`.
    overwrite: replace an existing result.

    Raises PrunusError for wrong input, before anything is computed.
    """
    rules = FindRules(margin, stop_margin, alpha, most_tokens, look)
    request = FindTable(ladder, methods, settings or {}, {}, recovery, rules)
    target, path = as_path(out), as_path(store, "store")
    search, ahead = _opened(model, target, plan, request, path, device, options, ray, overwrite)
    cluster = cluster_for(search.grid, ray, gpus_per_task, cpus_per_task)
    for line in ahead.lines:
        progress.say(line)
    refuse_impossible(ahead)
    return run_search(search, target, path, device, cluster, overwrite=overwrite)


def plan_find(
    model: str | Path,
    out: str | Path,
    plan: EvalPlan,
    ladder: Ladder = None,
    *,
    methods: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    recovery: Mapping[str, Any] | None = None,
    margin: MarginLike = MARGIN,
    stop_margin: MarginLike = MARGIN,
    alpha: float = 0.05,
    most_tokens: int | None = None,
    look: int | None = None,
    store: str | Path = "results.db",
    device: str = "auto",
    options: EngineOptions | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> SearchForecast:
    """Forecast of what `find` would take with the arguments, and which margins it could rule out; nothing is written.

        plan = prunus.EvalPlan(tasks=("tiny",), budgets=(64, 256), limit=20)
        print(prunus.plan_find("tiny", "out/found", plan, "0.05,0.1", margin=0.2, stop_margin=0.2))

    model: as of `find`.
    out: as of `find`.
    plan: as of `find`.
    ladder: as of `find`.
    methods: as of `find`.
    settings: as of `find`.
    recovery: as of `find`.
    margin: as of `find`.
    stop_margin: as of `find`.
    alpha: as of `find`.
    most_tokens: as of `find`.
    look: as of `find`.
    store: as of `find`.
    device: as of `find`.
    options: as of `find`.
    ray: as of `find`; no cluster is reached.
    overwrite: as of `find`.

    Raises PrunusError for what `find` would refuse.
    """
    rules = FindRules(margin, stop_margin, alpha, most_tokens, look)
    request = FindTable(ladder, methods, settings or {}, {}, recovery, rules)
    _, ahead = _opened(model, as_path(out), plan, request, as_path(store, "store"), device, options, ray, overwrite)
    for line in missing_package(check_installed, plan.backend):
        progress.say(f"not known yet: {line}")
    return ahead


def _opened(
    model: str | Path, target: Path, plan: EvalPlan, request: FindTable, store: Path, device: str,
    options: EngineOptions | None, ray: str | None, overwrite: bool,
) -> tuple[Search, SearchForecast]:  # fmt: skip
    """The search with its checked arguments, and what to expect of it; nothing is written."""
    if not isinstance(plan, EvalPlan):
        raise PrunusError(f"this takes EvalPlan, not {type(plan).__name__}")
    engine, text = options_for(plan.engine, options or EngineOptions()), None
    if request.ladder is None and not request.methods and plan.engine in IN_FIND:
        there = device if ray is None else None
        rungs, text = ladder_by_bytes(plan.engine, request, Checkpoint(resolve(model)), there)
        ladders = {plan.engine: rungs}
    else:
        ladders = ladders_of(request)
    check_plan(model, plan, engine, store)
    folder = work_folder(target)
    if not target.exists() and not folder.exists():  # else rungs may be made that need none any more
        source = resolve(model)
        for recipe in (recipe for entries in ladders.values() for entry in entries for recipe in entry.steps):
            check_calibration(recipe, source)
    search = open_search(model, plan, request, ladders, engine=engine)
    if not is_published(target, folder, search):
        check_target(resolve(model), target, overwrite)
    check_folder(store)
    check_work(folder, search, overwrite)
    check_variants(search.grid, [search.model], folder, device)
    return search, replace(search_forecast(search, store), ladder=text)


def run_search(
    search: Search,
    target: Path,
    store: Path,
    device: str,
    cluster: Cluster | None = None,
    *,
    overwrite: bool = False,
    always: bool = False,
) -> Found:
    """Carry out a search whose arguments were checked; returns the result of `find`.

    cluster: None: on this machine. always: whether target is written even if no rung is certified, with certificate and
    page alone.
    """
    folder = work_folder(target)
    if is_published(target, folder, search):
        certified = read_certificate(target / CERTIFICATE)
    else:
        open_work(folder, search)
        if cluster is not None:  # checkpoints are kept, since this machine need not be able to make them again
            search = replace(search, grid=replace(search.grid, keep_checkpoints=True))
        declared = search.declared
        with locked(folder / "lock", f"is working on {folder}; wait for it"), Store(store, create=True) as opened:
            renew_groups(opened, search.dense.resolved.problems)
            refuse_mixed(opened, search)
            for cell in (search.dense, *search.cells.values()):
                reuse_rows(opened, cell.resolved, in_part=True)  # before the search is declared, which names them
            declare_in(opened, declared)
            if (line := warning(opened, declared)) is not None:
                progress.say(f"warning: {line}")
            with closing(Rungs(search, opened, folder, device, cluster)) as rungs:
                best = Walk(search, SearchRows(opened, declared), rungs).run()
            certified, made = publish(search, best, opened, folder, device)
            for line in rung_differences(opened, declared):
                progress.say(f"warning: {line}")
            if best is not None or always:
                write_folder(certified, made, target, overwrite)
    shutil.rmtree(folder)
    if (wide := caution(certified.declared, certified.shown, certified.endings)) is not None:
        progress.say(f"warning: {wide}")
    return found_of(certified, target)


def refuse_mixed(store: Store, search: Search) -> None:
    """Raise PrunusError if rows of a run of the search were computed in several ways: no claim can rest on them."""
    runs = {search.dense.run_id, *search.cells}
    if line := mixed_line([run for run in store.runs() if run.run_id in runs]):
        raise PrunusError(f"{line}: name another --store, or remove the run by `prunus runs --remove`")


def work_folder(target: Path) -> Path:
    """The folder of unfinished work on target."""
    return beside(target, ".finding")


def publish(
    search: Search, best: DeclaredRung | None, store: Store, folder: Path, device: str
) -> tuple[Certificate, Path]:
    """(the certificate, the folder of the best rung's checkpoint); without a rung, a folder that is still to be made.

    The certificate is computed from rows alone, independently of the walk.
    """
    if best is None:
        return certificate(store, search.declared, None), folder / "nothing"
    variant = search.cells[best.run].variant
    made = whole_checkpoint(search.grid, search.model, variant, folder, device)
    if not variant.steps:  # the model itself, as another serving has it
        made = Path(shutil.copytree(made, folder / "dense", dirs_exist_ok=True))
    checksum = ModelFolder(made).checksum()
    if checksum != store.run(best.run).model.checksum:
        raise PrunusError(
            f"{made} has other weights than those that {store.path} has rows of (run {best.run}): name another --store"
        )
    data = certificate(store, search.declared, checksum, files_of(made))
    assert data.shown.found is not None and data.shown.found.name == best.name, "the walk and the certificate differ"
    return data, made


def write_folder(data: Certificate, made: Path, target: Path, overwrite: bool) -> None:
    """Write certificate and page to the folder `made`, renew its model card, and rename the folder to target."""
    made.mkdir(exist_ok=True)
    write_certificate(data, made / CERTIFICATE)
    write_page(data, made / PAGE)
    if (made / MANIFEST).exists():
        renew_card(made)
    replace_folder(made, target, overwrite)


def is_published(target: Path, folder: Path, search: Search) -> bool:
    """Whether this search was stopped after its result was written, before its unfinished work was deleted."""
    return is_of(folder / WORK, search) and is_finished(search, target)


def is_finished(search: Search, target: Path) -> bool:
    """Whether target has a certificate of this very search."""
    file = target / CERTIFICATE
    return file.exists() and read_certificate(file).declared.same_search(search.declared)


def is_of(file: Path, search: Search) -> bool:
    """Whether a file declares this very search."""
    return file.exists() and file.read_text("utf-8") == canonical_json(search.declared.to_json())


def check_work(folder: Path, search: Search, overwrite: bool) -> None:
    """Raise PrunusError if the folder has unfinished work of another search (unless overwrite)."""
    file = folder / WORK
    unfinished = folder.exists() and [path for path in folder.iterdir() if path.suffix != ".writing"]
    if overwrite or not unfinished or is_of(file, search):
        return
    try:
        differences = "; ".join(changes(Declaration.of(parse_json(file.read_text("utf-8"))), search.declared))
    except (OSError, PrunusError, *MEANINGLESS):
        raise PrunusError(f"{folder} exists and is no unfinished search: delete it, or name another output") from None
    raise PrunusError(f"{folder} holds an unfinished search ({differences}): delete it, or add --overwrite")


def open_work(folder: Path, search: Search) -> None:
    """Create the folder of unfinished work, or continue it; work of another search is deleted."""
    if folder.exists() and not is_of(folder / WORK, search):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / WORK, canonical_json(search.declared.to_json()))
