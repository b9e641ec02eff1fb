"""Commands that run a model (evaluate it, draw its chains of thought), list what there is to run it on; the demo."""

from collections.abc import Sequence
from itertools import groupby
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
    json_option,
    model_argument,
    option,
    options,
    out_argument,
    overwrite_option,
    path,
    show,
    show_summary,
    store_option,
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


@command("Evaluate", "eval", "prunus eval tiny --task tiny --budgets 16,64,256 --store results.db")
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


@command("Make", "traces", "prunus traces tiny own.jsonl --task tiny-train --limit 200 --max-tokens 256 --only correct")
@model_argument
@out_argument
@click.option("--task", "tasks", multiple=True, required=True, help="Name or FILE.jsonl; repeatable.")
@options(TraceRecipe)
@engine_options
@device_option
@overwrite_option
def traces_command(model: str, out: Path, device: str, engine: EngineOptions, overwrite: bool, **recipe: Any) -> None:
    """Write MODEL's own chains of thought to OUT, for calibration.

    OUT (.jsonl) has their token ids, and is used as `--calibration traces:OUT`. Evaluation sets are refused. An
    interrupted run resumes when the same command is given again.
    """
    check_plan(model, asked := TraceRecipe(**recipe), engine)
    made = prunus.traces(model, out, asked, device=device, engine=engine, overwrite=overwrite)
    show_summary(made)


@command("Begin here", "demo", "prunus demo --out prunus-demo", "prunus demo --experts")
@click.option("--out", type=path, default=Path("prunus-demo"), show_default=True, help="Folder of what it makes.")
@click.option("--quick", is_flag=True, help="Two variants on few problems, without a search: takes a minute.")
@click.option("--experts", is_flag=True, help="Remove experts of the built-in mixture of experts instead.")
def demo_command(out: Path, quick: bool, experts: bool) -> None:
    """Prune, evaluate, compare and report on the built-in reasoner."""
    prunus.demo(out, quick=quick, experts=experts)


@command("Look", "tasks", "prunus tasks")
@json_option
def tasks_command(as_json: bool) -> None:
    """List the built-in problem sets."""
    print_list(prunus.tasks(), as_json)


@command("Look", "methods", "prunus methods")
@json_option
def methods_command(as_json: bool) -> None:
    """List the methods of prune, drop and experts, and allocations."""
    print_list(prunus.methods(), as_json)


@command(
    "Look",
    "profiles",
    "prunus profiles",
    "prunus profiles --model Qwen/Qwen3-0.6B",
    "prunus profiles mine.toml --model my-model",
)
@click.argument("name", required=False)
@click.option("--model", help="Show the profile for this model: a prompt, and every marker with its token ids.")
@json_option
def profiles_command(name: str | None, model: str | None, as_json: bool) -> None:
    """List the built-in profiles, or show one.

    NAME may also be a FILE.toml. With --model and without NAME, show the profile that the model's own files indicate.
    """
    if name is None and model is None:
        print_list(prunus.profiles(), as_json)
        return
    found = prunus.show_profile(name or "auto", model)
    width = max(map(len, found))
    show(found, as_json, lambda _: click.echo("\n".join(f"{key:<{width}}  {found[key]!r}" for key in found)))


def print_list(rows: Sequence[dict[str, str]], as_json: bool) -> None:
    """Print rows as JSON, or one line each: name, description, source, and what it needs, if anything; by kind."""
    width, lines = max(len(row["name"]) for row in rows), list[str]()
    for kind, of_kind in groupby(rows, lambda row: row.get("kind")):
        lines += ["", f"{kind}:"] if kind else []
        for row in of_kind:
            needs = f"; needs {row['needs']}" if row.get("needs", "nothing") != "nothing" else ""
            source = f" ({row['source']}{needs})" if "source" in row else ""
            lines.append(f"{row['name']:<{width}}  {row['description']}{source}")
    show(rows, as_json, lambda _: click.echo("\n".join(lines).lstrip()))
