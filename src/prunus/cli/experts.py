"""The command that removes routed experts of a mixture of experts."""

from pathlib import Path
from typing import Any

import click

import prunus
from prunus import recipes
from prunus.cli.common import (
    choice,
    command,
    device_option,
    model_argument,
    overwrite_option,
    recipe_option,
    show_summary,
)
from prunus.cli.pruning import calibration_options, refuse_other_calibration, run_options
from prunus.cli.recovery import check_no_stats, recover_options, take_recovery
from prunus.declarations import Criterion, declared
from prunus.pruning.calibration.beforehand import check_calibration
from prunus.recipes import ExpertsRecipe, RecoverRecipe


@command(
    "experts",
    "prunus experts MODEL out/reap-75 --keep 0.75\n"
    "prunus experts MODEL out/reap-50 --keep 0.5 --stats experts.safetensors",
)
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@recipe_option(ExpertsRecipe, "method", "How the experts to keep are chosen.", type=choice(declared(Criterion)))
@recipe_option(
    ExpertsRecipe, "keep", "Share of the experts that each block keeps.", type=float, show_default=f"{recipes.KEEP:g}"
)
@recipe_option(ExpertsRecipe, "drop", "Number of experts that each block loses, instead of --keep.", type=int)
@recipe_option(
    ExpertsRecipe,
    "spread",
    "uniform: all blocks keep the same number; global: the best of all, refused where config.json has one number.",
    type=choice(recipes.Spread),
)
@recipe_option(
    ExpertsRecipe,
    "distill_router",
    "Then fit the remaining routers to the dense model, block by block.",
    is_flag=True,
)
@calibration_options(ExpertsRecipe)
@run_options
@click.option("--stats", type=click.Path(path_type=Path), help="File of `prunus stats --experts`.")
@recover_options(ExpertsRecipe)
@device_option
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@overwrite_option
def experts_command(
    model: str, out: Path, device: str, dry_run: bool, overwrite: bool, stats: Path | None, **recipe: Any
) -> None:
    """Remove routed experts of MODEL, a mixture of experts, and write the result to the folder OUT.

    Routers lose the rows of these experts. An interrupted run resumes when the same command is given again.
    """
    recovery = take_recovery(recipe)
    asked = ExpertsRecipe(**recipe)
    where = {"device": device, "overwrite": overwrite, "dry_run": dry_run}
    check_no_stats(recovery, stats)
    check_calibration(asked, model, out, stats=stats)
    if recovery is not None:
        check_calibration(settings := RecoverRecipe.like(asked, **recovery), model, out)
        show_summary(prunus.prune_and_recover(model, out, asked, settings, **where))
        return
    if stats is not None:
        refuse_other_calibration(model, stats, recipe)
    show_summary(prunus.drop_experts(model, out, asked, stats=stats, **where))
