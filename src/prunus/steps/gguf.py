"""Write a model in the format of llama.cpp. Its manifest has `format` and `bytes`, as that of quantize."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.manifest import StepRecord
from prunus.recipes import GgufRecipe
from prunus.step import Effect, Made, Planned, Step, StepOptions
from prunus.steps.quantize import loaded_bytes

if TYPE_CHECKING:
    from prunus.checkpoint.checkpoint import Checkpoint


class Gguf(Step[GgufRecipe]):
    """Write MODEL as OUT.gguf, a file for llama.cpp and Ollama.

    An OUT of another name becomes a folder with the file and all that an evaluation needs. It comes after all other
    steps. Families other than Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE and Gemma 3 need --like.
    """

    recipe = GgufRecipe
    function = "prunus.pruning.gguf:gguf"
    reshapes = True
    is_last = True
    changes_form = True
    examples = (
        "prunus gguf Qwen/Qwen3-0.6B q4.gguf --type q4_k_m --calibration traces:own.jsonl",
        "prunus gguf out/w4-g32 small.gguf --type q4_0 --like Original-Q8_0.gguf",
    )
    options = ("dense", "stats")
    tag = "gguf"
    relation = "quantized"

    def make(self, model: str | Path, out: Path, recipe: GgufRecipe, options: StepOptions, name: str | None) -> Made:
        """As Step says; the model before all steps is only used with `like`."""
        options = options if recipe.like is not None else replace(options, dense=None)
        return super().make(model, out, recipe, options, name)

    def plan(self, model: "str | Path | Checkpoint", out: Path, recipe: GgufRecipe, options: StepOptions) -> Planned:
        """As Step says; OUT may be a file."""
        from prunus.pruning.gguf import plan_gguf

        dense = options.dense if recipe.like is not None else None
        return plan_gguf(model, out, recipe, dense=dense, stats=options.stats, overwrite=options.overwrite)

    def preview(self, recipe: GgufRecipe, source: "Checkpoint", out: Path, options: StepOptions) -> Planned:
        """As Step says, without warnings: whether weights will be rounded depends on the steps before it."""
        return replace(self.plan(source, out, recipe, options), warnings=[])

    def name(self, recipe: GgufRecipe) -> str:
        """`gguf-q4_0`."""
        return f"gguf-{recipe.type}"

    def effect(self, recipe: GgufRecipe, source: "Checkpoint") -> Effect:
        """Stored: as Step says. The file of `like` has the same weights."""
        return Effect({"like"}, instead={"action": "gguf"})

    def nbytes(self, recipe: GgufRecipe, source: "Checkpoint") -> int:
        """Bytes of the file's tensors."""
        from prunus.pruning.gguf import nbytes_of

        return nbytes_of(source, recipe)

    def calibrates(self, recipe: GgufRecipe) -> bool:
        return recipe.weighs

    def label(self, step: StepRecord) -> str:
        """`GGUF Q4_0`."""
        return f"GGUF {_type(step)}"

    def outcome(self, step: StepRecord, brief: bool) -> str:
        """`92 MB instead of 269 MB`."""
        return loaded_bytes(step, brief)

    def briefly(self, step: StepRecord) -> str:
        """`weights in the form Q4_0 of llama.cpp`."""
        return f"weights in the form {_type(step)} of llama.cpp"

    def sentence(self, steps: Sequence[StepRecord]) -> str:
        """`it is in the format of llama.cpp (Q4_0)`."""
        return f"it is in the format of llama.cpp ({_type(steps[-1])})"


def _type(step: StepRecord) -> str:
    """`Q4_0`."""
    return (step.recipe.type or "?").upper()


STEP = Gguf()
