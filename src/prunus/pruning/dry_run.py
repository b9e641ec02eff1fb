"""What `prune` would do, told without reading weights or asking the network."""

from pathlib import Path
from typing import Any

from prunus.disk import check_space, show_bytes
from prunus.pruning.allocate import find_scores, share_out
from prunus.pruning.allocation import ALLOCATIONS
from prunus.pruning.allocation.influence import influence_recipe
from prunus.pruning.calibration.data import describe_calibration
from prunus.pruning.job import Job, target_of
from prunus.pruning.masks import zeros_of, zeros_wanted


def describe(job: Job, target: Path) -> dict[str, Any]:
    """What prune would do, as far as it can be known without reading weights or asking the network."""
    recipe, source, needed = job.recipe, job.source, job.disk
    check_space(target.absolute(), needed)
    wanted = target_of(recipe, recipe.sparsity)
    shapes = [linear.shape_OI for linears in job.linears for linear in linears]
    zeros = sum(zeros_of(wanted, shape_OI, job.method.group) for shape_OI in shapes)
    allocation = ALLOCATIONS[recipe.allocation]
    if allocation.needs == "nothing":
        share_out(source, recipe, find_scores(source, recipe, job.device, None))  # a wrong step is noticed here
    result: dict[str, Any] = {
        "would_write": str(target),
        "method": recipe.method,
        "blocks": source.blocks,
        "linears": len(shapes),
        "weights": job.weights,
        "zeros": zeros,
        "disk": show_bytes(needed),
        "calibration": "none needed",
        "warnings": [*source.reading_notes, *ragged_tails(job)],
    }
    if recipe.allocation != "uniform":  # then all Linears together have the count
        result["zeros"] = zeros_wanted(job.weights, recipe.sparsity, recipe.rounding)
    if job.stats is not None:
        result["calibration"] = f"statistics of {job.stats.path}: {job.stats.summary['source']}"
    elif job.needs_tokens or (allocation.needs == "norms" and recipe.scores is None):
        result["calibration"], warnings = describe_calibration(recipe, source)
        result["warnings"] += warnings
    if allocation.needs == "gradients" and recipe.scores is None:
        result["influences"], warnings = describe_calibration(influence_recipe(recipe), source)
        result["warnings"] += [warning for warning in warnings if warning not in result["warnings"]]
    return result


def ragged_tails(job: Job) -> list[str]:
    """A warning, if any, about columns that no group of the pattern covers."""
    if job.recipe.groups is None:
        return []
    width = job.recipe.groups[1]
    linears = dict.fromkeys((linear.name, linear.shape_OI[1]) for linears in job.linears for linear in linears)
    tails = [f"{name} ({inputs % width} of {inputs})" for name, inputs in linears if inputs % width]
    if not tails:
        return []
    listed = ", ".join(tails)
    return [f"pattern {job.recipe.pattern} leaves the last columns of these Linears dense in every block: {listed}"]
