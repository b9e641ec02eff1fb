"""Train what was kept. Its manifest has the `blocks` with their errors, and the `cost` in tokens and steps."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.manifest import StepRecord
from prunus.recipes import RecoverRecipe
from prunus.recipes.recover import DEFAULT_RATE
from prunus.step import Effect, Planned, Step, StepOptions, recorded_kind

if TYPE_CHECKING:
    from prunus.checkpoint.checkpoint import Checkpoint


class Recover(Step[RecoverRecipe]):
    """Train the kept weights of PRUNED, block by block, into OUT.

    Every zero stays zero. A block learns to output what the dense model does at its depth, and is left as it was if its
    held-out error does not fall. The same command resumes an interrupted run.
    """

    recipe = RecoverRecipe
    function = "prunus.pruning.recover.recover:recover"
    needs_pruned = True
    examples = (
        "prunus recover out/wanda-50 out/wanda-50-recovered --calibration traces:own.jsonl",
        "prunus recover out/wanda-50 out/recovered --dense Qwen/Qwen3-0.6B --calibration-tokens 64000",
    )
    options = ("dense", "offload")
    tag = "recovered"
    relation = "finetune"

    def preview(self, recipe: RecoverRecipe, source: "Checkpoint", out: Path, options: StepOptions) -> Planned:
        """As Step says: what it would do and need. Raises PrunusError if the model cannot be trained block by block."""
        from prunus.checkpoint.runner import pick_device
        from prunus.pruning.recover.recover import check_trainable, preview_recovery

        check_trainable(source, pick_device(options.device))
        return preview_recovery(recipe, source, out)

    def after(self, recipe: RecoverRecipe, earlier: Sequence[StepRecord]) -> RecoverRecipe:
        """As Step says: after a step with a fit, the rate is chosen on the first block, and the tokens are others.

        On tokens that the fit has seen, the error is so small that held-out tokens say nothing about other text.
        """
        last = next((step for step in reversed(earlier) if not recorded_kind(step).needs_pruned), None)
        if last is None or not recorded_kind(last).fits(last):
            return recipe
        rate = None if recipe.rate == DEFAULT_RATE else recipe.rate
        same = all(last.recipe.data.get(key) == getattr(recipe, key) for key in ("calibration", "seed"))
        return replace(recipe, rate=rate, seed=recipe.seed + same)

    def name(self, recipe: RecoverRecipe) -> str:
        return "recovered"

    def effect(self, recipe: RecoverRecipe, source: "Checkpoint") -> Effect:
        """All settings have one. The action is named where a variant's key is made (`studies.cells.key_of`)."""
        return Effect()

    def nbytes(self, recipe: RecoverRecipe, source: "Checkpoint") -> int:
        """Bytes of all tensors of the blocks, and of masks of their matrices."""
        from prunus.checkpoint.packed_tensor import packed_nbytes

        stored = (tensor for index in range(source.blocks) for tensor in source.block_tensors(index).values())
        width = source.dtype.itemsize
        return sum(packed_nbytes(tuple(s.shape), s.elements, width) if len(s.shape) == 2 else s.nbytes for s in stored)

    def calibrates(self, recipe: RecoverRecipe) -> bool:
        return True

    def label(self, step: StepRecord) -> str:
        return "recovered"

    def briefly(self, step: StepRecord) -> str:
        """`retrained`."""
        return "retrained"

    def sentence(self, steps: Sequence[StepRecord]) -> str:
        """As Step says: what was trained, and to which target."""
        return "the weights that were kept are trained to reproduce the dense model's hidden states"


STEP = Recover()
