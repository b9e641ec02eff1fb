"""Pruning methods, a file each: a function from weight to pruned weight, and a declaration of its options."""

from torch import Tensor

from prunus.errors import PrunusError
from prunus.plugins import Code
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target
from prunus.pruning.methods import sparsegpt
from prunus.recipes import PruneRecipe
from prunus.recipes.declarations import Method, load

METHODS = load(Method)


def find_method(recipe: PruneRecipe) -> Method:
    """The method of a recipe, configured with the recipe's options, comparison group and update of kept weights.

    Raises PrunusError if the recipe asks for an update and the method updates weights itself, or if the code of another
    package cannot be imported.
    """
    method = METHODS[recipe.method]
    code = {name: value.function() for name, value in method._asdict().items() if isinstance(value, Code)}
    method = method._replace(**code)
    if method.configure is not None:
        method = method.configure(method, recipe)
    if recipe.group is not None:
        method = method._replace(group=recipe.group)
    if recipe.update == "none":
        return method
    if method.updates:
        raise PrunusError(f"{recipe.method} updates weights itself; leave --update out")
    return with_update(method)


def with_update(method: Method) -> Method:
    """A method with the same zeros, whose kept weights are updated by SparseGPT's rule to compensate for them."""

    def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
        return sparsegpt.updated(weight_OI, method.prune(weight_OI, inputs, target), inputs)

    return method._replace(prune=prune, needs="hessian", updates=True)
