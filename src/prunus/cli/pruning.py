"""Commands that write a pruned checkpoint or its statistics, or describe and measure a model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import prunus
from prunus import progress, recipes
from prunus.checkpoint.resolve import resolve
from prunus.cli.common import (
    all_of,
    choice,
    command,
    device_option,
    is_given,
    json_option,
    model_argument,
    overwrite_option,
    print_json,
    recipe_option,
    recover_option,
    show_summary,
)
from prunus.declarations import Allocation, DepthMethod, Method, declared, owners_of
from prunus.errors import PrunusError
from prunus.pruning.calibration.beforehand import check_calibration, check_source
from prunus.pruning.calibration.text_files import check_readable
from prunus.recipes import DropRecipe, ExpertsRecipe, PruneRecipe, RecoverRecipe


def declared_options(recipe: type, table: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A decorator that adds the options that methods declare; the help names their methods."""
    options = []
    for name, owners in owners_of(table).items():
        first = owners[0][1]
        owns = [(owner, option.own_default) for owner, option in owners if option.own_default is not None]
        named = ", ".join(f"{default:g} for {owner}" for owner, default in owns)
        help = f"{', '.join(owner for owner, _ in owners)}: {first.help}" + (f" Default: {named}." if named else "")
        settings: dict[str, Any] = {"type": click.Choice(first.choices) if first.choices else first.type}
        if first.type is bool:
            settings = {"is_flag": True}
        options.append(recipe_option(recipe, name, help, **settings))
    return all_of(options)


CALIBRATION_HELP = "c4, wikitext2, tiny, traces:FILE, or a .txt/.jsonl file; auto: tiny for tiny, else c4."


def calibration_options(recipe: type) -> Callable[[Any], Any]:
    """A decorator that adds the options that choose calibration sequences."""
    return all_of(
        [
            recipe_option(recipe, "calibration", CALIBRATION_HELP),
            recipe_option(recipe, "samples", "Calibration sequences.", type=int),
            recipe_option(recipe, "seqlen", "Tokens per calibration sequence.", type=int),
            recipe_option(recipe, "calibration_tokens", "Exactly N calibration tokens, instead of samples.", type=int),
            recipe_option(recipe, "seed", "Seed of the calibration sample.", type=int),
        ]
    )


# Options of prune, allocate and stats: the weights of a trace's tokens, and the dtype in which blocks run.
run_options = all_of(
    [
        recipe_option(PruneRecipe, "prompt_weight", "Weight of a token of a trace's prompt in statistics.", type=float),
        recipe_option(PruneRecipe, "chain_weight", "Weight of a token of a trace's chain in statistics.", type=float),
        recipe_option(PruneRecipe, "dtype", "Dtype in which blocks run; auto: the checkpoint's."),
    ]
)
min_expert_tokens_option = recipe_option(
    PruneRecipe,
    "min_expert_tokens",
    "A routed expert with fewer calibration tokens is pruned by its statistics on all tokens of its layer.",
    type=int,
)
# Options of prune and allocate, from which the sparsity of each block follows.
allocation_options = all_of(
    [
        recipe_option(PruneRecipe, "sparsity", "Share of zeros in the Linears in scope, in [0, 1).", type=float),
        recipe_option(
            PruneRecipe,
            "scope",
            "Which Linears of a block are pruned; mlp includes experts, of which shared are those for every token.",
            type=choice(recipes.Scope),
        ),
        min_expert_tokens_option,
        calibration_options(PruneRecipe),
        run_options,
        recipe_option(PruneRecipe, "allocation", "How blocks share the sparsity.", type=choice(declared(Allocation))),
        declared_options(PruneRecipe, declared(Allocation)),
        recipe_option(
            PruneRecipe,
            "scores",
            "FILE of importance scores from `prunus allocate --save`, or your own, used instead of measuring.",
        ),
        recipe_option(
            PruneRecipe,
            "rounding",
            "How counts of zeros are rounded: exactly, or as in the authors' code.",
            type=choice(recipes.Rounding),
        ),
    ]
)


@command("prune", "prunus prune tiny out/wanda-20 --method wanda --sparsity 0.2")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@recipe_option(PruneRecipe, "method", "How weights are chosen.", type=choice(declared(Method)))
@allocation_options
@recipe_option(PruneRecipe, "pattern", "Keep N of every M consecutive inputs, instead of a sparsity.", metavar="N:M")
@recipe_option(
    PruneRecipe,
    "group",
    "Weights that are ranked together: each row or the whole tensor; default: the method's own.",
    type=choice(recipes.Group),
)
@recipe_option(
    PruneRecipe,
    "propagation",
    "Inputs on which a Linear is calibrated. pruned: those from pruned earlier blocks; dense: those of the dense model;"
    " true_sequential (or staged): those from all pruned earlier Linears, as in SparseGPT's code.",
    type=choice(recipes.Propagation),
)
@recipe_option(
    PruneRecipe, "update", "obs: SparseGPT's update of the weights that are kept.", type=choice(recipes.UpdateName)
)
@declared_options(PruneRecipe, declared(Method))
@click.option("--offload", is_flag=True, help="Keep hidden states on disk instead of in memory.")
@click.option("--stats", type=click.Path(path_type=Path), help="File of `prunus stats`; needs --propagation dense.")
@recover_option
@device_option
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@overwrite_option
def prune_command(
    model: str,
    out: Path,
    offload: bool,
    stats: Path | None,
    recover: bool,
    device: str,
    dry_run: bool,
    overwrite: bool,
    **recipe: Any,
) -> None:
    """Zero weights of MODEL (a folder, a hub id, or `tiny`) and write the result to the folder OUT.

    An interrupted run resumes when the same command is given again.
    """
    if recipe["pattern"] is not None and is_given("sparsity"):
        raise PrunusError("--pattern and --sparsity both set the number of zeros; give one of them")
    asked = PruneRecipe(**recipe)
    where = {"device": device, "offload": offload, "overwrite": overwrite, "dry_run": dry_run}
    if recover:
        prune_and_recover(model, out, asked, stats, **where)
        return
    check_calibration(asked, model, out, stats=stats)
    if stats is not None:
        refuse_other_calibration(model, stats, recipe)
    show_summary(prunus.prune(model, out, asked, stats=stats, **where))


def prune_and_recover(
    model: str, out: Path, recipe: PruneRecipe | DropRecipe | ExpertsRecipe, stats: Path | None, **where: Any
) -> None:
    """Do what a command with --recover does. stats: of its option, which must be None."""
    if stats is not None:
        raise PrunusError("--recover trains on calibration tokens, which --stats does not hold: leave one of them out")
    steps = [recipe, RecoverRecipe.like(recipe)]
    for step in steps:
        check_calibration(step, model, out)
    show_summary(prunus.apply_steps(model, out, steps, **where))


def refuse_other_calibration(model: str, stats: Path, recipe: Mapping[str, Any]) -> None:
    """Raise PrunusError where an option that the user gave differs from the calibration of the statistics."""
    from prunus.pruning.calibration.saved_statistics import FIELDS, LEAST, check_given

    if given := {name: recipe[name] for name in (*FIELDS, LEAST) if name in recipe and is_given(name)}:
        check_given(stats, model, given)


@command("stats", "prunus stats tiny tiny.stats.safetensors\nprunus stats tiny tiny.hessians.safetensors --hessians")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@calibration_options(PruneRecipe)
@run_options
@min_expert_tokens_option
@click.option("--hessians", is_flag=True, help="Also write X^T X, for sparsegpt, alps and --update obs; a large file.")
@click.option(
    "--experts", is_flag=True, help="Write what criteria need to know of experts, for prunus experts --stats."
)
@device_option
@overwrite_option
def stats_command(model: str, out: Path, hessians: bool, experts: bool, **options: Any) -> None:
    """Calibrate once: write input statistics of MODEL to the file OUT, for `prunus prune --stats OUT`.

    It takes one pass of the dense model. Pruning from the file then only reads, ranks and writes weights.
    """
    if experts and hessians:
        raise PrunusError("--experts and --hessians are two files: give one of them")
    check_source(options["calibration"], resolve(model))
    if experts:
        if is_given("min_expert_tokens"):
            raise PrunusError("--min-expert-tokens is for statistics of Linears; scores of experts have no threshold")
        del options["min_expert_tokens"]
        show_summary(prunus.expert_stats(model, out, **options))
    else:
        show_summary(prunus.stats(model, out, hessians=hessians, **options))


@command("allocate", "prunus allocate tiny --allocation owl --sparsity 0.5 --save owl.json")
@model_argument
@allocation_options
@click.option("--save", type=click.Path(path_type=Path), help="File for the measured importance scores, for --scores.")
@device_option
@json_option
def allocate_command(model: str, save: Path | None, device: str, as_json: bool, **recipe: Any) -> None:
    """Print and plot the sparsity of each block of MODEL; nothing is pruned."""
    asked = PruneRecipe(**recipe)
    check_calibration(replace(asked, method="magnitude"), model)  # what only the allocation needs
    data = prunus.allocate(model, asked, save=save, device=device)
    if as_json:
        print_json(data)
    else:
        from prunus.reporting.terminal import allocation_table

        progress.out_console.print(allocation_table(data))


@command("drop", "prunus drop tiny out/drop-1 --blocks 1\nprunus drop tiny out/without-4-5 --blocks 4,5")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@recipe_option(DropRecipe, "method", "How blocks are chosen.", type=choice(declared(DepthMethod)))
@recipe_option(DropRecipe, "blocks", "Number of blocks (2; default 1), or their indices from 0 (16,17 or 16,).")
@recipe_option(
    DropRecipe, "match_sparsity", "Remove the number of blocks that is nearest to this share of weights.", type=float
)
@declared_options(DropRecipe, declared(DepthMethod))
@calibration_options(DropRecipe)
@recover_option
@device_option
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@overwrite_option
def drop_command(
    model: str, out: Path, recover: bool, device: str, dry_run: bool, overwrite: bool, **recipe: Any
) -> None:
    """Remove decoder blocks of MODEL and write the result to the folder OUT."""
    asked, where = DropRecipe(**recipe), {"device": device, "overwrite": overwrite, "dry_run": dry_run}
    if recover:
        prune_and_recover(model, out, asked, None, **where)
    else:
        check_calibration(asked, model, out)
        show_summary(prunus.drop_blocks(model, out, asked, **where))


@command("inspect", "prunus inspect tiny\nprunus inspect out/wanda-20")
@model_argument
@click.option("--weights/--no-weights", default=None, help="Also read the weights; default: if prunus wrote them.")
@json_option
def inspect_command(model: str, weights: bool | None, as_json: bool) -> None:
    """Print the structure of MODEL: what can be pruned, what stays dense and why, and which commands refuse it.

    MODEL is a folder, a hub id, or `tiny`. With its weights: also sparsity per block and kind of Linear, N:M patterns
    and packed sizes.
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
@click.option("--max-tokens", type=int, help="Use only the first N tokens.")
@device_option
@json_option
def perplexity_command(model: str, text: Path, seqlen: int, max_tokens: int | None, device: str, as_json: bool) -> None:
    """Print the perplexity of MODEL on a text, in windows that do not overlap."""
    check_readable(text.expanduser(), resolve(model))
    data = prunus.perplexity(model, text, seqlen=seqlen, max_tokens=max_tokens, device=device)
    if as_json:
        print_json(data)
    else:
        click.echo(f"{data['perplexity']:.4f}")
