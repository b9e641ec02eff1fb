"""Remove routed experts of a mixture. Its manifest has `experts`: their number in each block `before` and `after`."""

from pathlib import Path
from typing import Any

from prunus.declarations import Criterion, declared
from prunus.recipe_base import AMOUNT, CALIBRATION, TOKEN_WEIGHTS
from prunus.recipes import ExpertsRecipe
from prunus.step import Step, Where

WEIGHTS = (*TOKEN_WEIGHTS, "closing_weight")  # the last is of earlier versions, and still in the JSON of this recipe


class Experts(Step):
    """Remove routed experts of MODEL, a mixture of experts, and write the result to the folder OUT.

    Routers lose the rows of these experts. An interrupted run resumes when the same command is given again.
    """

    recipe = ExpertsRecipe
    reshapes = True
    examples = (
        "prunus experts MODEL out/reap-75 --keep 0.75",
        "prunus experts MODEL out/reap-50 --keep 0.5 --stats experts.safetensors",
    )
    options = ("stats", "recover")

    def make(self, model: str | Path, out: Path, recipe: Any, where: Where, name: str | None) -> dict[str, Any]:
        """As Step says."""
        from prunus.pruning.drop_experts import drop_experts

        return drop_experts(
            model, out, recipe, name=name, stats=where.stats, device=where.device, overwrite=where.overwrite,
            dry_run=where.dry_run,
        )  # fmt: skip

    def name(self, recipe: Any) -> str:
        """`experts-reap-75`, `experts-ean-global-drop2`."""
        words = ["experts", recipe.method, *([] if recipe.spread == "uniform" else [recipe.spread])]
        return "-".join([*words, f"{100 * recipe.keep:.3g}" if recipe.keep is not None else f"drop{recipe.drop}"])

    def content(self, recipe: Any, source: Any) -> dict[str, Any]:
        """Stored: as Step says; instead of keep and drop, the numbers of experts that are kept."""
        from prunus.pruning.experts.mixture import expert_counts

        unused = {"keep", "drop"} if recipe.calibration_tokens is None else {"keep", "drop", "samples"}
        if declared(Criterion)[recipe.method].needs == "nothing":
            unused |= {*WEIGHTS, *AMOUNT, *CALIBRATION, "dtype"} - {"seed"}
        unused |= set() if recipe.weighted else {*WEIGHTS}
        kept = {key: value for key, value in recipe.to_json().items() if key not in unused}
        return kept | {"action": "experts", "kept": sorted({recipe.count(n) for n in expert_counts(source)})}

    def removed(self, recipe: Any, source: Any) -> float:
        """The share of the experts."""
        from prunus.pruning.experts.mixture import expert_counts

        counts = expert_counts(source)
        return 1 - sum(map(recipe.count, counts)) / sum(counts)

    def nbytes(self, recipe: Any, source: Any) -> int:
        """Those of the checkpoint."""
        from prunus.pruning.depth.verification import left_out
        from prunus.pruning.drop_experts import bytes_left
        from prunus.pruning.experts.mixture import find_mixtures

        return bytes_left(recipe, source, find_mixtures(source), left_out(source))

    def calibrates(self, recipe: Any, stats: bool = False) -> bool:
        """Whether the criterion needs data."""
        return declared(Criterion)[recipe.method].needs != "nothing" and not stats


STEP = Experts()
