"""Carry out several steps, in turn."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, overload

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.writer import check_target
from prunus.disk import as_path, beside
from prunus.errors import PrunusError
from prunus.manifest import MANIFEST, read_manifest
from prunus.pruning.calibration import check_calibration
from prunus.pruning.calibration.data import check_kept
from prunus.pruning.gguf import check_out
from prunus.recipes import (
    DropRecipe,
    ExpertsRecipe,
    GgufRecipe,
    PruneRecipe,
    QuantizeRecipe,
    RecoverRecipe,
    WidthRecipe,
)
from prunus.recipes.base import Calibrated, Recipe
from prunus.step import STEPS, Made, Planned, StepOptions, action_of, kind_of, step_kind, steps_name, with_defaults

if TYPE_CHECKING:
    from prunus.pruning.drop import PlannedDrop
    from prunus.pruning.experts.experts import PlannedExperts
    from prunus.pruning.gguf import PlannedGguf
    from prunus.pruning.prune.prune import PlannedPrune
    from prunus.pruning.quantize import PlannedQuantize
    from prunus.pruning.recover.recover import PlannedRecover
    from prunus.pruning.width.width import PlannedWidth


def apply_steps(
    model: str | Path,
    out: str | Path,
    steps: Sequence[Recipe],
    *,
    device: str = "auto",
    offload: bool = False,
    overwrite: bool = False,
) -> Made:
    """Write model after all steps to the folder out; returns what the last one made.

        steps = [prunus.PruneRecipe(sparsity=0.5), prunus.RecoverRecipe()]
        made = prunus.apply_steps("tiny", "wanda-50-recovered", steps)

    model: a folder, a hub id or `tiny`.
    out: the folder to write.
    steps: PruneRecipe, DropRecipe, ExpertsRecipe, WidthRecipe and RecoverRecipe in any sensible order, and at last
        possibly a QuantizeRecipe, a GgufRecipe or both; a recovery comes near to model. What single steps leave is in
        out.after-1, out.after-2 and so on until the last is done; the same call resumes any of them.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    offload: keep hidden states on disk instead of in memory.
    overwrite: replace an existing result.

    Raises PrunusError as the single steps do, and for steps that make no sense in this order.
    """
    target, steps = as_path(out), checked_steps(model, steps)

    def between(count: int) -> Path:
        return beside(target, f".after-{count}")

    made = run_steps(model, target, steps, StepOptions(device=device, offload=offload, overwrite=overwrite), between)
    for count in range(1, len(steps)):
        shutil.rmtree(between(count), ignore_errors=True)
    return made


Model = str | Path
Out = str | Path | None


class PlanArgs(TypedDict, total=False):
    """Options of `plan` besides model, recipe and folder."""

    device: str
    offload: bool
    overwrite: bool
    stats: str | Path | None
    dense: str | Path | None


@overload
def plan(model: Model, recipe: PruneRecipe, out: Out = None, **options: Unpack[PlanArgs]) -> "PlannedPrune": ...
@overload
def plan(model: Model, recipe: DropRecipe, out: Out = None, **options: Unpack[PlanArgs]) -> "PlannedDrop": ...
@overload
def plan(model: Model, recipe: ExpertsRecipe, out: Out = None, **options: Unpack[PlanArgs]) -> "PlannedExperts": ...
@overload
def plan(model: Model, recipe: WidthRecipe, out: Out = None, **options: Unpack[PlanArgs]) -> "PlannedWidth": ...
@overload
def plan(model: Model, recipe: RecoverRecipe, out: Out = None, **options: Unpack[PlanArgs]) -> "PlannedRecover": ...
@overload
def plan(model: Model, recipe: QuantizeRecipe, out: Out = None, **options: Unpack[PlanArgs]) -> "PlannedQuantize": ...
@overload
def plan(model: Model, recipe: GgufRecipe, out: Out = None, **options: Unpack[PlanArgs]) -> "PlannedGguf": ...
@overload
def plan(model: Model, recipe: Recipe | Sequence[Recipe], out: Out = None, **options: Unpack[PlanArgs]) -> Planned: ...
def plan(
    model: str | Path,
    recipe: Recipe | Sequence[Recipe],
    out: str | Path | None = None,
    *,
    device: str = "auto",
    offload: bool = False,
    overwrite: bool = False,
    stats: str | Path | None = None,
    dense: str | Path | None = None,
) -> Planned:
    """Plan of a step, or of several as for `apply_steps`: what would be written, and what it takes. Nothing is written.

        print(prunus.plan("tiny", prunus.PruneRecipe(sparsity=0.5)))

    For several steps it is the plan of the first, with the warnings of all and, for a recovery, `then`: what it would
    do. The other steps are tried on the model that the steps before them will leave, as far as shapes tell.

    model: a folder, a hub id or `tiny`.
    recipe: of the step, such as PruneRecipe, or of several.
    out: as of the step; None: a folder here with the name of the steps.
    device: as of the step.
    offload: as of the step.
    overwrite: as of the step.
    stats: of a single step: a file of statistics.
    dense: of a single step: the model before all steps.

    Raises PrunusError as the step does.
    """
    if isinstance(recipe, Sequence):
        steps = checked_steps(model, recipe)
    else:
        check_kinds(steps := [recipe])
    target = as_path(steps_name(steps) if out is None else out)
    stats = None if stats is None else as_path(stats, "stats")
    options = StepOptions(device=device, offload=offload, overwrite=overwrite, stats=stats, dense=dense)
    if isinstance(recipe, Recipe):
        return kind_of(recipe).plan(model, target, recipe, options)
    if stats is not None or dense is not None:
        raise PrunusError("stats and dense are of a single step: give its recipe alone, or leave them out")
    open_source(
        model, target, steps, options, [*(beside(target, f".after-{count}") for count in range(1, len(steps))), target]
    )
    return plan_steps(model, target, steps, options)


def checked_steps(model: str | Path, steps: Sequence[Recipe]) -> Sequence[Recipe]:
    """The steps with their defaults. Raises PrunusError where they make no sense on this model."""
    folder = resolve(model)
    check_kinds(steps)
    steps = with_defaults(steps, read_manifest(folder).history)
    check_steps(steps, folder)
    return steps


def open_source(
    model: str | Path, target: Path, steps: Sequence[Recipe], options: StepOptions, folders: Sequence[Path]
) -> Checkpoint:
    """The Checkpoint to which steps are applied. Raises PrunusError if calibration or the folder target is unusable.

    folders: of the results of the first 1, 2, ... steps; a step whose result is there needs no calibration.
    """
    check_last(steps)
    for recipe, folder in zip(steps, folders, strict=True):
        if folder == target or not (folder / MANIFEST).exists():
            check_calibration(recipe, model, folder)
    source = Checkpoint(resolve(model))
    check = check_out if kind_of(steps[-1]).changes_form else check_target
    check(source.folder, target, options.overwrite)
    return source


def check_kinds(steps: object) -> None:
    """Raise PrunusError unless these are recipes of steps, such as PruneRecipe."""
    if not isinstance(steps, Sequence):
        raise PrunusError(f"steps must be a list of recipes, not {type(steps).__name__}")
    known = [step_kind(action).recipe for action in STEPS]
    for step in steps:
        if type(step) not in known:
            names = ", ".join(kind.__name__ for kind in known)
            raise PrunusError(f"no step is made by {type(step).__name__}: take {names}")


def run_steps(
    model: str | Path, target: Path, steps: Sequence[Recipe], options: StepOptions, between: Callable[[int], Path]
) -> Made:
    """Apply steps, with the results of the first 1, 2, ... steps in folders that `between` names, which stay.

    Work starts from the last of these that is complete.
    """
    folders = [*(between(count) for count in range(1, len(steps))), target]
    source = open_source(model, target, steps, options, folders)
    check_removal(source, steps)
    for recipe, before in islice(with_sources(source, steps), 1, None):  # raises PrunusError before hours of work
        kind_of(recipe).preview(recipe, before, target, options)
    checksum = source.checksum() if len(steps) > 1 else ""
    done = next((n for n in range(len(steps) - 1, 0, -1) if is_made(folders[n - 1], checksum, steps[:n])), 0)
    for (recipe, before), folder in islice(zip(with_sources(source, steps), folders, strict=True), done):
        if isinstance(recipe, Calibrated) and kind_of(recipe).calibrates(recipe):
            check_kept(recipe, before, folder)
    made: Made | None = None
    for count, recipe in enumerate(steps[done:], done + 1):
        before, name = (folders[count - 2], steps_name(steps[: count - 1])) if count > 1 else (model, None)
        there = replace(options, dense=None if count == 1 else model)
        made = kind_of(recipe).make(before, folders[count - 1], recipe, there, name)
    assert made is not None  # at least the last step is left
    return made


def plan_steps(model: str | Path, target: Path, steps: Sequence[Recipe], options: StepOptions) -> Planned:
    """Preview of steps, as far as the model before them tells what they would do."""
    check_last(steps)
    source = Checkpoint(resolve(model))
    check_removal(source, steps)
    planned = kind_of(steps[0]).plan(model, target, steps[0], options)
    for recipe, before in islice(with_sources(source, steps), 1, None):
        planned = planned.followed_by(kind_of(recipe).preview(recipe, before, target, options))
    return planned


def with_sources(source: Checkpoint, steps: Sequence[Recipe]) -> Iterator[tuple[Recipe, Checkpoint]]:
    """Yield every step with what the steps before it will make of source (Step.planned)."""
    yield steps[0], source
    for before, recipe in pairwise(steps):
        source = kind_of(before).planned(before, source)
        yield recipe, source


def bytes_after(steps: Sequence[Recipe], source: Checkpoint) -> int:
    """The bytes that an engine loads of source after these steps, as far as shapes tell them."""
    *_, (last, before) = with_sources(source, steps)
    kind = kind_of(last)
    return kind.nbytes(last, before) if kind.is_last else sum(kind.planned(last, before).engine_bytes.values())


def planned_after(steps: Sequence[Recipe], source: Checkpoint) -> Checkpoint:
    """The model that an engine runs after these steps, as far as shapes tell; a step that is_last is left out."""
    *_, (last, before) = with_sources(source, steps)
    kind = kind_of(last)
    return before if kind.is_last else kind.planned(last, before)


def check_steps(steps: Sequence[Recipe], folder: Path) -> None:
    """Raise PrunusError for steps that make no sense on the model in folder."""
    if not steps:
        raise PrunusError("there is no step: give at least one recipe")
    if kind_of(steps[0]).needs_pruned and not (folder / MANIFEST).exists():
        action = action_of(steps[0])
        raise PrunusError(f"{action} comes first, but {folder} is not pruned: put a step that removes something first")


def check_last(steps: Sequence[Recipe]) -> None:
    """Raise PrunusError where a step that can only be the last one is not."""
    for recipe, following in pairwise(steps):
        if kind_of(recipe).is_last and (kind_of(recipe).changes_form or not kind_of(following).changes_form):
            raise PrunusError(f"nothing comes after {action_of(recipe)}: put {action_of(following)} before it")


def check_removal(source: Checkpoint, steps: Sequence[Recipe]) -> None:
    """Raise PrunusError where a step is only for a pruned model, and the steps before it remove nothing."""
    for count, recipe in enumerate(steps[1:], 1):
        earlier = [(kind_of(recipe), recipe) for recipe in steps[:count]]
        if kind_of(recipe).needs_pruned and not any(
            k.needs_pruned or k.removed(before, source) for k, before in earlier
        ):
            raise PrunusError(f"a sparsity of 0 leaves nothing to {action_of(recipe)}")


def is_made(folder: Path, checksum: str, steps: Sequence[Recipe]) -> bool:
    """Whether a folder holds the model with this checksum after exactly these steps."""
    if not (folder / MANIFEST).exists():
        return False
    history = read_manifest(folder).history[-len(steps) :]
    recipes = [step.recipe.data for step in history]
    return recipes == [step.to_json() for step in steps] and history[0].source.checksum == checksum
