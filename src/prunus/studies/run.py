"""Run a study: the cells that are missing, with a first batch of every variant early, then its searches; report it.

A report has verdicts for each model and plan, on one page or several.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from prunus import progress
from prunus.disk import write_text
from prunus.errors import PrunusError
from prunus.evaluation.resolved_plan import renew_groups
from prunus.evaluation.reused_rows import reuse_rows
from prunus.plain_data import content_hash
from prunus.reporting.page import check_page_file, write_report
from prunus.reporting.render.table import word
from prunus.reporting.render.text import esc, joined, linked, points, top, whole_page
from prunus.reporting.report_data import ReportData
from prunus.results.cells import Comparison
from prunus.results.comparison import compare
from prunus.results.words import verdict_in_words
from prunus.store.store import Store, is_begun
from prunus.studies.cells import Model, check_beforehand, open_models, plan_names
from prunus.studies.engine import run_here
from prunus.studies.file import Study, read_study
from prunus.studies.find.tables import SearchState, StudySearch, check_searches, open_searches, run_searches, state
from prunus.studies.ray import Cluster, cluster_for
from prunus.studies.ray.driver import run_on_ray
from prunus.studies.records import PlanContrast, StudyResult
from prunus.studies.variants import MAKING, StudyPaths, check_variants

# Settings of a plan that may follow from its mode.
OF_MODE = {"mode", "profile", "strings", "answer_tokens", "context", "end_ids", "temperature", "top_p", "top_k"}


def study(
    file: str | Path,
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    ray: str | None = None,
    gpus_per_task: float | None = None,
    cpus_per_task: float = 1,
    mixed: bool = False,
    batches: int | None = None,
) -> StudyResult:
    """Run the study of a TOML file: evaluate what is missing, write the page OUT/report.html, and return the verdicts.

        done = prunus.study("examples/tiny.toml", out="study")
        print(done, done.report)

    The same call resumes a study that was stopped at any time; only the batch that was being computed is repeated.

    file: TOML (docs/study.md).
    out: folder for everything that the study writes, by default `study-NAME` in the current folder.
    store: SQLite file of the results, by default `results.db` in that folder.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    ray: HOST:PORT of a Ray cluster to run on, or `auto` (docs/scale.md); the rows are the same as those of a local run.
    gpus_per_task: GPUs of each Ray worker, by default 1 where the cluster has any.
    cpus_per_task: CPUs of each Ray worker.
    mixed: as for `evaluate`.
    batches: of a study that goes by batch, stop after so many of them; None: answer all.

    Raises PrunusError, with the line of the file, where the file, a model or a recipe is wrong, before anything is
    evaluated; also where another process holds the same folder or store.
    """
    study = replace(read_study(file), mixed=mixed)
    check_batches(study, batches, ray)
    paths = StudyPaths.of(study, out, store)
    cluster = cluster_for(study, ray, gpus_per_task, cpus_per_task)
    check_beforehand(study, paths.folder.exists())
    with paths.locked():
        models = open_models(study)
        check_variants(study, models, paths.folder, device)
        searches = open_searches(study, folders_of(models), paths)
        check_searches(study, searches, paths.store, device)
        write_text(paths.folder / "study.toml", study.text)
        # Cells come first: their rows are then complete, so that searches add none to them and need not mark them.
        run_cells(study, models, paths, device, cluster, batches)
        if batches is None:
            run_searches(searches, paths.store, device, cluster)
        if was_edited(study):
            progress.say(
                f"{study.path} was edited while the study ran, and these results are those of the earlier text:"
                " run the same command again"
            )
        with Store(paths.store) as opened:
            return write_results(study, models, paths, opened, searches)


def report_study(file: str | Path, *, out: str | Path | None = None, store: str | Path | None = None) -> StudyResult:
    """Write the pages of a study from the answers that are stored so far, and return the verdicts.

        print(prunus.report_study("examples/tiny.toml", out="study").report)

    It also works while the study runs; the pages say what is missing.

    file: TOML (docs/study.md).
    out: the folder of the study, by default `study-NAME` in the current folder.
    store: SQLite file of the results, by default `results.db` in that folder.

    Raises PrunusError where no answer of a base is stored yet, or the file is wrong.
    """
    study = read_study(file)
    paths = StudyPaths.of(study, out, store)
    if not is_begun(paths.store):
        raise PrunusError(f"nothing of {study.path} is evaluated yet ({paths.store} does not exist): run it first")
    paths.folder.mkdir(parents=True, exist_ok=True)
    models = open_models(study)
    with Store(paths.store) as opened:
        searches = open_searches(study, folders_of(models), paths)
        return write_results(study, models, paths, opened, searches)


def folders_of(models: Sequence[Model]) -> dict[str, Path]:
    """{name: folder} of opened models."""
    return {model.name: model.checkpoint.folder for model in models}


def was_edited(study: Study) -> bool:
    """Whether the study's file has changed since it was read."""
    try:
        return study.path.read_text("utf-8") != study.text
    except (OSError, ValueError):
        return False


def check_batches(study: Study, batches: int | None, ray: str | None) -> None:
    """Raise PrunusError for a number of batches that does not fit the study, or for a study by batch on Ray."""
    if batches is not None and batches < 1:
        raise PrunusError(f"batches must be at least 1, not {batches}")
    if batches is not None and not study.by_batch:
        raise PrunusError(f"{study.path} goes by variant: add by_batch = true to its top, or leave --batches out")
    if study.by_batch and ray is not None:
        raise PrunusError(f"{study.path} goes by batch, each on one machine: leave by_batch or --ray out")


def run_cells(
    study: Study,
    models: Sequence[Model],
    paths: StudyPaths,
    device: str,
    cluster: Cluster | None,
    batches: int | None = None,
) -> None:
    """Evaluate every missing cell, here or on a Ray cluster. batches: as for `study`."""
    with Store(paths.store, create=True) as opened:
        for cell in [cell for model in models for cell in model.cells_of(model.variants[0])]:
            renew_groups(opened, cell.resolved.problems)
        for cell in [cell for model in models for cell in model.cells]:
            reuse_rows(opened, cell.resolved)
            opened.name_serving(cell.run_id, cell.served_as)
        if cluster is None:
            run_here(study, models, paths.folder, opened, device, batches)
        else:
            run_on_ray(study, models, paths.folder, opened, device, cluster)
        shutil.rmtree(paths.folder / MAKING, ignore_errors=True)


def write_results(
    study: Study, models: Sequence[Model], paths: StudyPaths, store: Store, opened: Sequence[StudySearch]
) -> StudyResult:
    """Compare every variant with the base, write the pages, and return the result of `study`.

    opened: the searches, which the pages name. Raises PrunusError if no base has an answer yet.
    """
    wanted, searches = {cell.run_id for model in models for cell in model.cells}, [*map(state, opened)]
    known = wanted.union(*(planned.search.cells for planned in opened))
    unreported = [run.run_id for run in store.runs() if run.run_id not in known]
    if unreported:
        progress.say(
            f"{len(unreported)} runs in {paths.store} are not (or no longer) in {study.path}: "
            "they stay in the store and are not reported"
        )
    contrasts = contrasts_of(study, models, store)
    groups = by_page([contrast for contrast in contrasts if contrast.started], store)
    if not groups:
        raise PrunusError(f"'{study.base}', with which the others are compared, has no answers yet: run it first")
    single = len(groups) == 1 and len(study.models) == 1
    pages: dict[Path, list[PlanContrast]] = {}
    for number, group in enumerate(groups, 1):
        page = paths.page if single else paths.folder / f"report-{number}.html"
        pages[page] = write_page(study, store, group, page, searches)
    if not single:
        waiting = [contrast for contrast in contrasts if not contrast.started]
        write_text(paths.page, contents(study.name, pages, waiting, links_of(searches, paths.folder)))
    finished = {contrast.base: contrast for group in pages.values() for contrast in group}
    return StudyResult(
        name=study.name,
        out=str(paths.folder),
        store=str(paths.store),
        report=str(paths.page),
        cells=len(wanted),
        unreported=unreported,
        comparisons=[finished.get(contrast.base, contrast) for contrast in contrasts],
        searches=searches,
    )


def contrasts_of(study: Study, models: Sequence[Model], store: Store) -> list[PlanContrast]:
    """One contrast for each model and plan."""
    started = {run.run_id for run in store.runs_with_rows()}
    contrasts = []
    for model in models:
        for number, name in enumerate(plan_names(study.plans)):
            cells = [cell for cell in model.cells if cell.plan == number and not cell.is_control]
            again = [cell.run_id for cell in model.cells if cell.plan == number and cell.is_control]
            base, *others = sorted(cells, key=lambda cell: not cell.is_base(study))
            contrasts.append(
                PlanContrast(
                    model=model.name,
                    plan=name,
                    base=base.run_id,
                    comparison=None,
                    not_started=tuple(cell.name for cell in (base, *others) if cell.run_id not in started),
                    started=base.run_id in started,
                    others=tuple(cell.run_id for cell in others if cell.run_id in started),
                    controls=tuple(again),
                )
            )
    return contrasts


def by_page(contrasts: Sequence[PlanContrast], store: Store) -> list[list[PlanContrast]]:
    """The contrasts in groups that share a page: those of the same model whose plans differ only by OF_MODE."""
    groups: dict[str, list[PlanContrast]] = {}
    for contrast in contrasts:
        plan = {key: value for key, value in store.run(contrast.base).plan.data.items() if key not in OF_MODE}
        groups.setdefault(content_hash([contrast.model, plan]), []).append(contrast)
    return list(groups.values())


def links_of(searches: Sequence[SearchState], folder: Path) -> list[tuple[str, str]]:
    """(sentence, address of find.html) of each search; no address where there is no page yet. folder: of the study."""
    several = len({(search.model, search.plan) for search in searches}) > 1
    return [
        (
            f"{title_of(search)}: {search.sentence}" if several else search.sentence,
            "" if search.page is None else quote(Path(search.page).relative_to(folder).as_posix()),
        )
        for search in searches
    ]


def write_page(
    study: Study, store: Store, group: Sequence[PlanContrast], target: Path, searches: Sequence[SearchState]
) -> list[PlanContrast]:
    """Write the page of a model, and return its contrasts with their comparisons.

    The page compares the runs of one mode, strict if there are two. Its comparison is returned as it is, since
    computing it twice would double the time. searches: of the study.
    """
    check_page_file(target, overwrite=True)
    modes = {contrast.base: store.run(contrast.base).plan.mode for contrast in group}
    base = next((run for run, mode in modes.items() if mode == "strict"), group[0].base)
    shown = {run for contrast in group for run in (contrast.base, *contrast.others, *contrast.controls)}
    margin, stop_margin = study.margin, study.stop_margin
    data = ReportData.read(store, shown, base=base, margin=margin, stop_margin=stop_margin, published=study.published)
    notes = [
        f"Not started{f' ({contrast.plan})' if contrast.plan else ''}: {joined(list(contrast.not_started), most=12)}."
        for contrast in group
        if contrast.not_started
    ]
    of = {(contrast.model, contrast.plan) for contrast in group}
    links = links_of([search for search in searches if (search.model, search.plan) in of], target.parent)
    write_report(data, target, overwrite=True, name=study.name, notes=notes, links=links)

    def comparison(contrast: PlanContrast) -> Comparison | None:
        if contrast.base == base or not contrast.others:
            return among(data.comparison, contrast.others)
        return compare(store.path, contrast.base, contrast.others, margin=margin, stop_margin=stop_margin)

    return [replace(contrast, comparison=comparison(contrast)) for contrast in group]


def among(comparison: Comparison, others: Sequence[str]) -> Comparison | None:
    """A comparison restricted to these runs, in this order; None if it has none of them."""
    entries = {entry.run: entry for entry in comparison.others}
    kept = [entries[run] for run in others if run in entries]
    about_all = [text for text in comparison.warnings if " is left out: " not in text]
    return replace(comparison, others=kept, warnings=about_all) if kept else None


def contents(
    name: str,
    pages: Mapping[Path, Sequence[PlanContrast]],
    waiting: Sequence[PlanContrast],
    searches: Sequence[tuple[str, str]] = (),
) -> str:
    """The HTML of the page that links to the others and lists every verdict.

    name: of the study. pages: what they show. waiting: contrasts without a page. searches: as links_of returns them.
    """
    parts = []
    for file, shown in pages.items():
        title = ", ".join(dict.fromkeys(map(title_of, shown)))
        rows = "".join(f"<li>{line}</li>" for contrast in shown for line in verdict_lines(contrast))
        parts.append(f'<h2><a href="{esc(file.name)}"><bdi>{esc(title)}</bdi></a></h2><ul class="notes">{rows}</ul>')
    if waiting:
        names = ", ".join(dict.fromkeys(map(title_of, waiting)))
        parts.append(f"<p>Not started: <bdi>{esc(names)}</bdi>.</p>")
    if searches:
        parts.append("<h2>Searches</h2>" + "".join(f"<p>{linked(*search)}</p>" for search in searches))
    sections = "".join(f"<section>{part}</section>" for part in parts)
    facts = f"{len(pages)} page{'s' * (len(pages) != 1)}, each about one model"
    return whole_page(name, f'{top(facts, name)}<main><div class="pair">{sections}</div></main>', {})


def title_of(subject: PlanContrast | SearchState) -> str:
    """The name of a model and a plan, such as `tiny strict`."""
    return f"{subject.model} {subject.plan}".strip()


def verdict_lines(contrast: PlanContrast) -> list[str]:
    """A line of HTML for each variant, such as `tiny/wanda-20: not decided (-1.2 points)`."""
    if contrast.comparison is None:
        return ["nothing to compare with yet" if contrast.not_started else "nothing to compare with"]
    return [
        f"<bdi>{esc(other.model)}</bdi>: {word(other.verdict.shown, verdict_in_words(other))} "
        f"({points(other.primary.difference)} points)"
        for other in contrast.comparison.others
    ]
