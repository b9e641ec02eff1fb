"""Variants in an engine: which it computes, and what it takes of them."""

from collections.abc import Sequence
from pkgutil import resolve_name

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.evaluation.backends.hf import device_for
from prunus.pruning.experts.mixtures import expert_counts
from prunus.recipes import GgufRecipe, QuantizeRecipe
from prunus.recipes.base import Recipe
from prunus.settings.engines.facts import EngineFacts
from prunus.steps.chain import bytes_after


def narrowing(source: Checkpoint) -> str:
    """The step by which a model gets narrower: `experts` of a mixture, else `width`."""
    try:
        return "experts" if expert_counts(source) else "width"
    except PrunusError:  # it is no mixture
        return "width"


def check_bits(engine: EngineFacts, recipe: Recipe, device: str | None) -> None:
    """Raise PrunusError if the engine cannot multiply what a recipe stores. device: as of ladder_by_bytes."""
    if engine.lacks and isinstance(recipe, QuantizeRecipe) and device is not None:
        why = resolve_name(engine.lacks)(recipe.bits, device_for(device))
        if why is not None:
            raise PrunusError(why)


def engine_bytes(steps: Sequence[Recipe], source: Checkpoint, engine: EngineFacts) -> int:
    """The bytes that an engine loads of a model after steps; a GGUF file of a model as it is has float16."""
    if not steps and not engine.gguf:
        return sum(source.engine_bytes.values())
    return bytes_after(steps or [GgufRecipe()], source)
