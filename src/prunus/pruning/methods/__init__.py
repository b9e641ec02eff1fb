"""Pruning methods, one file each: weight in, weight out. Each declares what it is, its options and its passes."""

from torch import Tensor

from prunus.declarations import Method, load
from prunus.errors import PrunusError
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target
from prunus.pruning.methods import sparsegpt
from prunus.recipes import PruneRecipe

METHODS = load(Method)


def find_method(recipe: PruneRecipe) -> Method:
    """The method of a recipe, with the options, comparison group and update of kept weights that it asks for."""
    method = METHODS[recipe.method]
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
    """The method's zeros, with the rest of the weights updated to make up for them."""

    def prune(weight_OI: Tensor, inputs: InputStats | None, target: Target) -> Tensor:
        return sparsegpt.updated(weight_OI, method.prune(weight_OI, inputs, target), inputs)

    return method._replace(prune=prune, needs="hessian", updates=True)
