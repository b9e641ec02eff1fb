"""Commands that run a model: evaluate it into a store, or draw its chains of thought; and regrade a store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import prunus
from prunus import progress, recipes
from prunus.cli.common import (
    BudgetList,
    all_of,
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
from prunus.evaluation.beforehand import check_plan
from prunus.recipes import EvalPlan, TraceRecipe

_SIZES = ", ".join(f"{entry.batch_size} on {name}" for name, entry in BACKENDS.items())
BATCH_SIZE = f"Chains decoded and stored together; default: {_SIZES}."


def generation_options(recipe: type) -> Callable[[Any], Any]:
    """A decorator that adds the options of every command that generates chains of thought."""
    return all_of(
        [
            recipe_option(
                recipe,
                "profile",
                "Strings that open, cut and close the model's thinking: a name of `prunus profiles`, a FILE.toml, or"
                " auto, the profile that the model's files indicate.",
                metavar="NAME|FILE.toml",
            ),
            recipe_option(recipe, "temperature", "0 is greedy; the default is the profile's.", type=float),
            recipe_option(
                recipe,
                "prompt",
                "bare: only the problem; boxed: also asks for a \\boxed{} answer.",
                type=choice(recipes.PromptStyle),
            ),
            recipe_option(recipe, "limit", "Use the first N problems of each task.", type=int),
            recipe_option(recipe, "seed", "Seed of all sampling.", type=int),
            recipe_option(recipe, "batch_size", BATCH_SIZE, type=int),
            recipe_option(recipe, "backend", "Engine: see docs/engines.md.", type=choice(BACKENDS)),
            engine_options,
        ]
    )


# Options of every command that evaluates models under thinking budgets.
plan_options = all_of(
    [
        click.option(
            "--task",
            "tasks",
            multiple=True,
            required=True,
            help="Name (see `prunus tasks`), FILE.jsonl or lm_eval:NAME (see docs/lm-eval.md); repeatable.",
        ),
        recipe_option(
            EvalPlan,
            "budgets",
            "Thinking budgets, in tokens; off, which comes first, switches the thinking off.",
            type=BudgetList(),
        ),
        recipe_option(EvalPlan, "samples", "Draws per problem and budget.", type=int),
        recipe_option(
            EvalPlan,
            "mode",
            "strict caps the answer and bans thinking markers in it; legacy follows the papers' scripts.",
            type=choice(recipes.Mode),
        ),
        recipe_option(
            EvalPlan, "answer_tokens", "Most tokens of an answer; the default depends on mode and task.", type=int
        ),
        recipe_option(EvalPlan, "wait", "Times to suppress the end of thinking and append 'Wait'.", type=int),
        recipe_option(EvalPlan, "closing", "Text that ends thinking at the budget, instead of the profile's."),
        recipe_option(EvalPlan, "top_p", "The default is the profile's.", type=float),
        recipe_option(EvalPlan, "top_k", "0 is off; the default is the profile's.", type=int),
        recipe_option(
            EvalPlan,
            "control",
            "forced: prunus ends the thinking; native: the engine or the model keeps the budget (docs/protocol.md).",
            type=choice(recipes.Control),
        ),
        generation_options(EvalPlan),
        click.option(
            "--reuse/--no-reuse",
            default=True,
            show_default=True,
            help="Sample one chain at the largest budget and cut it for the others, or one chain per budget.",
        ),
    ]
)
store_option = click.option("--store", type=click.Path(path_type=Path), default=Path("results.db"), show_default=True)


@command("eval", "prunus eval tiny --task tiny --budgets 16,64,256 --store results.db")
@model_argument
@plan_options
@store_option
@recipe_option(
    EvalPlan,
    "aa_control",
    "Evaluate MODEL once more, in batches of another size: a run that shows how much rounding alone moves.",
    is_flag=True,
)
@device_option
def eval_command(model: str, store: Path, device: str, engine: EngineOptions, **plan: Any) -> None:
    """Evaluate MODEL under thinking budgets and store every answer.

    After an interruption the same command resumes; a finished run does no work.
    """
    check_plan(model, asked := EvalPlan(**plan), engine, store)
    run_id = prunus.evaluate(model, asked, store, device=device, engine=engine)
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
@recipe_option(TraceRecipe, "answer_tokens", "Most tokens of an answer; the default depends on the task.", type=int)
@recipe_option(
    TraceRecipe, "only", "Keep all chains, or only those with a correct answer.", type=choice(recipes.TraceFilter)
)
@recipe_option(TraceRecipe, "min_tokens", "Keep chains with at least N thinking tokens.", type=int)
@recipe_option(
    TraceRecipe, "hardest", "Keep only the harder half of the problems, those solved least often.", is_flag=True
)
@generation_options(TraceRecipe)
@device_option
@overwrite_option
def traces_command(model: str, out: Path, device: str, engine: EngineOptions, overwrite: bool, **recipe: Any) -> None:
    """Write MODEL's own chains of thought as token ids to OUT (.jsonl), for `--calibration traces:OUT`.

    Evaluation sets are refused. An interrupted run resumes when the same command is given again.
    """
    check_plan(model, asked := TraceRecipe(**recipe), engine)
    made = prunus.traces(model, out, asked, device=device, engine=engine, overwrite=overwrite)
    show_summary(made)


@command("regrade", "prunus regrade results.db")
@store_argument
def regrade_command(store: Path) -> None:
    """Grade all stored texts again with the grader of this version; nothing is generated."""
    for key, value in prunus.regrade(store).items():
        progress.say(f"{key}: {value}")
