"""Remove routed experts of a mixture. Its manifest has `experts`: their number in each block `before` and `after`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunus.manifest import StepRecord
from prunus.recipes import ExpertsRecipe
from prunus.recipes.declarations import Criterion, declared
from prunus.step import Effect, Step
from prunus.store.characters import MINUS, NBSP

if TYPE_CHECKING:
    from prunus.checkpoint.checkpoint import Checkpoint


class Experts(Step[ExpertsRecipe]):
    """Remove routed experts of MODEL, and write the rest to OUT.

    The same command resumes an interrupted run.
    """

    recipe = ExpertsRecipe
    function = "prunus.pruning.experts.experts:experts"
    reshapes = True
    takes_away = True
    examples = (
        "prunus experts Qwen/Qwen3-30B-A3B out/reap-75 --keep 0.75 --calibration traces:own.jsonl",
        "prunus experts MODEL out/reap-50 --keep 0.5 --stats experts.safetensors",
    )
    options = ("stats", "recover")
    tag = "expert-pruning"

    def name(self, recipe: ExpertsRecipe) -> str:
        """`experts-reap-75`, `experts-ean-drop2`."""
        how_many = f"{100 * recipe.keep:.3g}" if recipe.keep is not None else f"drop{recipe.drop}"
        return f"experts-{recipe.method}-{how_many}"

    def effect(self, recipe: ExpertsRecipe, source: "Checkpoint") -> Effect:
        """Stored: as Step says; instead of keep and drop, the numbers of experts that are kept."""
        from prunus.pruning.experts.mixtures import expert_counts

        numbers = {"action": "experts", "kept": sorted({recipe.count(n) for n in expert_counts(source)})}
        return Effect({"keep", "drop"}, {"dtype"}, kept={"seed"}, instead=numbers)

    def planned(self, recipe: ExpertsRecipe, source: "Checkpoint") -> "Checkpoint":
        """As Step says, with the first experts of every block, and with the same number of them."""
        from prunus.pruning.experts.experts import smaller_model
        from prunus.pruning.experts.mixtures import find_mixtures

        mixtures = find_mixtures(source)
        return smaller_model(source, mixtures, {m.index: range(recipe.count(m.count)) for m in mixtures})

    def removed(self, recipe: ExpertsRecipe, source: "Checkpoint") -> float:
        """The share of the experts."""
        from prunus.pruning.experts.mixtures import expert_counts

        counts = expert_counts(source)
        return 1 - sum(map(recipe.count, counts)) / sum(counts)

    def calibrates(self, recipe: ExpertsRecipe) -> bool:
        """Whether the criterion needs data."""
        return declared(Criterion)[recipe.method].needs != "nothing"

    def label(self, step: StepRecord) -> str:
        """`REAP 6 of 8 experts`."""
        return f"{self.method(step)} {amount(step)}"

    def outcome(self, step: StepRecord, brief: bool) -> str:
        """`6 of 8 experts kept`."""
        return f"{amount(step)} {'kept' if brief else 'are kept'}"

    def sentence(self, steps: Sequence[StepRecord]) -> str:
        """`6 of 8 experts of each mixture are kept`."""
        return "; ".join(f"{amount(step)} of each mixture are kept" for step in steps)


def amount(step: StepRecord) -> str:
    """`6 of 8 experts`, `4 to 7 of 8 experts` or, where the step does not say, the share or number of its recipe."""
    numbers = [sorted(set(counts.values())) for counts in (step.experts.after, step.experts.before)]
    if all(numbers):
        left, all_of = (str(n[0]) if len(n) == 1 else f"{n[0]} to {n[-1]}" for n in numbers)
        return f"{left} of {all_of} experts"
    if step.recipe.keep is not None:
        return f"{100 * step.recipe.keep:.3g}{NBSP}% of experts"
    return f"{MINUS}{step.recipe.drop}{NBSP}experts"


STEP = Experts()
