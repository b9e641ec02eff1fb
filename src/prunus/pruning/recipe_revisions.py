"""Recipes whose result has changed between versions of prunus.

Identifiers of work include the revision, so that results of an earlier version are not mistaken for today's.
"""

from prunus.pruning.allocation import ALLOCATIONS
from prunus.recipes import PruneRecipe


def revisions(recipe: PruneRecipe) -> dict[str, int]:
    """Revision numbers by the change that affects the recipe; empty if its result has never changed."""
    measured = ALLOCATIONS[recipe.allocation].needs if recipe.scores is None else "nothing"
    changed = {
        "layerif_revision": recipe.allocation == "layerif",  # its direction was reversed
        "influence_revision": measured == "gradients",  # token ids and traces were not truncated
        "reference_revision": recipe.rounding == "reference" and recipe.allocation != "uniform",  # counts have changed
    }
    return {name: 2 for name, applies in changed.items() if applies}
