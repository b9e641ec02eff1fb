"""Commands that run a model: evaluate it into a store, or draw its chains of thought."""

from pathlib import Path
from typing import Any

import click

import prunus
from prunus import progress
from prunus.cli.common import (
    all_of,
    command,
    device_option,
    engine_options,
    model_argument,
    option,
    options,
    out_argument,
    overwrite_option,
    path,
    show_summary,
)
from prunus.engines import EngineOptions
from prunus.evaluation.beforehand import check_plan
from prunus.recipes import EvalPlan, TraceRecipe
from prunus.settings import settings_of

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
        options(EvalPlan, [name for name in settings_of(EvalPlan) if name != "aa_control"]),
        engine_options,
    ]
)
store_option = click.option("--store", type=path, default=Path("results.db"), show_default=True)


@command("eval", "prunus eval tiny --task tiny --budgets 16,64,256 --store results.db")
@model_argument
@plan_options
@store_option
@option(EvalPlan, "aa_control")
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
@out_argument
@click.option("--task", "tasks", multiple=True, required=True, help="Name or FILE.jsonl; repeatable.")
@options(TraceRecipe)
@engine_options
@device_option
@overwrite_option
def traces_command(model: str, out: Path, device: str, engine: EngineOptions, overwrite: bool, **recipe: Any) -> None:
    """Write MODEL's own chains of thought as token ids to OUT (.jsonl), for `--calibration traces:OUT`.

    Evaluation sets are refused. An interrupted run resumes when the same command is given again.
    """
    check_plan(model, asked := TraceRecipe(**recipe), engine)
    made = prunus.traces(model, out, asked, device=device, engine=engine, overwrite=overwrite)
    show_summary(made)
