"""Zero weights. Its manifest has the `sparsity` of each Linear, and the `allocation` unless that is uniform."""

from typing import TYPE_CHECKING, Any

from prunus.errors import PrunusError
from prunus.manifest import StepRecord
from prunus.recipes import PruneRecipe
from prunus.recipes.base import CALIBRATION
from prunus.recipes.declarations import Allocation, Method, declared
from prunus.recipes.prune import OWN_GROUP
from prunus.step import Effect, Step, spelled
from prunus.store.characters import DASH, NBSP

if TYPE_CHECKING:
    from prunus.checkpoint.checkpoint import Checkpoint

IN_NAMES = ("allocation", "scope", "update", "propagation")  # settings that names of variants say


class Prune(Step[PruneRecipe]):
    """Zero weights of MODEL, and write the result to OUT.

    The same command resumes an interrupted run.
    """

    recipe = PruneRecipe
    function = "prunus.pruning.prune.prune:prune"
    examples = (
        "prunus prune tiny out/wanda-20 --method wanda --sparsity 0.2",
        "prunus prune Qwen/Qwen3-0.6B out/wanda-20 --calibration traces:own.jsonl",
    )
    options = ("offload", "stats", "recover", "shared")
    tag = "sparse"

    def recipe_of(self, **given: Any) -> PruneRecipe:
        if given.keys() >= {"pattern", "sparsity"}:
            raise PrunusError("--pattern and --sparsity both set the number of zeros; give one of them")
        return PruneRecipe(**given)

    def name(self, recipe: PruneRecipe) -> str:
        """`wanda-owl-20`, `magnitude-mlp-2of4`."""
        default, stored = PruneRecipe(), recipe.to_json()
        words = [stored[key] for key in IN_NAMES if stored[key] != getattr(default, key)]
        if recipe.group not in (None, OWN_GROUP.get(recipe.method)):
            words.append(recipe.group)
        amount = recipe.pattern.replace(":", "of") if recipe.pattern else f"{100 * recipe.sparsity:.3g}"
        return "-".join([recipe.method, *words, amount])

    def effect(self, recipe: PruneRecipe, source: "Checkpoint") -> Effect:
        from prunus.pruning.methods import find_method

        allocations = declared(Allocation)
        allocation, method = allocations[recipe.allocation], find_method(recipe)
        unused = {name for entry in allocations.values() for name in entry.sampling}
        unused -= set(allocation.sampling if recipe.scores is None else ())
        unused |= {"propagation"} if method.needs == "nothing" else set()
        unused |= {"group"} if recipe.group in (None, OWN_GROUP.get(recipe.method)) else set()
        of_gradients = (*CALIBRATION, "dtype") if recipe.measured == "gradients" else ()
        return Effect(unused, {"dtype"}, of_gradients, {"action": "prune"})

    def removed(self, recipe: PruneRecipe, source: "Checkpoint") -> float:
        """The share of the weights of the blocks' Linears that become zero."""
        from prunus.pruning.scope import linears_in_scope, weights_of

        inside = sum(map(weights_of, linears_in_scope(source, recipe.scope)))
        return recipe.sparsity * inside / sum(weights_of(source.linears(index)) for index in range(source.blocks))

    def nbytes(self, recipe: PruneRecipe, source: "Checkpoint") -> int:
        """Bytes of a bit per weight in scope, and of the kept weights if the method changes them."""
        from prunus.checkpoint.packed_tensor import packed_nbytes
        from prunus.pruning.methods import find_method
        from prunus.pruning.scope import linears_in_scope

        kept = 1.0 if recipe.allocation != "uniform" else 1 - recipe.sparsity
        if not find_method(recipe).updates:
            kept = 0.0
        shapes = [linear.shape_OI for linears in linears_in_scope(source, recipe.scope) for linear in linears]
        return sum(packed_nbytes(s, int(kept * s[0] * s[1]), source.dtype.itemsize) for s in shapes)

    def calibrates(self, recipe: PruneRecipe) -> bool:
        """Whether method, update or allocation measure anything."""
        allocates = recipe.measured == "norms"
        return allocates or declared(Method)[recipe.method].needs != "nothing" or recipe.update != "none"

    def method(self, step: StepRecord) -> str:
        """`Wanda OWL`, `Magnitude MLP by row`."""
        recipe, plain = step.recipe, ("all", "uniform", "none")
        chosen = zip((recipe.scope, recipe.allocation, recipe.update), plain, strict=True)
        words = [spelled(value) for value, default in chosen if value != default]
        if recipe.group not in (None, OWN_GROUP.get(recipe.method or step.action)):
            words.append(f"by {recipe.group}")
        return " ".join([super().method(step), *words])

    def briefly(self, step: StepRecord) -> str:
        """`half of weights set to zero`, `2 of every 4 weights set to zero`."""
        sparsity, pattern = step.recipe.sparsity, step.recipe.pattern
        if pattern is not None and pattern.count(":") == 1:
            kept, of = pattern.split(":")
            zeros = int(of) - int(kept) if kept.isdecimal() and of.isdecimal() else "some"
            return f"{zeros} of every {of} weights set to zero"
        if sparsity is None:
            return ""
        return f"{'half' if sparsity == 0.5 else f'{100 * sparsity:.3g} %'} of weights set to zero"

    def label(self, step: StepRecord) -> str:
        """`Wanda 50 %`, `SparseGPT 2:4`."""
        sparsity = step.recipe.sparsity
        share = DASH if sparsity is None else f"{100 * sparsity:.3g}{NBSP}%"
        return f"{self.method(step)} {step.recipe.pattern or share}"

    def tags(self, step: StepRecord) -> list[str]:
        """As Step says, and the Hub's word for patterns."""
        return [*super().tags(step), *(["semi-structured-sparsity"] if step.recipe.pattern else [])]


STEP = Prune()
