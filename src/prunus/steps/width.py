"""Remove channels of feed-forward networks. Its manifest has `channels` and `parameters`: their numbers.

Each is a dict with `before` and `after`; channels are those of networks of the width that config.json says.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunus.manifest import StepRecord
from prunus.recipes import WidthRecipe
from prunus.step import Effect, Step
from prunus.store.characters import DASH, NBSP

if TYPE_CHECKING:
    from prunus.checkpoint.checkpoint import Checkpoint


class Width(Step[WidthRecipe]):
    """Remove channels of the feed-forward networks of MODEL.

    Every engine loads OUT, an ordinary, smaller model. The same command resumes an interrupted run.
    """

    recipe = WidthRecipe
    function = "prunus.pruning.width.width:width"
    reshapes = True
    takes_away = True
    examples = (
        "prunus width Qwen/Qwen3-0.6B out/narrow-75 --keep 0.75 --calibration traces:own.jsonl",
        "prunus width MODEL out/narrow --intermediate-size 3584 --stats hessians.safetensors",
    )
    options = ("offload", "stats", "recover")
    tag = "width-pruning"

    def name(self, recipe: WidthRecipe) -> str:
        """`width-obs-75`, `width-experts-magnitude-unfitted-3584ch`."""
        words = ["width", *([recipe.of] if recipe.of else []), recipe.method]
        words += [*(["own"] if recipe.fit and recipe.target == "own" else []), *([] if recipe.fit else ["unfitted"])]
        words += [] if recipe.damping is None else [f"damped{recipe.damping:g}"]
        return "-".join([*words, f"{100 * recipe.keep:.3g}" if recipe.keep else f"{recipe.intermediate_size}ch"])

    def effect(self, recipe: WidthRecipe, source: "Checkpoint") -> Effect:
        """Stored: as Step says; the number of channels that are kept instead of the settings that give it."""
        unused = {"keep", "intermediate_size", "multiple", "tensor_parallel", "of"}
        unused |= set() if recipe.fit else {"target", "damping"}
        units, width, _ = narrowing(recipe, source)
        numbers = {"action": "width", "of": sorted({unit.of for unit in units}), "kept": width}
        return Effect(unused, kept={"seed"} if recipe.method == "random" else (), instead=numbers)

    def removed(self, recipe: WidthRecipe, source: "Checkpoint") -> float:
        """The share of the weights of the blocks' Linears."""
        from prunus.pruning.scope import weights_of
        from prunus.pruning.width.width import weights_in

        units, width, before = narrowing(recipe, source)
        every = sum(weights_of(source.linears(index)) for index in range(source.blocks))
        return (1 - width / before) * weights_in(source, units) / every

    def planned(self, recipe: WidthRecipe, source: "Checkpoint") -> "Checkpoint":
        from prunus.pruning.width.channels import narrow_model

        units, width, _ = narrowing(recipe, source)
        return narrow_model(source, units, width)

    def calibrates(self, recipe: WidthRecipe) -> bool:
        return recipe.needs_data

    def fits(self, step: StepRecord) -> bool:
        """As Step says: true unless the setting `fit` is off."""
        return step.recipe.fit

    def method(self, step: StepRecord) -> str:
        """`OBS width`, `Magnitude width unfitted`."""
        recipe, words = step.recipe, [super().method(step), "width"]
        if recipe.networks not in (None, "mlp"):
            words.insert(1, recipe.networks)
        if not recipe.fit:
            words.append("unfitted")
        elif recipe.target == "own":
            words.append("own target")
        if recipe.damping is not None:
            words.append(f"damped {recipe.damping:g}")
        return " ".join(words)

    def label(self, step: StepRecord) -> str:
        """`OBS width 75 %`."""
        counts = step.channels.pair
        share = counts[1] / counts[0] if counts else step.recipe.keep
        return f"{self.method(step)} {DASH if share is None else f'{100 * share:.3g}{NBSP}%'}"

    def outcome(self, step: StepRecord, brief: bool) -> str:
        """`192 of 256 channels are kept, 1,032,832 of 1,229,440 parameters`."""
        if not (counts := step.channels.pair):
            return ""
        return f"{counts[1]} of {counts[0]} channels " + ("kept" if brief else f"are kept{left(step)}")

    def sentence(self, steps: Sequence[StepRecord]) -> str:
        """`192 of 256 channels of its feed-forward networks are kept, 1,032,832 of 1,229,440 parameters`."""
        removals = [(*counts, left(step)) for step in steps if (counts := step.channels.pair)]
        return "; ".join(
            f"{after} of {before} channels of its feed-forward networks are kept{size}"
            for before, after, size in removals
        )


def narrowing(recipe: WidthRecipe, source: "Checkpoint") -> tuple[Sequence[Any], int, int]:
    """The networks of the Checkpoint source that are narrowed, and their numbers of channels after and before."""
    from prunus.pruning.width.channels import base_width, find_units

    units = find_units(source, recipe.of)
    return units, recipe.count(base_width(units)), base_width(units)


def left(step: StepRecord) -> str:
    """`, 1,032,832 of 1,229,440 parameters`; empty where the manifest does not say."""
    counts = step.parameters.pair
    return f", {counts[1]:,} of {counts[0]:,} parameters" if counts else ""


STEP = Width()
