"""Recipes: all settings of steps, evaluations and traces, with their units; a file each. No model code here."""

from prunus.recipes.drop import DropRecipe
from prunus.recipes.eval import EvalPlan
from prunus.recipes.experts import ExpertsRecipe
from prunus.recipes.gguf import GgufRecipe
from prunus.recipes.prune import PruneRecipe
from prunus.recipes.quantize import QuantizeRecipe
from prunus.recipes.recover import RecoverRecipe
from prunus.recipes.traces import TraceRecipe
from prunus.recipes.width import WidthRecipe
from prunus.settings import described

__all__ = [
    "DropRecipe",
    "EvalPlan",
    "ExpertsRecipe",
    "GgufRecipe",
    "PruneRecipe",
    "QuantizeRecipe",
    "RecoverRecipe",
    "TraceRecipe",
    "WidthRecipe",
]

for _name in __all__:
    globals()[_name].__doc__ = described(globals()[_name])
