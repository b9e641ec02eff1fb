"""Kinds of steps: operations that can be applied to a model, in turn. Each kind is one file of prunus.steps.

A step is a recipe; a variant of a model is a source and a list of steps. Commands, tables of studies, ladders, names
and labels all follow from STEPS. A kind is imported when it is first used, and its file imports modules that compute
only within functions, so that reading results needs no torch.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from prunus.manifest import StepRecord
from prunus.plain_data import PrintedRecord
from prunus.recipes.base import AMOUNT, CALIBRATION, Calibrated, Recipe
from prunus.settings import CALIBRATING, WHERE, setting

if TYPE_CHECKING:
    from prunus.checkpoint.checkpoint import Checkpoint

# The action of each kind: the name of its command, of its table in a study, of its file, and of its kind in manifests.
STEPS = ("prune", "drop", "experts", "width", "recover", "quantize", "gguf")

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)
R = TypeVar("R", bound=Recipe)  # the recipe of a kind of step

ACRONYMS = ("alps", "reap", "ean", "man", "sleb", "owl", "atp", "mlp", "obs", "gptq", "rtn", "flap")
WORDS = ("wanda", "magnitude", "angular", "tail", "frequency", "random")
NAMES = {
    **{name: name.upper() for name in ACRONYMS},
    **{name: name.capitalize() for name in WORDS},
    "sparsegpt": "SparseGPT",
    "shortgpt": "ShortGPT",
    "laco": "LaCo",
    "layerif": "LayerIF",
}


@dataclass(frozen=True)
class StepOptions:
    """Options of a step besides its recipe. shared: folder for measurements that several variants share.

    The others are options of commands.
    """

    GROUP: ClassVar[str] = WHERE

    device: str = setting("auto", "cpu, cuda, ...; auto: a GPU, if any.")
    overwrite: bool = setting(False, "Replace an existing output.")
    offload: bool = setting(False, "Keep hidden states on disk instead of in memory.")
    stats: Path | None = setting(
        None,
        "File of `prunus stats`, instead of calibration; with --experts for experts, with --hessians for width and"
        " quantize; for prune with --propagation dense.",
        group=CALIBRATING,
    )
    dense: str | Path | None = setting(None, "The model before all steps; default: by prunus.json.", metavar="MODEL")
    shared: Path | None = None


class Made(PrintedRecord):
    """Result of a step: where it was written, and what it took.

    out: the folder, or file.
    seconds: run time.
    warnings: a line each.
    """

    LAST = ("seconds", "warnings")

    out: str
    seconds: float
    warnings: Sequence[str]


class Planned(PrintedRecord):
    """Preview of a step by a dry run; for several steps, of the first.

    would_write: the folder, or file.
    warnings: a line each; of all steps.
    then: what a recovery that follows would do.
    recovery_calibration, recovery_memory: what this recovery needs, as text.
    """

    LAST = ("then", "recovery_calibration", "recovery_memory", "warnings")

    would_write: str
    warnings: Sequence[str]
    then: str | None = None
    recovery_calibration: str | None = None
    recovery_memory: str | None = None

    def followed_by(self, later: "Planned") -> Self:
        """The preview of this step with the warnings of a later one, and with what that says of a recovery."""
        told = {name: value for name in Planned.LAST if (value := getattr(later, name)) is not None}
        return replace(self, **told | {"warnings": list(dict.fromkeys([*self.warnings, *later.warnings]))})


@dataclass(frozen=True)
class Effect:
    """Which settings of a recipe have an effect on its result.

    unused: settings without effect. of_data: settings that, like those of calibration, have an effect only if the step
    calibrates; kept: those among them that have it in any case. instead: what is hashed besides, or in the place of
    settings, such as the action, and the number of blocks that follows from a share.
    """

    unused: Collection[str] = ()
    of_data: Collection[str] = ()
    kept: Collection[str] = ()
    instead: Mapping[str, object] = field(default_factory=dict)


class Step(ABC, Generic[R]):
    """A kind of step, and so a command, whose help is the docstring of the class.

    recipe: the class of its settings. function: the function that carries it out, as `module:name`; the function
    plan_name of the same module previews it.
    reshapes: whether it changes the shapes of tensors. takes_away: whether what it removes is gone, instead of zero.
    needs_pruned: whether it is only for a model from which something was removed, so that it cannot come first.
    is_last: whether no step can follow it, except a step that changes_form. changes_form: whether it writes the model
    in the file format of another program.
    examples: command lines, which help shows. options: further options: fields of StepOptions, and `recover`.
    tag: for the Hub's search. relation: the Hub's word for the relation of its result to its source, if there is any.
    """

    recipe: type[R]
    function: ClassVar[str]
    reshapes: ClassVar[bool] = False
    takes_away: ClassVar[bool] = False
    needs_pruned: ClassVar[bool] = False
    is_last: ClassVar[bool] = False
    changes_form: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]]
    options: ClassVar[tuple[str, ...]] = ()
    tag: ClassVar[str | None] = None
    relation: ClassVar[str | None] = None

    def recipe_of(self, **given: Any) -> R:
        """Recipe with the given settings, and defaults for the others."""
        return self.recipe(**given)

    def make(self, model: str | Path, out: Path, recipe: R, options: StepOptions, name: str | None) -> Made:
        """Write model (a folder or hub id) after this step to the folder out.

        name: what the manifest calls model; None: as it is given.
        """
        return self._call(self.function, model, out, recipe, options, name=name)

    def plan(self, model: "str | Path | Checkpoint", out: Path, recipe: R, options: StepOptions) -> Planned:
        """Preview of the step. model: may be a Checkpoint that is not on disk yet (see planned)."""
        return self._call(self.function.replace(":", ":plan_"), model, out, recipe, options)

    def _call(
        self, function: str, model: "str | Path | Checkpoint", out: Path, recipe: R, options: StepOptions, **more: Any
    ) -> Any:
        """Result of a function of the step, called with the options that the step has."""
        names = {field.name for field in fields(StepOptions)} & {"device", "overwrite", *self.options}
        return resolve_name(function)(model, out, recipe, **{name: getattr(options, name) for name in names}, **more)

    @abstractmethod
    def name(self, recipe: R) -> str:
        """A short name for variants: `wanda-owl-20`."""

    @abstractmethod
    def effect(self, recipe: R, source: "Checkpoint") -> Effect:
        """Which settings have an effect on the Checkpoint source. Its field `instead` names the action."""

    def content(self, recipe: R, source: "Checkpoint") -> dict[str, object]:
        """Stored: the settings that have an effect on the Checkpoint source; the key of a variant is a hash of them.

        `calibration` is replaced by what it contains before it is hashed, and `scores` by a digest of the file.
        """
        effect = self.effect(recipe, source)
        gone = {*effect.unused}
        gone |= {"sequences"} if isinstance(recipe, Calibrated) and recipe.calibration_tokens is not None else set()
        gone |= set() if self.calibrates(recipe) else {*CALIBRATION, *AMOUNT, *effect.of_data} - {*effect.kept}
        return {**{key: value for key, value in recipe.to_json().items() if key not in gone}, **effect.instead}

    def removed(self, recipe: R, source: "Checkpoint") -> float:
        """The share of the weights of the blocks' Linears, or of experts, that it removes."""
        return 0.0

    def planned(self, recipe: R, source: "Checkpoint") -> "Checkpoint":
        """The Checkpoint that it will make from source, as far as shapes tell; source itself if no shape changes."""
        return source

    def nbytes(self, recipe: R, source: "Checkpoint") -> int:
        """The most bytes that a study stores for a variant made by it: of the whole checkpoint if it reshapes."""
        return self.planned(recipe, source).nbytes

    @abstractmethod
    def calibrates(self, recipe: R) -> bool:
        """Whether it reads the calibration that the recipe names, unless saved statistics take its place."""

    def preview(self, recipe: R, source: "Checkpoint", out: Path, options: StepOptions) -> Planned:
        """Preview of this step in a plan where other steps come first.

        source: the Checkpoint that the steps before it will leave. Raises PrunusError if the step cannot be done.
        """
        return self.plan(source, out, recipe, options)

    def fits(self, step: StepRecord) -> bool:
        """Whether the step fits the weights that it keeps in closed form."""
        return False

    def after(self, recipe: R, earlier: Sequence[StepRecord]) -> R:
        """The recipe with the defaults that depend on earlier steps."""
        return recipe

    def method(self, step: StepRecord) -> str:
        """The method with its options but without its strength; by this name the page filters variants."""
        return spelled(step.recipe.method or step.action)

    def label(self, step: StepRecord) -> str:
        """What was done, as tables say it: `Wanda 50 %`."""
        return self.method(step)

    def outcome(self, step: StepRecord, brief: bool) -> str:
        """What the step removed, as far as its settings do not say it. brief: without explanation."""
        return ""

    def briefly(self, step: StepRecord) -> str:
        """What the step did to the model, in a few words that need no glossary; empty if they are not known."""
        return self.outcome(step, brief=True)

    def sentence(self, steps: Sequence[StepRecord]) -> str:
        """What all steps of this kind did to the model, for the start of a card; empty if the counted zeros show it."""
        return ""

    def tags(self, step: StepRecord) -> list[str]:
        """Words for the Hub's search: its tag, and the method."""
        method = step.recipe.method or ""
        return [*([self.tag] if self.tag else []), *([method] if re.fullmatch(r"[a-z0-9.+-]{2,30}", method) else [])]


@cache
def step_kind(action: str) -> Step[Any]:
    """The kind of step with this action."""
    return import_module(f"prunus.steps.{action}").STEP


def action_of(recipe: Recipe) -> str:
    """The action of the step that a recipe is for."""
    return next(action for action in STEPS if type(recipe) is step_kind(action).recipe)


def kind_of(recipe: AnyRecipe) -> Step[AnyRecipe]:
    """The kind of step that a recipe is for."""
    return step_kind(action_of(recipe))


def with_defaults(steps: Sequence[AnyRecipe], history: Sequence[StepRecord] = ()) -> tuple[AnyRecipe, ...]:
    """The steps, with the defaults that depend on those before them. history: of the model that they are done to."""
    planned = (StepRecord.of({"action": action_of(recipe), "recipe": recipe.to_json()}) for recipe in steps)
    records = [*history, *planned]
    return tuple(kind_of(recipe).after(recipe, records[:n]) for n, recipe in enumerate(steps, len(history)))


def recorded_kind(step: StepRecord) -> Step[Any]:
    """The kind of a step in a manifest; an action that is not in STEPS is read as `prune`."""
    return step_kind(step.action if step.action in STEPS else "prune")


def in_brief(steps: Iterable[StepRecord]) -> str:
    """What steps did to a model, in plain words: `half of weights set to zero, then retrained`; empty if not known."""
    return ", then ".join(text for step in steps if (text := recorded_kind(step).briefly(step)))


def spelled(name: object) -> str:
    """The name of a method, or of another choice, as its authors write it."""
    return NAMES.get(str(name), str(name))


def steps_name(steps: Sequence[Recipe]) -> str:
    """The short name of all steps: `wanda-owl-20`, `experts-reap-75-wanda-20-recovered`."""
    return "-".join(kind_of(recipe).name(recipe) for recipe in steps)
