"""Remove decoder blocks. Its manifest has `blocks_removed`, and the `scores` of all blocks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunus.manifest import StepRecord
from prunus.recipes import DropRecipe
from prunus.recipes.declarations import DepthMethod, declared
from prunus.settings import settings_of
from prunus.step import Effect, Step
from prunus.store.characters import MINUS, NBSP

if TYPE_CHECKING:
    from prunus.checkpoint.checkpoint import Checkpoint


class Drop(Step[DropRecipe]):
    """Remove decoder blocks of MODEL, and write the rest to OUT."""

    recipe = DropRecipe
    function = "prunus.pruning.drop:drop"
    takes_away = True
    examples = (
        "prunus drop tiny out/drop-1 --blocks 1",
        "prunus drop tiny out/without-4-5 --blocks 4,5",
        "prunus drop Qwen/Qwen3-0.6B out/drop-2 --blocks 2 --calibration traces:own.jsonl",
    )
    options = ("recover",)
    tag = "depth-pruning"

    def name(self, recipe: DropRecipe) -> str:
        """`shortgpt-2`, `without-16-17`."""
        if recipe.indices:
            return "-".join(["without", *map(str, recipe.indices)])
        share = recipe.match_sparsity
        return f"{recipe.method}-{recipe.blocks or 1 if share is None else f's{100 * share:.3g}'}"

    def effect(self, recipe: DropRecipe, source: "Checkpoint") -> Effect:
        """Stored: as Step says; if the recipe names the blocks, only their indices."""
        if recipe.indices:
            return Effect(settings_of(DropRecipe), instead={"action": "drop", "blocks": list(recipe.indices)})
        return Effect({"match_sparsity"}, instead={"action": "drop", "blocks": recipe.count(source.blocks)})

    def planned(self, recipe: DropRecipe, source: "Checkpoint") -> "Checkpoint":
        """As Step says, without the last blocks where the method has not chosen them yet."""
        from prunus.pruning.depth.choice import KeptBlocks
        from prunus.pruning.depth.verification import planned

        removed = recipe.indices or range(source.blocks - recipe.count(source.blocks), source.blocks)
        return planned(source, KeptBlocks.without(removed, source.blocks, []))

    def removed(self, recipe: DropRecipe, source: "Checkpoint") -> float:
        """The share of the blocks."""
        return recipe.count(source.blocks) / source.blocks

    def nbytes(self, recipe: DropRecipe, source: "Checkpoint") -> int:
        """Bytes of the blocks into which the method merges others; 0 if it merges none."""
        blocks = recipe.count(source.blocks) if recipe.method == "laco" and recipe.indices is None else 0
        return blocks * recipe.merge * sum(stored.nbytes for stored in source.block_tensors(0).values())

    def calibrates(self, recipe: DropRecipe) -> bool:
        """Whether the method chooses by data."""
        return recipe.indices is None and declared(DepthMethod)[recipe.method].needs_data

    def label(self, step: StepRecord) -> str:
        """`ShortGPT −2 blocks`, `blocks 16, 17 removed`."""
        blocks = "?" if step.recipe.blocks is None else str(step.recipe.blocks)
        if "," in blocks:
            numbers = [part.strip() for part in blocks.split(",") if part.strip()]
            return f"block{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} removed"
        blocks = str(len(step.blocks_removed)) if step.blocks_removed else blocks
        return f"{self.method(step)} {MINUS}{blocks}{NBSP}block{'' if blocks == '1' else 's'}"

    def outcome(self, step: StepRecord, brief: bool) -> str:
        """`removed blocks 16, 17`."""
        removed = ", ".join(map(str, step.blocks_removed))
        return f"removed blocks {removed}{'' if brief else ' (counted from 0)'}" if removed else ""

    def briefly(self, step: StepRecord) -> str:
        """`2 blocks removed`."""
        removed = len(step.blocks_removed)
        return f"{removed} block{'' if removed == 1 else 's'} removed" if removed else ""

    def sentence(self, steps: Sequence[StepRecord]) -> str:
        """`2 of its decoder blocks are removed`."""
        removed = sum(len(step.blocks_removed) for step in steps)
        return f"{removed} of its decoder blocks {'is' if removed == 1 else 'are'} removed" if removed else ""

    def tags(self, step: StepRecord) -> list[str]:
        """As Step says; without the method where blocks were named, since it chose none."""
        return super().tags(StepRecord() if "," in str(step.recipe.blocks) else step)


STEP = Drop()
