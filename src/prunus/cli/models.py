"""Commands that describe and measure a model, write it in another form, or carry out a step, one for each of STEPS."""

import inspect
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import prunus
from prunus import progress
from prunus.checkpoint.resolve import resolve, typed_path
from prunus.cli.common import (
    Count,
    all_of,
    check_together,
    command,
    device_option,
    dry_run_option,
    is_given,
    json_option,
    model_argument,
    options,
    out_argument,
    overwrite_option,
    path,
    recover_option,
    show,
    show_summary,
)
from prunus.errors import PrunusError
from prunus.manifest import read_manifest
from prunus.pruning.calibration import check_calibration, read_source
from prunus.pruning.calibration.text_files import check_readable
from prunus.recipes import PruneRecipe, RecoverRecipe
from prunus.recipes.base import CALIBRATED, Recipe
from prunus.recipes.declarations import Method, declared, owners_of
from prunus.settings import settings_of
from prunus.step import STEPS, Made, Planned, Step, StepOptions, kind_of, step_kind

# Settings of PruneRecipe on which the sparsities of blocks do not depend.
OF_METHODS = {"method", "pattern", "group", "propagation", "update", *owners_of(declared(Method))}


@command(
    "Look",
    "allocate",
    "prunus allocate tiny --allocation owl --sparsity 0.5 --save owl.json",
    "prunus allocate Qwen/Qwen3-0.6B --allocation owl --sparsity 0.2 --calibration traces:own.jsonl",
)
@model_argument
@options(PruneRecipe, [name for name in settings_of(PruneRecipe) if name not in OF_METHODS])
@click.option("--save", type=path, help="File for the importance scores, for --scores.")
@device_option
@json_option
def allocate_command(model: str, save: Path | None, device: str, as_json: bool, **recipe: Any) -> None:
    """Plot the sparsity of each block of MODEL; nothing is pruned."""
    given = PruneRecipe(**recipe)
    check_calibration(replace(given, method="magnitude"), model)  # what only the allocation needs
    show(prunus.allocate(model, given, save=save, device=device), as_json, "allocation_table")


@command("Look", "inspect", "prunus inspect out/wanda-20", "prunus inspect Qwen/Qwen3-0.6B")
@model_argument
@click.option("--weights/--no-weights", default=None, help="Also read the weights; default: if prunus wrote them.")
@click.option(
    "--tokens",
    type=Count(),
    default=32_768,
    show_default=True,
    metavar="N",
    help="Length for which the KV cache is counted.",
)
@json_option
def inspect_command(model: str, weights: bool | None, tokens: int, as_json: bool) -> None:
    """Print the structure of MODEL, and what can be done with it.

    It says what can be pruned, what stays dense and why, and which commands refuse it. With its weights: also sparsity
    per block and kind of Linear, and N:M patterns.
    """
    show(prunus.inspect(model, weights=weights, tokens=tokens).to_json(), as_json, "inspection_tables")


@command(
    "Evaluate",
    "perplexity",
    "prunus perplexity out/wanda-20 --text heldout.txt",
    "prunus perplexity Qwen/Qwen3-0.6B --text heldout.txt --tokens 64k",
)
@model_argument
@click.option("--text", required=True, type=path, help="A .txt or .jsonl file.")
@click.option("--seqlen", default=2048, show_default=True, metavar="N", help="Tokens per window; none overlap.")
@click.option("--tokens", type=Count(), metavar="N", help="Use only the first N tokens.")
@device_option
@json_option
def perplexity_command(model: str, text: Path, as_json: bool, **given: Any) -> None:
    """Print the perplexity of MODEL on a text."""
    check_readable(typed_path(text), resolve(model))
    show(prunus.perplexity(model, text, **given), as_json, lambda found: progress.put(f"{found.perplexity:.4f}"))


def add_command(action: str, kind: Step) -> None:
    """Make the command of a kind of step: its arguments, the settings of its recipe, and how it is carried out."""
    names = [name for name in settings_of(StepOptions) if name in (*kind.options, "overwrite")]

    def call(model: str, out: Path, **values: Any) -> None:
        given = {name: value for name, value in values.items() if name in settings_of(kind.recipe) and is_given(name)}
        if "like" in values:
            check_together(dense="like")
        step_options = StepOptions(**{name: values[name] for name in ("device", *names)})
        recovers = "recover" in kind.options and values["recover"]
        recipe = kind.recipe_of(**given)
        if any(getattr(recipe, name) != given[name] for name in given.keys() & set(CALIBRATED)):
            raise PrunusError(f"{kind.name(recipe)} takes no calibration: leave --calibration and its settings out")
        made = run_step(recipe, given.keys(), model, out, step_options, recovers, values["dry_run"])
        show(made, values["as_json"], show_summary)

    call.__doc__ = inspect.getdoc(kind)
    parts = [options(kind.recipe), *([recover_option] if "recover" in kind.options else [])]
    parts += [options(StepOptions, ["device"]), dry_run_option, options(StepOptions, names), json_option]
    model = click.argument("model", metavar="PRUNED" if kind.needs_pruned else "MODEL")
    command("Make", action, *kind.examples, rare=("seed", "offload"))(all_of([model, out_argument, *parts])(call))


def run_step(
    recipe: Recipe,
    given: Collection[str],
    model: str,
    out: Path,
    step_options: StepOptions,
    recovers: bool,
    dry_run: bool,
) -> Made | Planned:
    """Result of a step, and possibly of a recovery after it; or their plan. given: settings that the user gave."""
    if not recovers:
        check_calibration(recipe, model, out, stats=step_options.stats)
        if step_options.stats is not None:
            from prunus.pruning.calibration.saved_statistics import FIELDS, check_given, read_stats

            measured = {name: getattr(recipe, name) for name in FIELDS if name in given}
            about = read_stats(step_options.stats)[0]
            check_given(step_options.stats, about, read_manifest(resolve(model)), measured)
        if dry_run:
            all_options = {name: value for name, value in vars(step_options).items() if name != "shared"}
            return prunus.plan(model, recipe, out, **all_options)
        return kind_of(recipe).make(model, out, recipe, step_options, None)
    if step_options.stats is not None:
        raise PrunusError("--recover trains on calibration tokens, which --stats does not hold: leave one of them out")
    steps = [recipe, RecoverRecipe.like(recipe)]
    for step in steps:
        check_calibration(step, model, out)
    kept = {name: getattr(step_options, name) for name in ("device", "offload", "overwrite")}
    return prunus.plan(model, steps, out, **kept) if dry_run else prunus.apply_steps(model, out, steps, **kept)


for _action in STEPS:
    add_command(_action, step_kind(_action))


@command(
    "Make",
    "stats",
    "prunus stats tiny norms.safetensors",
    "prunus stats Qwen/Qwen3-0.6B hessians.safetensors --hessians --calibration traces:own.jsonl",
)
@model_argument
@out_argument
@options(PruneRecipe, (*CALIBRATED, "dtype"))
@click.option(
    "--hessians",
    is_flag=True,
    help="Also write X^T X, for sparsegpt, alps, --update obs, width and quantize; a large file.",
)
@click.option("--experts", is_flag=True, help="Write what `prunus experts --stats` needs instead.")
@device_option
@overwrite_option
@json_option
def stats_command(model: str, out: Path, hessians: bool, experts: bool, as_json: bool, **given: Any) -> None:
    """Calibrate once: write statistics of MODEL to the file OUT.

    Steps with `--stats OUT` then run nothing of the model.
    """
    if experts and hessians:
        raise PrunusError("--experts and --hessians are two files: give one of them")
    read_source(given["calibration"], resolve(model))
    made = prunus.expert_stats(model, out, **given) if experts else prunus.stats(model, out, hessians=hessians, **given)
    show(made, as_json, show_summary)


@command("Make", "dequantize", "prunus dequantize openai/gpt-oss-20b gpt-oss-bf16")
@model_argument
@out_argument
@overwrite_option
@json_option
def dequantize_command(model: str, out: Path, as_json: bool, **given: Any) -> None:
    """Write a quantised MODEL to the folder OUT with plain weights.

    MODEL is in FP8, MXFP4 or integers (W4A16, W8A8). Studies, and steps after `prunus quantize`, need this; other
    commands read MODEL directly. OUT takes two to four times the bytes. The same command resumes an interrupted run.
    """
    show(prunus.dequantize(model, out, **given), as_json, show_summary)
