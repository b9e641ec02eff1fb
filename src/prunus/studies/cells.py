"""The parts of a study: variants (a recipe applied to a model) and cells (a variant under a plan and a serving).

Their ids are hashes of their content, so that the same recipe is the same cell in any study and any file. Settings that
have no effect on a recipe's result have none on its id.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.longrope import has_longrope
from prunus.checkpoint.model_folder import EngineFolder, ModelFolder, check_scaled
from prunus.checkpoint.resolve import load_tokenizer, resolve, typed_path
from prunus.errors import unreadable
from prunus.evaluation.preflight import check_plan
from prunus.evaluation.provenance import model_label
from prunus.evaluation.resolved_plan import ResolvedPlan, resolve_plan
from prunus.plain_data import content_hash
from prunus.pruning.calibration import HUB_NAMES, calibration_name, check_calibration, source_file
from prunus.recipes import EvalPlan
from prunus.recipes.base import Recipe
from prunus.settings.budgets import without_off
from prunus.settings.engines import BACKENDS
from prunus.settings.serving import Serving
from prunus.step import action_of, kind_of, steps_name, with_defaults
from prunus.steps.chain import check_steps
from prunus.store.rows import Sample, chains_of, sampled_tokens
from prunus.studies.file import CellGrid, Study, VariantSteps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DENSE, AGAIN = "dense", "A/A control"


@dataclass(frozen=True)
class Variant:
    """A model after some steps; without steps, the model as it is.

    source: checksum of the model. content: digest of its configuration, tokenizer and chat template. keys: for the
    first 1, 2, ... steps, the hash of source and these steps (12 hex digits). line: of the steps in the study's file.
    """

    name: str
    source: str
    steps: tuple[Recipe, ...] = ()
    keys: tuple[str, ...] = ()
    line: int | None = None
    content: str = ""

    @property
    def key(self) -> str:
        """The hash of the model and all steps."""
        return self.keys[-1] if self.keys else content_hash({"source": self.source})

    @property
    def is_whole(self) -> bool:
        """Whether it is loaded as a whole checkpoint, since its tensors have other shapes than those of its source."""
        return any(kind_of(recipe).reshapes for recipe in self.steps)


@dataclass(frozen=True)
class Cell:
    """A variant under a plan and a serving of the study, which is a run of the store.

    plan: index of the plan in the study. resolved: that plan made concrete for the variant, as it is served. serving:
    index of the serving. served_as: its name; empty where the study has no tables of servings.
    """

    variant: Variant
    plan: int
    resolved: ResolvedPlan
    serving: int = 0
    served_as: str = ""

    @property
    def run_id(self) -> str:
        """The id of the cell's run in the store."""
        return self.resolved.run_id

    @property
    def is_control(self) -> bool:
        """Whether it repeats another cell in other batches (EvalPlan.aa_control), and so is compared with no base."""
        return self.resolved.plan.aa_control

    def is_base(self, grid: CellGrid) -> bool:
        """Whether the other cells of its plan are compared with this cell."""
        return self.variant.name == grid.base and self.serving == 0 and not self.is_control

    @property
    def name(self) -> str:
        """Name of the cell, made of the variant's and the serving's; it says if the cell is the A/A control."""
        return cell_name(self.variant.name, self.served_as, self.is_control)


def cell_name(variant: str, served_as: str, is_control: bool = False) -> str:
    """The name of a cell, such as `wanda-20 · KV q4_0`, or `dense, A/A control`."""
    return " · ".join(filter(None, (variant, served_as))) + (f", {AGAIN}" if is_control else "")


@dataclass(frozen=True)
class Model:
    """A model of the study, opened.

    name: as written in the study's file. checkpoint: as checkpoint_of opens it. of_entries: the variant of each entry
    of the study.
    """

    name: str
    checkpoint: ModelFolder
    tokenizer: "PreTrainedTokenizerBase"
    variants: list[Variant]  # dense first
    cells: list[Cell]  # by serving, then plan, then variant; then controls
    of_entries: Sequence[Variant] = ()

    @property
    def source(self) -> Checkpoint:
        """The model as a Checkpoint, from which variants are made or which this process runs."""
        assert isinstance(self.checkpoint, Checkpoint), "a model that only an engine reads has no variants"
        return self.checkpoint

    @property
    def label(self) -> str:
        """The model's name in tables and pages."""
        return model_label(self.name)

    def cells_of(self, variant: Variant) -> list[Cell]:
        """The cells of a variant, one for each plan and serving that it has, and with its control if there is any."""
        return [cell for cell in self.cells if cell.variant == variant]


def chain_tokens(plan: EvalPlan, budgets: Sequence[int], answers: int) -> int:
    """Upper bound of the tokens of a chain: its thinking, and its answers at all budgets.

    budgets: those that take effect. answers: upper bound of the tokens of these answers together.
    """
    budgets = without_off(budgets)
    shared = plan.reuse and plan.wait == 0
    return (max(budgets, default=0) if shared else sum(budgets)) + answers


def tokens_per_chain(runs: Iterable[Iterable[Sample]], reuse: bool) -> float | None:
    """The mean number of tokens sampled for a chain of these runs; None without any chain. reuse: as in their plan."""
    chains = [chain for samples in runs for chain in chains_of(samples)]
    return sum(sampled_tokens(chains, reuse)) / len(chains) if chains else None


def open_models(study: Study) -> list[Model]:
    """All models of the study; those of the hub are downloaded.

    Raises PrunusError where a model cannot be found or a recipe or plan does not fit it.
    """
    models = [open_model(study, name, folder_of(study, name)) for name in study.models]
    check_distinct(study, models)
    return models


def check_beforehand(study: Study, started: bool) -> None:
    """Raise PrunusError, with the line of the file, for errors that can be found without opening a model.

    started: whether variants may have been made already; then calibration data are not checked.
    """
    for name in study.models:
        folder = folder_of(study, name)
        with study.located(study.eval_line, name):
            for plan in study.plans:
                check_plan(folder, plan)
        if not started:
            for variant, entry in zip(variant_names(study.entries), study.entries, strict=True):
                with study.located(entry.line, variant):
                    for recipe in entry.steps:
                        check_calibration(recipe, folder)


def check_weights(grid: CellGrid, models: Sequence[Model]) -> None:
    """Raise PrunusError where two models have the same weights."""
    weights = dict[str, str]()
    for model in models:
        if (other := weights.setdefault(model.checkpoint.checksum(), model.name)) != model.name:
            grid.fail(grid.models_line, f"'{other}' and '{model.name}' have the same weights: leave one out")


def check_distinct(study: Study, models: Sequence[Model]) -> None:
    """Raise PrunusError where two models have the same weights, or their kept checkpoints would share a folder."""
    check_weights(study, models)
    labels = dict[str, str]()
    has_folders = "keep_checkpoints" if study.keep_checkpoints else "[[find]]" if study.finds else ""
    for model in models:
        if has_folders and (other := labels.setdefault(model.label, model.name)) != model.name:
            message = f"'{other}' and '{model.name}' are both called {model.label}, and so would their checkpoints be"
            study.fail(study.models_line, f"{message}: rename a folder, or leave out {has_folders}")


def folder_of(grid: CellGrid, name: str) -> Path:
    """A model's folder; a model of the hub is downloaded. PrunusError names the line of the study's file."""
    with grid.located(grid.models_line):
        return resolve(name)


def open_model(grid: CellGrid, name: str, folder: Path) -> Model:
    """A model with its variants and cells. Raises PrunusError where a recipe or a plan does not fit it."""
    checkpoint = checkpoint_of(grid, folder)
    if checkpoint.quantised is not None and isinstance(checkpoint, Checkpoint):
        way = f"run `prunus dequantize {name} OUT` and name OUT"
        grid.fail(grid.models_line, f"'{name}' is in {checkpoint.quantised}, whose weights cannot be swapped: {way}")
    tokenizer = load_tokenizer(folder)
    variants, of_entries = variants_of(grid, checkpoint)
    servings = servings_of(grid, folder)
    with grid.located(grid.eval_line, name):
        plain = [
            resolve_plan(checkpoint, tokenizer, replace(plan, aa_control=False), servings[0]) for plan in grid.plans
        ]
        again = [
            (number, resolve_plan(checkpoint, tokenizer, plan, servings[0]))
            for number, plan in enumerate(grid.plans)
            if plan.aa_control
        ]
    controls = [Cell(variants[0], number, work, served_as=grid.servings[0].name) for number, work in again]
    chosen = {
        (variant.key, served)
        for variant, entry in [*zip(of_entries, grid.entries, strict=True), (variants[0], VariantSteps((), None))]
        for served in entry.servings or [serving.name for serving in grid.servings]
    }
    cells = []
    for (place, serving), (number, resolved) in product(enumerate(servings), enumerate(plain)):
        plan, served_as, most = resolved.served(serving), grid.servings[place].name, grid.plans[number].draws(True)
        for variant in variants:
            if (variant.key, served_as) not in chosen:
                continue
            is_base = variant.name == grid.base and place == 0
            work = plan.drawn(most) if is_base and most != plan.plan.samples else plan
            # The dense model keeps the id that `prunus eval` gives, so that they share rows.
            work = work.of(variant=variant.key) if variant.steps else work
            cells.append(Cell(variant, number, work, place, served_as))
    if not any(cell.is_base(grid) for cell in cells):
        grid.fail(None, f"base '{grid.base}' lacks the first serving, '{grid.servings[0].name}', which is the base's")
    if len({cell.run_id for cell in cells}) < len(cells):
        what = "the same" if len({plan.run_id for plan in plain}) < len(plain) else "the same for the base"
        grid.fail(grid.eval_line, f"two plans of [eval] are {what} for {name}; take a value out of a list")
    return Model(name, checkpoint, tokenizer, variants, [*cells, *controls], of_entries)


def servings_of(grid: CellGrid, folder: Path) -> list[Serving]:
    """The servings of the study, for a model. Raises PrunusError where two have the same effect."""
    longrope = has_longrope(folder)
    servings = [Serving.of(grid.backend, table.engine, longrope=longrope) for table in grid.servings]
    for place, serving in enumerate(servings):
        if serving in servings[:place]:
            first, other = grid.servings[servings.index(serving)], grid.servings[place]
            grid.fail(
                other.line,
                f"the servings '{first.name}' and '{other.name}' differ in nothing that can change what is sampled:"
                " leave one out, or say exact = true in both",
            )
    return servings


def checkpoint_of(grid: CellGrid, folder: Path) -> Checkpoint | EngineFolder:
    """The opened model: a Checkpoint if variants are made of it or this process runs it, else an EngineFolder.

    Prunus has to know the blocks of a Checkpoint; an EngineFolder may be any model that the engine supports.
    """
    if BACKENDS[grid.backend].loads_itself and not grid.entries:
        model = EngineFolder(folder)
        check_scaled(model)
        return model
    return Checkpoint(folder)


def variants_of(grid: CellGrid, checkpoint: Checkpoint | EngineFolder) -> tuple[list[Variant], list[Variant]]:
    """(the dense model and a variant for each recipe, the variant of each entry of the study).

    Raises PrunusError where two entries have the same effect under the same serving.
    """
    names = variant_names(grid.entries)
    if grid.base not in (DENSE, *names):
        grid.fail(None, f"base '{grid.base}' is no variant; there are {', '.join((DENSE, *names))}")
    source = checkpoint.checksum()
    dense = Variant(DENSE, source, content=checkpoint.content() or "")
    if not isinstance(checkpoint, Checkpoint):
        assert not grid.entries
        return [dense], []
    variants: dict[str, Variant] = {}
    of_entries, taken = list[Variant](), dict[tuple[str, str], VariantSteps]()
    for name, entry in zip(names, grid.entries, strict=True):
        if entry.steps:
            with grid.located(entry.line, name):
                variant = variant_of(name, entry, source, checkpoint)
            variant = variants.setdefault(variant.key, variant)
        else:
            variant = dense
        for serving in entry.servings or [table.name for table in grid.servings]:
            if (variant.key, serving) in taken:
                grid.fail(entry.line, same_effect(taken[variant.key, serving], entry))
            taken[variant.key, serving] = entry
        of_entries.append(variant)
    return [dense, *variants.values()], of_entries


def variant_of(name: str, entry: VariantSteps, source: str, checkpoint: Checkpoint) -> Variant:
    """The variant of some steps. source: checksum of the model."""
    steps = with_defaults(entry.steps, checkpoint.manifest.history)
    check_steps(steps, checkpoint.folder)
    contents = [effective(recipe, checkpoint) for recipe in steps]
    keys: list[str] = []
    for count in range(1, len(contents) + 1):
        keys.append(key_of(source, steps[:count], contents[:count], keys))
    return Variant(name, source, steps, tuple(keys), entry.line, checkpoint.content() or "")


def key_of(source: str, steps: Sequence[Recipe], contents: Sequence[object], keys: Sequence[str]) -> str:
    """Stored: the hash of some steps. contents: the result of `effective` for each. keys: those of fewer steps.

    A recovery and the step before it were one entry when variants were first stored, and are hashed together.
    """
    recovers = len(steps) > 1 and action_of(steps[-1]) == "recover"
    last = {"recipe": contents[-2], "recover": contents[-1]} if recovers else {"recipe": contents[-1]}
    earlier = keys[: -1 if recovers else None]
    return content_hash({"source": source, **last, **({"after": earlier[-1]} if earlier else {})})


def same_effect(first: VariantSteps, second: VariantSteps) -> str:
    """The message for two entries that have the same effect."""
    settings, other = settings_of(first), settings_of(second)
    differing = [key for key in settings | other if settings.get(key) != other.get(key)]
    name = name_of(first)
    if not differing:
        where = "" if first.line is None else f" (first in line {first.line})"
        return f"{name} is listed twice{where}"
    what, have = ", ".join(differing), "has" if len(differing) == 1 else "have"
    methods = " and ".join(str(getattr(step, "method", action_of(step))) for step in first.steps)
    return f"{name} is listed twice: {what} {have} no effect on {methods}"


def effective(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, object]:
    """Stored: the settings of a recipe that have an effect, with files replaced by digests of their content."""
    kept = kind_of(recipe).content(recipe, checkpoint)
    if "calibration" in kept:
        name = calibration_name(str(kept["calibration"]), checkpoint.manifest)
        kept["calibration"] = name if name in HUB_NAMES else digest(source_file(name))
    if kept.get("scores") is not None:
        kept["scores"] = digest(Path(str(kept["scores"])))
    return kept


def digest(path: Path) -> str:
    """16 hex digits of the SHA-256 of a file's content."""
    try:
        return hashlib.sha256(typed_path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise unreadable(str(path), error) from error


def settings_of(entry: VariantSteps) -> dict[str, object]:
    """Settings of an entry by name: those of its main step, and the settings of other steps that it lacks.

    The main step is the last that needs no pruned model. A setting that differs is named `recover-seed` or the like.
    """
    if not entry.steps:
        return {}
    main = [step for step in entry.steps if not kind_of(step).needs_pruned][-1:] or entry.steps[:1]
    settings, actions = main[0].to_json(), [action_of(step) for step in entry.steps]
    for number, recipe in reversed(list(enumerate(entry.steps, 1))):
        action = actions[number - 1]
        step = action if actions.count(action) == 1 else f"{action}{number}"
        for name, value in recipe.to_json().items():
            if name not in settings:
                settings[name] = value
            elif settings[name] != value:
                settings[f"{step}-{name}"] = value
    return settings


def name_of(entry: VariantSteps) -> str:
    """The short name of an entry's steps."""
    return steps_name(entry.steps) if entry.steps else DENSE


def variant_names(entries: Sequence[VariantSteps]) -> list[str]:
    """A name for each recipe: the short name, and where it is not unique, the settings that differ."""
    names = [name_of(entry) for entry in entries]
    for name in {name for name in names if names.count(name) > 1}:
        alike = {index: settings_of(entries[index]) for index, other in enumerate(names) if other == name}
        for index in alike:
            names[index] = "-".join([name, *differing_settings(alike[index], list(alike.values()))])
    return names


def differing_settings(settings: Mapping[str, Any], all_alike: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the settings in which recipes with the same short name differ: `seed1`, `spread0.1`."""
    for key, value in settings.items():
        if value is not None and any(other.get(key) != value for other in all_alike):
            yield f"{key}{Path(str(value)).stem if isinstance(value, str) and '/' in value else value}"


def plan_names(plans: Sequence[EvalPlan]) -> list[str]:
    """A name for each plan, made of the settings in which plans differ; empty where there is only one plan."""
    rows = [plan.to_json() for plan in plans]
    return [" ".join(differing_settings(row, rows)).replace("mode", "") for row in rows]
