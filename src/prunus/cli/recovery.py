"""The command that trains the weights that pruning kept."""

from pathlib import Path
from typing import Any

import click

import prunus
from prunus import recipes
from prunus.cli.common import (
    choice,
    command,
    device_option,
    overwrite_option,
    recipe_option,
    show_summary,
)
from prunus.pruning.calibration.beforehand import check_calibration
from prunus.recipes import RecoverRecipe


@command(
    "recover",
    "prunus recover out/wanda-50 out/wanda-50-recovered --calibration traces:own.jsonl\n"
    "prunus recover out/wanda-50 out/recovered --dense Qwen/Qwen3-0.6B --calibration-tokens 64000",
)
@click.argument("pruned")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--dense", metavar="MODEL", help="The model that PRUNED was made from; default: the one in its manifest.")
@recipe_option(RecoverRecipe, "calibration", "As for prune; the model's own chains (traces:FILE) are best.")
@recipe_option(RecoverRecipe, "samples", "Calibration sequences.", type=int)
@recipe_option(RecoverRecipe, "seqlen", "Tokens per sequence of a text.", type=int)
@recipe_option(RecoverRecipe, "calibration_tokens", "Exactly N calibration tokens, instead of samples.", type=int)
@recipe_option(RecoverRecipe, "prompt_weight", "Weight of a prompt's tokens in the loss (traces only).", type=float)
@recipe_option(RecoverRecipe, "chain_weight", "Weight of a chain's tokens in the loss (traces only).", type=float)
@recipe_option(RecoverRecipe, "seed", "Seed of the sample, the held-out tokens and the order of training.", type=int)
@recipe_option(RecoverRecipe, "epochs", "Passes over the training tokens.", type=int)
@recipe_option(RecoverRecipe, "rate", "Peak learning rate, relative to each tensor's root mean square.", type=float)
@recipe_option(RecoverRecipe, "step_tokens", "Tokens per step of Adam; at least one sequence.", type=int)
@recipe_option(RecoverRecipe, "norms", "Also train norms and biases.")
@recipe_option(
    RecoverRecipe,
    "target",
    "What a block learns to output. dense: the dense model's hidden states; own: what the dense block outputs for the"
    " pruned model's input.",
    type=choice(recipes.RecoverTarget),
)
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
