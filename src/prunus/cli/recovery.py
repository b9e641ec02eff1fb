"""The command that trains the weights that pruning kept."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

import prunus
from prunus import recipes
from prunus.cli.common import (
    all_of,
    choice,
    command,
    device_option,
    overwrite_option,
    show_summary,
)
from prunus.errors import PrunusError
from prunus.pruning.calibration.beforehand import check_calibration
from prunus.recipes import RecoverRecipe

PREFIX = "recover"  # of these options where another command recovers what it has pruned


def recovery_options(pruning: type | None = None) -> Callable[[Any], Any]:
    """A decorator that adds an option for each setting of a recovery.

    pruning: the recipe of a command that recovers what it has pruned. There the names begin with PREFIX, options that
    are not given are None, and the settings that the recipe has, too, are by default those of the pruning.
    """

    def option(field: str, help: str, **settings: Any) -> Callable[[Any], Any]:
        default = getattr(RecoverRecipe, field)
        name = field if pruning is None else f"{PREFIX}_{field}"
        words = name.replace("_", "-")
        switch = f"--{words}/--no-{words}" if isinstance(default, bool) else f"--{words}"
        settings.setdefault("show_default", default is not None)
        if pruning is None:
            settings["default"] = default
        elif hasattr(pruning, field):
            settings["show_default"] = "as for the pruning"
        elif settings["show_default"] is True:
            settings["show_default"] = str(default)
        if pruning is not None and isinstance(default, bool):
            settings["default"] = None  # else click takes a switch that is not given for False
        return click.option(switch, name, help=help, **settings)

    return all_of(
        [
            option("calibration", "As for prune; the model's own chains (traces:FILE) are best."),
            option("samples", "Calibration sequences.", type=int),
            option("seqlen", "Tokens per sequence of a text.", type=int),
            option("calibration_tokens", "Exactly N calibration tokens, instead of samples.", type=int),
            option("prompt_weight", "Weight of a prompt's tokens in the loss (traces only).", type=float),
            option("chain_weight", "Weight of a chain's tokens in the loss (traces only).", type=float),
            option("seed", "Seed of the sample, the held-out tokens and the order of training.", type=int),
            option("epochs", "Passes over the training tokens.", type=int),
            option("rate", "Peak learning rate, relative to each tensor's root mean square.", type=float),
            option("step_tokens", "Tokens per step of Adam; at least one sequence.", type=int),
            option("norms", "Also train norms and biases."),
            option(
                "target",
                "What a block learns to output. dense: the dense model's hidden states; own: what the dense block"
                " outputs for the pruned model's input.",
                type=choice(recipes.RecoverTarget),
            ),
        ]
    )


def recover_options(pruning: type) -> Callable[[Any], Any]:
    """A decorator that adds --recover and the options of recovery to a command with that pruning recipe."""
    flag = click.option(f"--{PREFIX}", is_flag=True, help="Then train what is kept, as `prunus recover` does.")
    return all_of([flag, recovery_options(pruning)])


def take_recovery(recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Remove the options of recover_options; return the settings that were given, or None without --recover."""
    asked = recipe.pop(PREFIX)
    settings = {field.name: recipe.pop(f"{PREFIX}_{field.name}") for field in fields(RecoverRecipe)}
    given = {name: value for name, value in settings.items() if value is not None}
    if given and not asked:
        raise PrunusError(f"--{PREFIX}-{min(given).replace('_', '-')} needs --recover: add it")
    return given if asked else None


def check_no_stats(recovery: dict[str, Any] | None, stats: Path | None) -> None:
    """Raise PrunusError for a recovery of what is pruned by a file of statistics. recovery: of take_recovery."""
    if recovery is not None and stats is not None:
        raise PrunusError("--recover trains on calibration tokens, which --stats does not hold: leave one of them out")


@command(
    "recover",
    "prunus recover out/wanda-50 out/wanda-50-recovered --calibration traces:own.jsonl\n"
    "prunus recover out/wanda-50 out/recovered --dense Qwen/Qwen3-0.6B --calibration-tokens 64000",
)
@click.argument("pruned")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--dense", metavar="MODEL", help="The model that PRUNED was made from; default: the one in its manifest.")
@recovery_options()
@device_option
@click.option("--offload", is_flag=True, help="Keep the residual streams of both models on disk.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@overwrite_option
def recover_command(
    pruned: str, out: Path, dense: str | None, device: str, offload: bool, dry_run: bool, overwrite: bool, **recipe: Any
) -> None:
    """Train the weights that pruning kept in PRUNED, block by block, and write the result to the folder OUT.

    Every zero stays zero. A block learns to output what the dense model outputs at its depth, on calibration tokens. An
    eighth of them is held out; a block whose held-out error does not fall is left as it was.
    """
    asked = RecoverRecipe(**recipe)
    where = {"device": device, "offload": offload, "overwrite": overwrite, "dry_run": dry_run}
    check_calibration(asked, pruned, out)
    show_summary(prunus.recover(pruned, out, asked, dense=dense, **where))
