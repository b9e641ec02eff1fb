"""The dry run of `prune`: what it would do, without reading weights or using the network."""

from pathlib import Path
from typing import Any

from prunus.disk import check_space, show_bytes
from prunus.pruning.allocate import allocate_groups, find_scores
from prunus.pruning.allocation import ALLOCATIONS
from prunus.pruning.calibration.data import describe_calibration
from prunus.pruning.job import Job, target_of
from prunus.pruning.masks import zeros_of, zeros_wanted


def describe(job: Job, target: Path) -> dict[str, Any]:
    """What `prune` would do, as a dict, as far as it is known without reading weights or using the network.

    would_write: folder of the result. weights, zeros: numbers over all Linears in scope. disk: space needed, as text.
    calibration, influences: descriptions of the calibration sequences, and of the allocation's own if it has any.
    Raises PrunusError as prune does.
    """
    recipe, source, needed = job.recipe, job.source, job.disk
    check_space(target.absolute(), needed)
    uniform = target_of(recipe, recipe.sparsity)
    shapes = [linear.shape_OI for linears in job.linears for linear in linears]
    zeros = sum(zeros_of(uniform, shape_OI, job.method.group) for shape_OI in shapes)
    allocation = ALLOCATIONS[recipe.allocation]
    if allocation.needs == "nothing":
        allocate_groups(source, recipe, find_scores(source, recipe, job.device, None))  # so that a wrong step fails
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
    if recipe.allocation != "uniform":  # then the count holds for all Linears together
        result["zeros"] = zeros_wanted(job.weights, recipe.sparsity, recipe.rounding)
    if job.stats is not None:
        result["calibration"] = f"statistics of {job.stats.path}: {job.stats.summary['source']}"
    elif job.needs_tokens or (allocation.needs == "norms" and recipe.scores is None):
        result["calibration"], warnings = describe_calibration(recipe, source)
        result["warnings"] += warnings
    if allocation.calibration is not None and recipe.scores is None:
        result["influences"], warnings = describe_calibration(allocation.calibration(recipe)[0], source)
        result["warnings"] += [warning for warning in warnings if warning not in result["warnings"]]
    return result


def ragged_tails(job: Job) -> list[str]:
    """A warning if the pattern's width does not divide the inputs of some Linears: their last columns stay dense."""
    if job.recipe.groups is None:
        return []
    width = job.recipe.groups[1]
    linears = dict.fromkeys((linear.name, linear.shape_OI[1]) for linears in job.linears for linear in linears)
    tails = [f"{name} ({inputs % width} of {inputs})" for name, inputs in linears if inputs % width]
    if not tails:
        return []
    listed = ", ".join(tails)
    return [f"pattern {job.recipe.pattern} leaves the last columns of these Linears dense in every block: {listed}"]
