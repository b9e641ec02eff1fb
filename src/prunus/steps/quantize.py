"""Store weights in 8 or 4 bits. Its manifest has the `format`, and the `bytes` that an engine loads before and after.

`format` is a dict with name, bits and group (null: a row); `bytes` one with before, after, integers, scales and others.
With recover it also has the `blocks` with their errors.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunus.disk import show_bytes
from prunus.manifest import StepRecord
from prunus.recipes import QuantizeRecipe
from prunus.step import Effect, Step

if TYPE_CHECKING:
    from prunus.checkpoint.checkpoint import Checkpoint


class Quantize(Step[QuantizeRecipe]):
    """Store the Linears of MODEL in 8 or 4 bits in OUT.

    vLLM and transformers load it. It comes after all other steps. The same command resumes an interrupted run.
    """

    recipe = QuantizeRecipe
    function = "prunus.pruning.quantize:quantize"
    reshapes = True
    is_last = True
    examples = (
        "prunus quantize Qwen/Qwen3-0.6B out/w8a8 --calibration traces:own.jsonl",
        "prunus quantize MODEL out/w4 --bits 4 --group 64 --stats hessians.safetensors",
    )
    options = ("offload", "stats")
    tag = "compressed-tensors"
    relation = "quantized"

    def name(self, recipe: QuantizeRecipe) -> str:
        """`w8a8`, `w4-g128`, `w4-row-rtn`, `w4-g64-recovered`."""
        words = ["w8a8"] if recipe.bits == 8 else ["w4", "row" if recipe.group == "row" else f"g{recipe.group}"]
        words += [recipe.method] if recipe.method != "gptq" else []
        return "-".join([*words, *(["recovered"] if recipe.recover else [])])

    def effect(self, recipe: QuantizeRecipe, source: "Checkpoint") -> Effect:
        """Stored: as Step says; instead of the largest group size to try, the size that divides all inputs.

        If no size divides those of source, which earlier steps may change, it is the largest size to try.
        """
        from prunus.pruning.quantize import group_of, names_on_disk

        linears = names_on_disk(source)  # which refuses what no format holds
        inputs = group_of(linears, recipe) or next(iter(recipe.sizes), None)
        return Effect({"group"}, {"dtype"}, instead={"action": "quantize", "inputs": inputs})

    def nbytes(self, recipe: QuantizeRecipe, source: "Checkpoint") -> int:
        """Bytes of the quantised checkpoint."""
        from prunus.pruning.quantize import format_of, names_on_disk, planned_entries

        linears = names_on_disk(source)
        entries = planned_entries(source, linears, format_of(source, linears, recipe))
        return sum(entry.nbytes for entry in entries.values())

    def calibrates(self, recipe: QuantizeRecipe) -> bool:
        return recipe.needs_data

    def label(self, step: StepRecord) -> str:
        """`W8A8`, `W4 g64`, `W4 g64 RTN`, `W4 g64 recovered`."""
        bits, group = stored_as(step)
        words = ["W8A8" if bits == 8 else f"W{bits}", *([f"g{group}"] if group else ["rows"] if bits == 4 else [])]
        words += [self.method(step)] if step.recipe.method not in (None, "gptq") else []
        return " ".join([*words, *(["recovered"] if step.recipe.recover else [])])

    def outcome(self, step: StepRecord, brief: bool) -> str:
        """`117 MB instead of 269 MB`."""
        return loaded_bytes(step, brief)

    def briefly(self, step: StepRecord) -> str:
        """`weights in 4 bits, groups of 128`."""
        bits, group = stored_as(step)
        trained = ", then trained" if step.recipe.recover else ""
        return f"weights in {bits} bits{f', groups of {group}' if group else ''}{trained}"

    def sentence(self, steps: Sequence[StepRecord]) -> str:
        """`weights of its Linears have 4 bits, with a scale for every 64 inputs`."""
        bits, group = stored_as(steps[-1])
        scales = f"every {group} inputs" if group else "each row"
        trained = ", which is trained, as are the norms" if steps[-1].recipe.recover else ""
        return f"the weights of its Linears have {bits} bits, with a scale for {scales}{trained}"


def loaded_bytes(step: StepRecord, brief: bool) -> str:
    """The bytes that an engine loads after and before a step; empty where it does not say."""
    if (sizes := step.bytes.pair) is None:
        return ""
    shown = f"{show_bytes(sizes[1])} instead of {show_bytes(sizes[0])}"
    return shown if brief else f"an engine loads {shown}"


def stored_as(step: StepRecord) -> tuple[int | str, int | str | None]:
    """Bits and size of groups of a step, from its format, or else from its recipe; None for a group that is a row."""
    form = step.format or step.recipe
    return form.bits or "?", None if form.group == "row" else form.group


STEP = Quantize()
