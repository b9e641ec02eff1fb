"""Commands from checkpoint to checkpoint, and what is known of one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

import prunus
from prunus import progress, recipes
from prunus.cli.common import (
    choice,
    command,
    device_option,
    json_option,
    model_argument,
    overwrite_option,
    print_json,
    recipe_option,
    show_summary,
)
from prunus.errors import PrunusError
from prunus.recipes import DropRecipe, PruneRecipe


def allocation_options(function: Callable[..., None]) -> Callable[..., None]:
    """What prune and allocate share: how much each block loses, and the calibration that this is measured with."""
    options = [
        recipe_option(PruneRecipe, "sparsity", "Share of zeros in the Linears in scope, in [0, 1).", type=float),
        recipe_option(PruneRecipe, "scope", "Which Linears of a block.", type=choice(recipes.Scope)),
        recipe_option(
            PruneRecipe,
            "calibration",
            "c4, wikitext2, tiny, traces:FILE, or a .txt/.jsonl file; auto: c4 (tiny: tiny).",
        ),
        recipe_option(PruneRecipe, "samples", "Calibration sequences.", type=int),
        recipe_option(PruneRecipe, "seqlen", "Tokens per calibration sequence.", type=int),
        recipe_option(PruneRecipe, "calibration_tokens", "Instead of samples: exactly so many tokens.", type=int),
        recipe_option(PruneRecipe, "seed", "Seed of the calibration sample.", type=int),
        recipe_option(PruneRecipe, "prompt_weight", "How much a token of a trace's prompt counts.", type=float),
        recipe_option(PruneRecipe, "chain_weight", "How much a token of a trace's chain counts.", type=float),
        recipe_option(PruneRecipe, "dtype", "In which blocks run; auto: the checkpoint's."),
        recipe_option(PruneRecipe, "allocation", "How blocks share the sparsity.", type=choice(recipes.AllocationName)),
        recipe_option(PruneRecipe, "spread", "How far apart they get; default by allocation.", type=float),
        recipe_option(PruneRecipe, "step", "More sparsity from block to block, for atp.", type=float),
        recipe_option(PruneRecipe, "outlier_threshold", "Times the mean score, for owl.", type=float),
        recipe_option(PruneRecipe, "statistic", "Of Wanda scores, for dlp.", type=choice(recipes.Statistic)),
        recipe_option(PruneRecipe, "window", "Tails of spectra, for alphapruning.", type=choice(recipes.Window)),
        recipe_option(PruneRecipe, "influence_train", "Sequences for layerif.", type=int),
        recipe_option(PruneRecipe, "influence_validation", "Sequences for layerif's validation loss.", type=int),
        recipe_option(PruneRecipe, "scores", "Evidence FILE of `prunus allocate --save`, or your own scores."),
        recipe_option(
            PruneRecipe, "rounding", "Exact counts, or those of the authors' code.", type=choice(recipes.Rounding)
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@command("prune", "prunus prune tiny out/wanda-20 --method wanda --sparsity 0.2")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@recipe_option(PruneRecipe, "method", "How weights are chosen.", type=choice(recipes.MethodName))
@allocation_options
@recipe_option(PruneRecipe, "pattern", "Instead of a sparsity: N:M keeps N of M consecutive inputs.", metavar="N:M")
@recipe_option(
    PruneRecipe,
    "group",
    "What is ranked together: each row or the whole tensor; default: the method's own.",
    type=choice(recipes.Group),
)
@recipe_option(PruneRecipe, "propagation", "What later blocks see of earlier ones.", type=choice(recipes.Propagation))
@recipe_option(PruneRecipe, "update", "obs: SparseGPT's update of kept weights.", type=choice(recipes.UpdateName))
@recipe_option(PruneRecipe, "row_power", "wanda: rows keep by their outputs' Fisher information to this.", type=float)
@recipe_option(PruneRecipe, "gradient_scale", "Of gradients beside norms, for gblm and wanda++.", type=float)
@recipe_option(PruneRecipe, "repair_rounds", "wanda++: times that a block is pruned and repaired.", type=int)
@recipe_option(PruneRecipe, "repair_rate", "wanda++: length of the steps of a repair.", type=float)
@click.option("--offload", is_flag=True, help="Keep hidden states on disk instead of in memory.")
@click.option("--stats", type=click.Path(path_type=Path), help="File of `prunus stats`; needs --propagation dense.")
@device_option
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@overwrite_option
def prune_command(
    model: str,
    out: Path,
    offload: bool,
    stats: Path | None,
    device: str,
    dry_run: bool,
    overwrite: bool,
    **recipe: Any,
) -> None:
    """Zero weights of MODEL (a folder, a hub id, or `tiny`) and write the result to the folder OUT.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    if recipe["pattern"] is not None and is_given("sparsity"):
        raise PrunusError("--pattern and --sparsity both say how many weights go; give one of them")
    asked = PruneRecipe(**recipe)
    if stats is not None:
        refuse_other_calibration(model, stats, recipe)
    show_summary(
        prunus.prune(
            model,
            out,
            asked,
            device=device,
            offload=offload,
            overwrite=overwrite,
            dry_run=dry_run,
            stats=stats,
        )
    )


def is_given(name: str) -> bool:
    """Whether the user typed this option of the command that runs."""
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def refuse_other_calibration(model: str, stats: Path, recipe: Mapping[str, Any]) -> None:
    """Raise PrunusError where an option that was given, be it at its default, is not what the statistics are of."""
    from prunus.pruning.calibration.saved_statistics import FIELDS, check_given

    if given := {name: recipe[name] for name in FIELDS if is_given(name)}:
        check_given(stats, model, given)


@command("stats", "prunus stats tiny tiny.stats.safetensors\nprunus stats tiny tiny.hessians.safetensors --hessians")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@recipe_option(PruneRecipe, "calibration", "As for prune.")
@recipe_option(PruneRecipe, "samples", "Calibration sequences.", type=int)
@recipe_option(PruneRecipe, "seqlen", "Tokens per calibration sequence.", type=int)
@recipe_option(PruneRecipe, "calibration_tokens", "Instead of samples: exactly so many tokens.", type=int)
@recipe_option(PruneRecipe, "prompt_weight", "How much a token of a trace's prompt counts.", type=float)
@recipe_option(PruneRecipe, "chain_weight", "How much a token of a trace's chain counts.", type=float)
@recipe_option(PruneRecipe, "seed", "Seed of the calibration sample.", type=int)
@recipe_option(PruneRecipe, "dtype", "In which blocks run; auto: the checkpoint's.")
@click.option("--hessians", is_flag=True, help="Also X^T X: for sparsegpt, alps, --update obs; large.")
@device_option
@overwrite_option
def stats_command(model: str, out: Path, **options: Any) -> None:
    """Calibrate once: write statistics of MODEL's inputs to the file OUT, for `prunus prune --stats OUT`.

    One pass of the dense model; each variant pruned from the file then only reads, ranks and writes.
    """
    show_summary(prunus.stats(model, out, **options))


@command("allocate", "prunus allocate tiny --allocation owl --sparsity 0.5 --save owl.json")
@model_argument
@allocation_options
@click.option("--save", type=click.Path(path_type=Path), help="Keep what was measured, for --scores.")
@device_option
@json_option
def allocate_command(model: str, save: Path | None, device: str, as_json: bool, **recipe: Any) -> None:
    """How much each block of MODEL would lose, printed and drawn; nothing is pruned."""
    data = prunus.allocate(model, PruneRecipe(**recipe), save=save, device=device)
    if as_json:
        print_json(data)
    else:
        from prunus.reporting.terminal import allocation_table

        progress.out_console.print(allocation_table(data))


@command("drop", "prunus drop tiny out/drop-1 --blocks 1\nprunus drop tiny out/without-4-5 --blocks 4,5")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@recipe_option(DropRecipe, "method", "How blocks are chosen.", type=choice(recipes.DepthMethodName))
@recipe_option(DropRecipe, "blocks", "How many (2; default 1), or which by index from 0 (16,17 or 16,).")
@recipe_option(DropRecipe, "match_sparsity", "Instead: as many as come nearest to this share.", type=float)
@recipe_option(DropRecipe, "merge", "laco: blocks that one merge folds into the one before them.", type=int)
@recipe_option(DropRecipe, "threshold", "laco: cosine to the old hidden states that must be kept.", type=float)
@recipe_option(DropRecipe, "interval", "laco: how many blocks below a merge the next one begins.", type=int)
@recipe_option(DropRecipe, "telescoping", "laco: of the folded blocks, keep only the last.", is_flag=True)
@recipe_option(DropRecipe, "calibration", "As for prune.")
@recipe_option(DropRecipe, "samples", "Calibration sequences.", type=int)
@recipe_option(DropRecipe, "seqlen", "Tokens per calibration sequence.", type=int)
@recipe_option(DropRecipe, "calibration_tokens", "Instead of samples: exactly so many tokens.", type=int)
@recipe_option(DropRecipe, "seed", "Seed of the calibration sample.", type=int)
@device_option
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@overwrite_option
def drop_command(model: str, out: Path, device: str, dry_run: bool, overwrite: bool, **recipe: Any) -> None:
    """Remove decoder blocks of MODEL and write the result to the folder OUT."""
    show_summary(
        prunus.drop_blocks(model, out, DropRecipe(**recipe), device=device, overwrite=overwrite, dry_run=dry_run)
    )


@command("inspect", "prunus inspect tiny\nprunus inspect out/wanda-20")
@model_argument
@click.option(
    "--weights/--no-weights", default=None, help="Read the weights, too; default: of what prunus has written."
)
@json_option
def inspect_command(model: str, weights: bool | None, as_json: bool) -> None:
    """What MODEL is made of, what can be pruned and what stays dense, and why; what cannot be done with it.

    MODEL is a folder, a hub id, or `tiny`. From its weights: sparsity per block and kind of Linear, N:M patterns,
    packed sizes.
    """
    from prunus.reporting.terminal import inspection_tables

    data = prunus.inspect(model, weights=weights)
    if as_json:
        print_json(data)
    else:
        progress.out_console.print(*inspection_tables(data), sep="\n")


@command("perplexity", "prunus perplexity out/wanda-20 --text heldout.txt")
@model_argument
@click.option("--text", required=True, type=click.Path(path_type=Path), help="A .txt or .jsonl file.")
@click.option("--seqlen", default=2048, show_default=True, help="Tokens per window.")
@click.option("--max-tokens", type=int, help="Stop after so many tokens.")
@device_option
@json_option
def perplexity_command(model: str, text: Path, seqlen: int, max_tokens: int | None, device: str, as_json: bool) -> None:
    """Perplexity of MODEL on a text, in windows that do not overlap."""
    data = prunus.perplexity(model, text, seqlen=seqlen, max_tokens=max_tokens, device=device)
    if as_json:
        print_json(data)
    else:
        click.echo(f"{data['perplexity']:.4f}")
