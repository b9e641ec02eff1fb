"""Variants in an engine: whether it can compute them, and how many bytes it loads."""

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
    """Name of the step that makes a model narrower: `experts` for a mixture of experts, else `width`."""
    try:
        return "experts" if expert_counts(source) else "width"
    except PrunusError:  # it is no mixture
        return "width"


def check_bits(engine: EngineFacts, recipe: Recipe, device: str | None) -> None:
    """Raise PrunusError if the engine cannot multiply weights of the bits to which a recipe quantises.

    device: where the engine will run; None, which is not checked: on another machine.
    """
    if engine.lacks and isinstance(recipe, QuantizeRecipe) and device is not None:
        why = resolve_name(engine.lacks)(recipe.bits, device_for(device))
        if why is not None:
            raise PrunusError(why)


def engine_bytes(steps: Sequence[Recipe], source: Checkpoint, engine: EngineFacts) -> int:
    """Bytes that an engine loads of a model after steps; without any, those of a float16 GGUF file if it loads GGUF."""
    if not steps and not engine.gguf:
        return sum(source.engine_bytes.values())
    return bytes_after(steps or [GgufRecipe()], source)
