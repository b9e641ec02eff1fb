"""Settings of a recipe that do not affect its result, so that recipes that differ only in them are the same variant."""

from prunus.declarations import Allocation, Criterion, DepthMethod, declared
from prunus.pruning.methods import find_method
from prunus.recipe_base import TOKEN_WEIGHTS
from prunus.recipes import OWN_GROUP, DropRecipe, ExpertsRecipe, PruneRecipe

CALIBRATION = {"calibration", "seqlen", "seed"}
AMOUNT = {"samples", "calibration_tokens"}
WEIGHTS = {*TOKEN_WEIGHTS, "closing_weight"}  # of earlier versions, which JSON of ExpertsRecipe still has
# Options by which allocations choose sequences of their own to measure on.
SAMPLING = {name for allocation in declared(Allocation).values() for name in allocation.sampling}


def unused_settings(recipe: PruneRecipe | DropRecipe | ExpertsRecipe) -> set[str]:
    """Fields without effect given the others. Options that do not belong to the recipe's methods have their default."""
    if isinstance(recipe, ExpertsRecipe):
        unused = _of_experts(recipe)
    else:
        unused = _of_prune(recipe) if isinstance(recipe, PruneRecipe) else _of_drop(recipe)
    return unused | ({"samples"} if recipe.calibration_tokens is not None else set())


def _of_prune(recipe: PruneRecipe) -> set[str]:
    allocation = declared(Allocation)[recipe.allocation]
    measured = allocation.needs if recipe.scores is None else "nothing"
    method = find_method(recipe)
    runs_blocks = method.needs != "nothing" or bool(method.passes)
    unused = set() if runs_blocks else {"propagation"}
    if not runs_blocks and measured != "norms":
        unused |= AMOUNT | WEIGHTS
        if measured != "gradients":
            unused |= CALIBRATION | {"dtype"}
    unused |= SAMPLING - set(allocation.sampling if recipe.scores is None else ())
    if not recipe.weighted:
        unused |= WEIGHTS
    if recipe.group == OWN_GROUP.get(recipe.method):
        unused |= {"group"}
    return unused


def _of_drop(recipe: DropRecipe) -> set[str]:
    return set() if declared(DepthMethod)[recipe.method].needs_data else CALIBRATION | AMOUNT


def _of_experts(recipe: ExpertsRecipe) -> set[str]:
    if declared(Criterion)[recipe.method].needs == "nothing":
        return {*WEIGHTS, *AMOUNT, *CALIBRATION, "dtype"} - {"seed"}
    return set[str]() if recipe.weighted else {*WEIGHTS}
