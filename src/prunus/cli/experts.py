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
    recover_option,
    show_summary,
)
from prunus.cli.pruning import calibration_options, prune_and_recover, refuse_other_calibration, run_options
from prunus.declarations import Criterion, declared
from prunus.pruning.calibration.beforehand import check_calibration
from prunus.recipes import ExpertsRecipe


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
@calibration_options(ExpertsRecipe)
@run_options
@click.option("--stats", type=click.Path(path_type=Path), help="File of `prunus stats --experts`.")
@recover_option
@device_option
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@overwrite_option
def experts_command(
    model: str,
    out: Path,
    stats: Path | None,
    recover: bool,
    device: str,
    dry_run: bool,
    overwrite: bool,
    **recipe: Any,
) -> None:
    """Remove routed experts of MODEL, a mixture of experts, and write the result to the folder OUT.

    Routers lose the rows of these experts. An interrupted run resumes when the same command is given again.
    """
    asked = ExpertsRecipe(**recipe)
    where = {"device": device, "overwrite": overwrite, "dry_run": dry_run}
    if recover:
        prune_and_recover(model, out, asked, stats, **where)
        return
    check_calibration(asked, model, out, stats=stats)
    if stats is not None:
        refuse_other_calibration(model, stats, recipe)
    show_summary(prunus.drop_experts(model, out, asked, stats=stats, **where))
