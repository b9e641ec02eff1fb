"""Allocations, one file each: evidence about blocks in, sparsities out.

A new one is a file, a row here, a name in recipes.py.
Evidence is measured once (measures.py), saved and reused; the rest is arithmetic on a few numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from prunus.pruning.allocation import alphapruning, atp, dlp, layerif, owl, uniform
from prunus.recipes import AllocationName, PruneRecipe

Allocate = Callable[[Sequence[float], Sequence[int], PruneRecipe], list[float]]
Need = Literal["nothing", "weights", "norms", "gradients"]


class Allocation(NamedTuple):
    """allocate(scores, sizes, recipe) -> sparsity of each group, whose mean weighted by sizes is recipe.sparsity.

    as_run: the same as the code of arXiv:2604.25098 has it, for rounding `reference`; it need not keep the mean.
    needs: what scores are measured from; with `nothing` they are empty. apart: attention and MLP of a block are groups
    of their own, shared out apart, each to the target; else a block is one group. settings: fields of the recipe that
    the measurement depends on, besides scope. score: what a score is, for people.
    """

    allocate: Allocate
    needs: Need
    source: str
    description: str
    score: str = ""
    apart: bool = False
    settings: tuple[str, ...] = ()
    as_run: Allocate | None = None


def _spread(recipe: PruneRecipe, default: float) -> float:
    return default if recipe.spread is None else recipe.spread


def _owl_as_run(scores: Sequence[float], _sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """The study's code has no least sparsity for Magnitude."""
    least = 0.0 if recipe.method == "magnitude" else owl.LEAST
    return owl.allocate_as_run(scores, recipe.sparsity, _spread(recipe, 0.08), least)


ALLOCATIONS: Mapping[AllocationName, Allocation] = MappingProxyType(
    {
        "uniform": Allocation(
            lambda _scores, sizes, recipe: uniform.allocate(sizes, recipe.sparsity),
            needs="nothing",
            source="the default of all methods",
            description="the same sparsity in every Linear",
        ),
        "atp": Allocation(
            lambda _scores, sizes, recipe: atp.allocate(sizes, recipe.sparsity, recipe.step),
            needs="nothing",
            source="Huang et al. 2025, arXiv:2502.14770",
            description="sparsity rises by one step from block to block; needs no data",
        ),
        "owl": Allocation(
            lambda scores, sizes, recipe: owl.allocate(scores, sizes, recipe.sparsity, _spread(recipe, 0.08)),
            needs="norms",
            source="Yin et al. 2023, arXiv:2310.05175",
            description="blocks with more outliers among their Wanda scores keep more",
            score="outliers in %",
            settings=("outlier_threshold",),
            as_run=_owl_as_run,
        ),
        "alphapruning": Allocation(
            lambda scores, sizes, recipe: alphapruning.allocate(scores, sizes, recipe.sparsity, _spread(recipe, 0.3)),
            needs="weights",
            source="Lu et al. 2024, arXiv:2410.10912",
            description="blocks whose weight spectra have lighter tails lose more; needs no data",
            score="tail exponent",
            settings=("window",),
        ),
        "dlp": Allocation(
            lambda scores, sizes, recipe: dlp.allocate(scores, sizes, recipe.sparsity, _spread(recipe, 0.15)),
            needs="norms",
            source="Chen et al. 2025, arXiv:2505.23807",
            description="blocks with larger central Wanda scores lose more",
            score="central Wanda score",
            settings=("statistic",),
        ),
        "layerif": Allocation(
            lambda scores, sizes, recipe: layerif.allocate_study(scores, sizes, recipe.sparsity),
            needs="gradients",
            source="Askari et al. 2025, arXiv:2505.23811, as in arXiv:2604.25098",
            description="attention and MLP with more influence lose less, as in the study's code; identity Hessian",
            score="influence",
            apart=True,
            as_run=lambda scores, sizes, recipe: layerif.allocate_as_run(scores, sizes, recipe.sparsity),
        ),
        "layerif-sketch": Allocation(
            lambda scores, sizes, recipe: layerif.allocate_paper(scores, sizes, recipe.sparsity, _spread(recipe, 0.3)),
            needs="gradients",
            source="Askari et al. 2025, arXiv:2505.23811; DataInf, arXiv:2310.00902",
            description="blocks with more influence lose more, as in the paper; DataInf on sketched gradients",
            score="influence",
        ),
    }
)
