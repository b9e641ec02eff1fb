"""Forms to choose among: models as an engine can serve them. Nothing is computed here, or written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve
from prunus.errors import PrunusError
from prunus.evaluation.backends.hf import device_for
from prunus.evaluation.resolved_plan import ResolvedPlan, tokens_needed
from prunus.progress import say
from prunus.pruning.calibration import check_calibration
from prunus.recipes import EvalPlan
from prunus.recipes.base import Recipe
from prunus.settings.cache_size import CacheSize
from prunus.settings.engines import FLOAT32_PARAMETERS, EngineOptions
from prunus.settings.engines.facts import EngineFacts, Steps
from prunus.step import action_of, steps_name
from prunus.steps.chain import bytes_after, planned_after
from prunus.studies.cells import Cell, Model, check_weights, folder_of, open_model
from prunus.studies.choose.records import DENSE_FORM, Form
from prunus.studies.file import CellGrid, ServingTable, VariantSteps, read_entries, steps_with
from prunus.studies.looks.in_engine import check_bits, engine_bytes, narrowing

AT_ONCE = 8  # chains that a server draws at once where rows are computed
NARROWER = 0.75  # share of the channels, or experts, that the narrower form keeps


def entries_of(request: "ChoiceRequest", source: Checkpoint) -> list[VariantSteps]:
    """The default forms that a model can have; a line says which are left out, and why.

    The last form is narrower; for engines that keep weights packed it is also quantised, as the last form before it.
    If a GGUF form needs texts to calibrate on and has none, only its last step is left, which rounds to nearest.
    """
    found, form = list[VariantSteps](), Steps()
    engine = request.engine
    for whole in (*engine.forms, None):
        steps = whole or ({narrowing(source): {"keep": NARROWER}}, *form)
        entry = steps_with(steps, request.settings)
        if whole and engine.gguf and (missing := no_calibration(entry.steps[0], source)):
            say(f"{steps_name(entry.steps)} of {source.folder.name} is rounded to nearest instead: {missing}")
            steps = whole[-1:]
            entry = steps_with(steps, request.settings)
        try:
            check_bits(engine, entry.steps[-1], request.device)
            bytes_after(entry.steps, source)
            if whole is None:  # others need no calibration in llama.cpp
                check_calibration(entry.steps[0], source.folder)
        except PrunusError as error:
            say(f"{steps_name(entry.steps)} of {source.folder.name} is left out: {error}")
            continue
        if not engine.unpacks:
            form = steps
        found.append(entry)
    return found


def no_calibration(recipe: Recipe, source: Checkpoint) -> str:
    """Why a step has no texts to calibrate on; empty where it has them, or needs none."""
    try:
        check_calibration(recipe, source.folder)
    except PrunusError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class OpenedForm:
    """A form that can be made and run. grid, model: of its model. folder: for unfinished work on that model."""

    form: Form
    grid: CellGrid
    model: Model
    cell: Cell
    folder: Path

    @property
    def resolved(self) -> ResolvedPlan:
        """The plan made concrete for it."""
        return self.cell.resolved


@dataclass(frozen=True)
class ChoiceRequest:
    """Request for forms of models. file: a TOML file of [[chain]] and other tables, instead of the default forms.

    options: of the engine. settings: of calibration. device: on which the engine will run.
    """

    engine: EngineFacts
    options: EngineOptions
    file: Path | None
    settings: Mapping[str, Any]
    device: str

    def sized(self, tokens: int, slots: int) -> EngineOptions:
        """Options whose command, if it has the places, makes room for `slots` chains of `tokens` tokens at once."""
        serve = self.options.serve
        return self.options if serve is None else replace(self.options, serve=self.engine.sized(serve, tokens, slots))

    def served(self, tokens: int) -> tuple[ServingTable]:
        """The only serving of a choice's grid, with room for a number of tokens in each of AT_ONCE chains."""
        return (ServingTable("", self.sized(tokens, AT_ONCE)),)


def open_works(models: Sequence[str], plan: EvalPlan, request: ChoiceRequest, work: Path) -> list[OpenedForm]:
    """The forms of all models. work: folder of unfinished work.

    If default budgets differ, those that all models have are taken. Raises PrunusError where a model cannot be found,
    or a recipe or the plan does not fit it.
    """
    opened, found = list[Model](), list[OpenedForm]()
    for number, name in enumerate(models):
        source = Checkpoint(resolve(name))
        if source.quantised is not None:
            raise PrunusError(f"'{name}' is in {source.quantised}: run `prunus dequantize {name} OUT` and name OUT")
        if request.file is not None:
            entries = read_entries(request.file, request.settings)
        else:
            entries = entries_of(request, source)
        # Its plan is resolved first without room in the command, which only costs memory, and then with it.
        grid = CellGrid(
            path=request.file,
            models=(name,),
            plans=(plan,),
            servings=request.served(1),
            entries=tuple(entries),
            keep_checkpoints=True,
        )
        model = open_model(grid, name, folder_of(grid, name))
        if model.cells[0].resolved.native is not None:
            raise PrunusError("control native has no rows of several budgets from one chain: leave control out")
        grid = replace(grid, servings=request.served(longest(model.cells[0].resolved)))
        opened.append(model)
        folder = work / f"model-{number + 1}"
        found += [OpenedForm(form, grid, model, cell, folder) for form, cell in forms_of(model, request)]
    check_weights(found[0].grid, opened)
    budgets = [work.resolved.budgets for work in found]
    shared = tuple(budget for budget in budgets[0] if all(budget in others for others in budgets))
    if all(own_budgets == shared for own_budgets in budgets):
        return found
    if not shared:
        raise PrunusError("the default budgets of these models differ: add --budgets")
    say(f"the default budgets that all models have: {', '.join(map(str, shared))}")
    return open_works(models, replace(plan, budgets=shared), request, work)


def longest(work: ResolvedPlan) -> int:
    """The most tokens of a chain: prompt, thinking at the largest budget, markers and answer."""
    return max(tokens_needed(work.largest_budget, work.rules.markers, chain) for chain in work.chains)


def forms_of(model: Model, request: ChoiceRequest) -> Iterator[tuple[Form, Cell]]:
    """The forms of a model with their cells."""
    lengths = [len(chain.prompt) for chain in model.cells[0].resolved.chains]
    for cell in model.cells:
        steps, source = cell.variant.steps, model.source
        made = planned_after(steps, source) if steps else source
        cache = made.cache_size(cell.resolved.serving, engine=request.engine)
        if cache is None:
            raise PrunusError(f"the cache of {model.label} is not known, so neither is what it takes of memory")
        if request.engine.unpacks:
            size = made.parameters * (width := bytes_per_weight(made, request.device))
            cache = wider(cache, width)
        else:
            size = engine_bytes(steps, source, request.engine)
        yield (
            Form(
                model=model.label,
                source=model.name,
                form=cell.variant.name if steps else DENSE_FORM,
                run=cell.run_id,
                steps=[{action_of(step): step.to_json()} for step in steps],
                bytes=size,
                cache=cache,
                prompt=sum(lengths) / len(lengths),
                longest=max(lengths),
            ),
            cell,
        )


def wider(cache: CacheSize, width: int) -> CacheSize:
    """The cache of a model that transformers computes in numbers of `width` bytes instead of two."""
    if width == 2:
        return cache
    windows = {tokens: size * width // 2 for tokens, size in cache.windows.items()}
    return CacheSize(
        keys="f32",
        values="f32",
        per_token=cache.per_token * width / 2,
        windows=windows,
        constant=cache.constant * width // 2,
    )


def bytes_per_weight(made: Checkpoint, device: str) -> int:
    """Bytes of a weight in memory in transformers, which unpacks those that are integers on disk (backends/hf.py)."""
    if device_for(device) != "cpu":
        return 2
    return 4 if made.parameters <= FLOAT32_PARAMETERS else made.dtype.itemsize
