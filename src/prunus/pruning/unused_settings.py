"""Settings of a recipe that make no difference to its result, so that recipes that differ in them are the same work."""

from prunus.declarations import Allocation, DepthMethod, declared
from prunus.pruning.methods import find_method
from prunus.recipes import OWN_GROUP, TOKEN_WEIGHTS, DropRecipe, PruneRecipe

CALIBRATION = {"calibration", "seqlen", "seed"}
AMOUNT = {"samples", "calibration_tokens"}
WEIGHTS = set(TOKEN_WEIGHTS)
INFLUENCES = {"influence_train", "influence_validation"}


def unused_settings(recipe: PruneRecipe | DropRecipe) -> set[str]:
    """Fields without effect beside the others; what the recipe refuses beside them has its default anyway."""
    unused = _of_prune(recipe) if isinstance(recipe, PruneRecipe) else _of_drop(recipe)
    return unused | ({"samples"} if recipe.calibration_tokens is not None else set())


def _of_prune(recipe: PruneRecipe) -> set[str]:
    measured = declared(Allocation)[recipe.allocation].needs if recipe.scores is None else "nothing"
    method = find_method(recipe)
    runs_blocks = method.needs != "nothing" or bool(method.passes)
    unused = set() if runs_blocks else {"propagation"}
    if not runs_blocks and measured != "norms":
        unused |= AMOUNT | WEIGHTS
        if measured != "gradients":
            unused |= CALIBRATION | {"dtype"}
    if measured != "gradients":
        unused |= INFLUENCES
    if not recipe.weighted:
        unused |= WEIGHTS
    if recipe.group == OWN_GROUP.get(recipe.method):
        unused |= {"group"}
    return unused


def _of_drop(recipe: DropRecipe) -> set[str]:
    return set() if declared(DepthMethod)[recipe.method].needs_data else CALIBRATION | AMOUNT
