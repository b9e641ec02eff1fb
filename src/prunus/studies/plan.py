"""The plan of a study: its cells, how much of them is done, and the tokens and disk that the rest takes."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import HUB_PATTERNS, is_hub_id, typed_path
from prunus.errors import PrunusError
from prunus.evaluation.backends import check_installed
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.reused_rows import stored_keys
from prunus.evaluation.tasks import TASKS, load_task
from prunus.questions import is_gated
from prunus.recipes import EvalPlan
from prunus.statistics import power
from prunus.statistics.least_margin import in_words
from prunus.step import kind_of
from prunus.steps.chain import with_sources
from prunus.store.store import Store, is_begun
from prunus.studies.cells import (
    DENSE,
    Model,
    Variant,
    cell_name,
    chain_tokens,
    check_distinct,
    checkpoint_of,
    folder_of,
    open_model,
    plan_names,
    tokens_per_chain,
    variant_names,
    variants_of,
)
from prunus.studies.file import Study, read_study
from prunus.studies.find.tables import open_searches, state
from prunus.studies.records import PlannedCell, PlannedVariant, StudyPlan, Totals
from prunus.studies.variants import StudyPaths, check_variants, is_made, missing_package

TEXT_BYTES = 5  # in the store, per token of text


def plan_study(
    file: str | Path,
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    device: str = "auto",
) -> StudyPlan:
    """The plan of what `study` would do with the same arguments; nothing is run, written or downloaded.

        print(prunus.plan_study("examples/tiny.toml").totals.tokens)

    file: TOML (docs/study.md).
    out: folder for everything that the study writes, by default `study-NAME` in the current folder.
    store: SQLite file of the results, by default `results.db` in that folder.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.

    Raises PrunusError, with the line of the file, where the file, a model or a recipe is wrong.
    """
    study = read_study(file)
    paths = StudyPaths.of(study, out, store)
    unread = unread_tasks(study)
    folders = {name: local_folder(study, name) for name in study.models}
    here = {name: folder for name, folder in folders.items() if folder is not None and not unread}
    unknown = unknown_lines(unread, [name for name, folder in folders.items() if folder is None])
    unknown += missing_package(check_installed, study.backend)
    cells: list[PlannedCell] = []
    variants: list[PlannedVariant] = []
    opened: list[Model] = []
    disk = 0
    for name, folder in folders.items():
        if name in here:
            opened.append(model := open_model(study, name, here[name]))
            check_distinct(study, opened)
            cells += planned_cells(study, model, paths)
            unknown += missing_package(check_variants, study, [model], paths.folder, device)
            missing: list[tuple[Variant, int]] = []
            for variant in model.variants[1:]:
                made, size = is_made(paths.folder, variant), variant_bytes(model.source, variant)
                variants.append(PlannedVariant(model=name, variant=variant.name, made=made, bytes=size))
                missing += [] if made else [(variant, size)]
            disk += disk_of(study, model, missing)
        else:
            if folder is not None:
                variants_of(study, checkpoint_of(study, folder))
            cells += cells_not_here(study, name, unread)
    searches = open_searches(study, here if study.finds else {}, paths)
    absent = [name for name in folders if study.finds and name not in here]
    unknown += [f"what the searches of {name} take, for the same reason" for name in absent]
    tokens = sum(line.tokens or 0 for line in cells)
    return StudyPlan(
        name=study.name,
        out=str(paths.folder),
        store=str(paths.store),
        cells=cells,
        variants=variants,
        totals=Totals(
            cells=len(cells),
            complete=sum(line.done == line.answers for line in cells),
            answers=sum(line.answers or 0 for line in cells),
            done=sum(line.done for line in cells),
            tokens=tokens,
            disk=disk + TEXT_BYTES * tokens if len(here) == len(folders) else None,
        ),
        margins=[line for model in opened for line in margins(study, model)],
        advice=[line for model in opened for line in advice(study, model, cells)],
        gated=[task for task in TASKS if is_gated(task) and any(task in plan.tasks for plan in study.plans)],
        unknown=unknown,
        searches=[state(search, paths.store) for search in searches],
    )


def disk_of(study: Study, model: Model, missing: Sequence[tuple[Variant, int]]) -> int:
    """The most bytes of disk that making these variants adds. missing: variants with the bytes of their own files.

    Whole checkpoints are added: one from which files are made (or all if the study keeps them), and one for each
    intermediate step of the variant with the most steps.
    """
    if not missing:
        return 0
    between = max(len(variant.steps) - 1 for variant, _ in missing)
    checkpoints = between + (len(missing) if study.keep_checkpoints else 1)
    return sum(size for _, size in missing) + checkpoints * model.checkpoint.nbytes


def unknown_lines(unread: Mapping[str, str], absent: Sequence[str]) -> list[str]:
    """A line about tasks and one about models that are not on this machine, if there are any."""
    lines = []
    if unread:
        reason = next(iter(unread.values()))
        lines.append(f"the problems of {', '.join(unread)}, which are taken to be as many as declared ({reason})")
    if uncounted := [task for task in unread if TASKS[task].problems is None]:
        lines.append(f"how many problems {', '.join(uncounted)} has, so that no total counts them")
    if absent:
        fit, are = ("fits", "it is") if len(absent) == 1 else ("fit", "they are")
        lines.append(f"whether {', '.join(absent)} {fit} the budgets and recipes, since {are} not downloaded yet")
    return lines


def unread_tasks(study: Study) -> dict[str, str]:
    """{task: reason} for each problem set that cannot be read here. Raises PrunusError for an unknown task."""
    reasons = {}
    for task in dict.fromkeys(task for plan in study.plans for task in plan.tasks):
        try:
            load_task(task)
        except PrunusError as error:
            if task not in TASKS:
                study.fail(study.eval_line, str(error))
            reasons[task] = str(error)
    return reasons


def local_folder(study: Study, model: str) -> Path | None:
    """The folder of a model; None for a model of the hub that is not downloaded. Raises PrunusError for any other."""
    if typed_path(model).exists() or not is_hub_id(model):
        return folder_of(study, model)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, allow_patterns=HUB_PATTERNS, local_files_only=True))
        Checkpoint(folder)
    except Exception:  # the hub client raises errors of several libraries, and a partial download cannot be opened
        return None
    return folder


def cells_not_here(study: Study, model: str, unread: Container[str]) -> Iterator[PlannedCell]:
    """Plan every cell of a model that cannot be opened, since it or a task is not on this machine.

    Numbers that depend on what is missing are None. unread: the tasks whose problems cannot be read here.
    """
    for plan, name in zip(study.plans, plan_names(study.plans), strict=True):
        sizes = [size_of(task, plan, task not in unread) for task in plan.tasks]
        problems = total(None if size is None else size[0] for size in sizes)
        served, names = [serving.name for serving in study.servings], variant_names(study.entries)
        there = [(DENSE, served), *zip(names, (entry.servings or served for entry in study.entries), strict=True)]
        cells = [(variant, serving, False) for serving in served for variant, of in there if serving in of]
        cells += [(DENSE, served[0], True)] * plan.aa_control
        for variant, serving, again in cells:
            draws = plan.draws(of_base=not again and variant == study.base and serving == served[0])
            answers = None if problems is None else problems * draws * len(plan.budgets)
            tokens = total(None if size is None else draws * size[0] * size[1] for size in sizes)
            yield PlannedCell(
                model=model,
                variant=cell_name(variant, serving, again),
                plan=name,
                run=None,
                problems=problems,
                answers=answers,
                done=0,
                tokens=tokens,
                tokens_expected=None,
            )


def size_of(task: str, plan: EvalPlan, is_here: bool) -> tuple[int, int] | None:
    """(problems, most tokens of a chain) of a task under a plan; None for one that is not here and declares no number.

    is_here: whether the problems can be read on this machine.
    """
    if is_here:
        problems = load_task(task)
        number, kind = len(problems), problems[0].kind
    else:
        number, kind = TASKS[task].problems, TASKS[task].kind
    if number is None:
        return None
    cap = plan.answer_tokens or PROFILES["s1"].answer_cap(kind, plan.mode)  # that of all profiles but `tiny`
    return min(number, plan.limit or number), chain_tokens(plan, plan.budgets, len(plan.budgets) * cap)


def total(numbers: Iterable[int | None]) -> int | None:
    """The sum of some numbers; None if one of them is None."""
    known = list(numbers)
    return None if None in known else sum(number for number in known if number is not None)


def planned_cells(study: Study, model: Model, paths: StudyPaths) -> Iterator[PlannedCell]:
    """The cells of a model that is on this machine, with the number of answers that the store has of each."""
    with Store(paths.store) if is_begun(paths.store) else nullcontext() as store:
        stored = {cell.run_id: store.samples(cell.run_id) if store else [] for cell in model.cells}
        for cell in model.cells:
            work, plan = cell.resolved, study.plans[cell.plan]
            there = stored_keys(store, work) if store else set()
            missing = [batch for batch in work.batches if not work.keys(batch) <= there]
            chains = [index for batch in missing for index, _ in batch]
            alike = [stored[other.run_id] for other in model.cells if other.plan == cell.plan]
            mean = tokens_per_chain([stored[cell.run_id]], plan.reuse) or tokens_per_chain(alike, plan.reuse)
            yield PlannedCell(
                model=model.name,
                variant=cell.name,
                plan=plan_names(study.plans)[cell.plan],
                run=work.run_id,
                problems=len(work.problems),
                answers=sum(map(len, work.batches)) * len(work.budgets),
                done=len(there),
                tokens=sum(chain_tokens(plan, work.budgets, work.answers_at_most(index)) for index in chains),
                tokens_expected=None if mean is None else mean * len(chains),
            )


def margins(study: Study, model: Model) -> Iterator[str]:
    """A line for each plan that compares variants: which loss its problems can rule out at best."""
    for number, plan in enumerate(study.plans):
        first, *others = [cell for cell in model.cells if cell.plan == number and not cell.is_control]
        if others:
            line = in_words(first.resolved.groups, first.resolved.budgets, plan.samples, len(others))
            yield f"{title(study, model, number)}: {line}"


def title(study: Study, model: Model, number: int) -> str:
    """The name of a model and a plan, such as `tiny strict`."""
    return " ".join(part for part in (model.label, plan_names(study.plans)[number]) if part)


def advice(study: Study, model: Model, planned: Sequence[PlannedCell]) -> Iterator[str]:
    """A line for each plan whose base should have more draws; none where another variant has answers already.

    planned: all cells of the study.
    """
    lines = {line.run: line for line in planned if line.model == model.name}
    for number, plan in enumerate(study.plans):
        cells = [cell for cell in model.cells if cell.plan == number and not cell.is_control]
        work, others = cells[0].resolved, [cell for cell in cells if not cell.is_base(study)]
        # Draws of greedy decoding are equal; and more draws after results were seen cost more than they gain.
        if work.plan.temperature == 0 or any(lines[cell.run_id].done for cell in others):
            continue
        problems, draws = len(work.problems), plan.draws(of_base=True)
        if (more := power.more_of_base(len(others), problems, plan.samples, draws)) is None:
            continue
        most = (chain_tokens(plan, work.budgets, work.answers_at_most(index)) for index in range(problems))
        tokens = sum(most) / problems
        yield (
            f"{title(study, model, number)}: with base_samples = {more.draws} instead of {draws}, the detectable loss"
            f" (spread evenly over problems) is {100 * (1 - more.ratio):.0f} % smaller, for at most"
            f" {more.chains * tokens:,.0f} tokens more; {more.problems:,} problems instead of {problems:,} would do the"
            f" same for {more.chains_of_problems * tokens:,.0f}"
        )


def variant_bytes(source: Checkpoint, variant: Variant) -> int:
    """The most bytes of a variant's file, or of its checkpoint if it is loaded whole."""
    steps = [(kind_of(recipe), recipe, before) for recipe, before in with_sources(source, variant.steps)]
    sizes = [(kind.reshapes, kind.nbytes(recipe, before)) for kind, recipe, before in steps]
    return min(size for reshapes, size in sizes if reshapes) if variant.is_whole else max(size for _, size in sizes)
