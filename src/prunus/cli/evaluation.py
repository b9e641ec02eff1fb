"""Commands from checkpoint to rows of a store."""

from pathlib import Path
from typing import Any

import click

import prunus
from prunus import progress, recipes
from prunus.cli.common import (
    IntegerList,
    choice,
    command,
    device_option,
    engine_options,
    model_argument,
    overwrite_option,
    recipe_option,
    show_summary,
    store_argument,
)
from prunus.engines import BACKENDS, EngineOptions
from prunus.recipes import EvalPlan, TraceRecipe

_SIZES = ", ".join(f"{entry.batch_size} on {name}" for name, entry in BACKENDS.items())
BATCH_SIZE = f"Chains done and stored together; default {_SIZES}."


@command("eval", "prunus eval tiny --task tiny --budgets 16,64,256 --store results.db")
@model_argument
@click.option(
    "--task",
    "tasks",
    multiple=True,
    required=True,
    help="Name (see `prunus tasks`) or FILE.jsonl; repeatable. Or lm_eval:NAME, see docs/lm-eval.md.",
)
@recipe_option(EvalPlan, "budgets", "Thinking tokens allowed.", type=IntegerList())
@recipe_option(EvalPlan, "samples", "Draws per problem and budget.", type=int)
@recipe_option(EvalPlan, "profile", "Markers of the model's thinking.", type=choice(recipes.PROFILE_NAMES))
@recipe_option(EvalPlan, "mode", "Bounded answers, or as in the papers.", type=choice(recipes.Mode))
@recipe_option(EvalPlan, "answer_tokens", "Cap on the answer; default by mode and task.", type=int)
@recipe_option(EvalPlan, "wait", "How often a stop of thinking is refused.", type=int)
@recipe_option(EvalPlan, "temperature", "0 is greedy; default by profile.", type=float)
@recipe_option(EvalPlan, "top_p", "Default by profile.", type=float)
@recipe_option(EvalPlan, "top_k", "0 is off; default by profile.", type=int)
@recipe_option(EvalPlan, "prompt", "Bare problem, or asking for a box.", type=choice(recipes.PromptStyle))
@recipe_option(EvalPlan, "limit", "First so many problems of each task.", type=int)
@recipe_option(EvalPlan, "seed", "Seed of the draws.", type=int)
@recipe_option(EvalPlan, "batch_size", BATCH_SIZE, type=int)
@recipe_option(EvalPlan, "backend", "Engine: see docs/engines.md.", type=choice(BACKENDS))
@engine_options
@click.option("--reuse/--no-reuse", default=True, show_default=True, help="Cut one trace for all budgets.")
@click.option("--store", type=click.Path(path_type=Path), default=Path("results.db"), show_default=True)
@click.option("--measure-seconds", is_flag=True, help="Also time single tokens, for accuracy against seconds.")
@device_option
def eval_command(
    model: str, store: Path, device: str, engine: EngineOptions, measure_seconds: bool, **plan: Any
) -> None:
    """Accuracy of MODEL under thinking budgets, row by row into a store.

    Run it again to go on after an interruption; a finished run does no work.
    """
    run_id = prunus.evaluate(
        model, EvalPlan(**plan), store, device=device, engine=engine, measure_seconds=measure_seconds
    )
    from prunus.reporting.terminal import curve_table
    from prunus.results.store import Store
    from prunus.results.summary import summarise

    with Store(store) as opened:
        progress.out_console.print(curve_table([summarise(opened, run_id)]))


@command("traces", "prunus traces tiny traces.jsonl --task tiny-train --limit 200 --max-tokens 256 --only correct")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--task", "tasks", multiple=True, required=True, help="Name or FILE.jsonl; repeatable.")
@recipe_option(TraceRecipe, "samples", "Chains per problem.", type=int)
@recipe_option(TraceRecipe, "max_tokens", "Thinking tokens allowed per chain.", type=int)
@recipe_option(
    TraceRecipe, "only", "Keep all chains, or those with the right answer.", type=choice(recipes.TraceFilter)
)
@recipe_option(TraceRecipe, "min_tokens", "Keep chains with so many thinking tokens.", type=int)
@recipe_option(TraceRecipe, "hardest", "Keep the harder half of the problems.", is_flag=True)
@recipe_option(TraceRecipe, "profile", "Markers of the model's thinking.", type=choice(recipes.PROFILE_NAMES))
@recipe_option(TraceRecipe, "temperature", "0 is greedy; default by profile.", type=float)
@recipe_option(TraceRecipe, "prompt", "Bare problem, or asking for a box.", type=choice(recipes.PromptStyle))
@recipe_option(TraceRecipe, "limit", "First so many problems of each task.", type=int)
@recipe_option(TraceRecipe, "seed", "Seed of the draws.", type=int)
@recipe_option(TraceRecipe, "batch_size", BATCH_SIZE, type=int)
@recipe_option(TraceRecipe, "backend", "Engine: see docs/engines.md.", type=choice(BACKENDS))
@engine_options
@device_option
@overwrite_option
def traces_command(model: str, out: Path, device: str, engine: EngineOptions, overwrite: bool, **recipe: Any) -> None:
    """MODEL's own chains of thought as token ids in OUT (.jsonl), for `--calibration traces:OUT`.

    Evaluation sets are refused. An interrupted run goes on where it stopped when the same command is given again.
    """
    made = prunus.traces(model, out, TraceRecipe(**recipe), device=device, engine=engine, overwrite=overwrite)
    show_summary(made)


@command("regrade", "prunus regrade results.db")
@store_argument
def regrade_command(store: Path) -> None:
    """Grade all stored texts again with this version's grader; nothing is generated."""
    for key, value in prunus.regrade(store).items():
        progress.say(f"{key}: {value}")
