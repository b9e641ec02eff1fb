"""Recipes that came to give another result than they once did. What names work names this too, so that what was made
before is not taken for it.
"""

from prunus.pruning.allocation import ALLOCATIONS
from prunus.recipes import PruneRecipe


def revisions(recipe: PruneRecipe) -> dict[str, int]:
    """By what changed, the number of the change; empty for recipes whose result is what it always was."""
    measured = ALLOCATIONS[recipe.allocation].needs if recipe.scores is None else "nothing"
    changed = {
        "layerif_revision": recipe.allocation == "layerif",  # its direction was reversed
        "influence_revision": measured == "gradients",  # token ids and traces were not cut
        "reference_revision": recipe.rounding == "reference" and recipe.allocation != "uniform",  # counts were others
    }
    return {name: 2 for name, applies in changed.items() if applies}
