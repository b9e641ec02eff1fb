"""Commands that evaluate: one model, its chains of thought, a study, a search; lists of what there is; the demo."""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import prunus
from prunus import progress
from prunus.cli.common import (
    command,
    device_option,
    dry_run_option,
    engine_options,
    is_given,
    json_option,
    mixed_option,
    model_argument,
    options,
    out_argument,
    overwrite_option,
    path,
    ray_options,
    recover_option,
    several,
    show,
    show_summary,
    show_verdicts,
    store_option,
    where_option,
)
from prunus.errors import PrunusError
from prunus.evaluation.preflight import check_plan
from prunus.plain_data import Record
from prunus.recipes import EvalPlan, PruneRecipe, TraceRecipe
from prunus.settings import hints_of, settings_of
from prunus.settings.engines import EngineOptions
from prunus.studies.file import DEFAULT_LADDER, FindRules

if TYPE_CHECKING:
    from prunus.studies.find.forecast import SearchForecast
    from prunus.studies.find.found import Found
    from prunus.studies.records import StudyPlan, StudyResult

task_option = several(
    "--task",
    "tasks",
    required=True,
    metavar="NAME,...",
    help="Names of `prunus tasks`, FILE.jsonl or lm_eval:NAME (docs/import.md).",
)


@command(
    "Evaluate",
    "eval",
    "prunus eval tiny --task tiny --budgets 16,64,256",
    "prunus eval Qwen/Qwen3-0.6B --task gsm8k --budgets 512,1k,2k --engine vllm --engine-args max_model_len=4k",
    "prunus eval models/q4 --task gsm8k --engine llama.cpp",
    "prunus eval Qwen/Qwen3-0.6B --task gsm8k --url http://localhost:8000/v1",
    rare=("prompt", "seed", "batch_size", "request", "serving", "mixed"),
)
@model_argument
@task_option
@options(EvalPlan, [name for name in settings_of(EvalPlan) if name != "base_samples"])  # it compares nothing
@engine_options()
@store_option
@device_option
@mixed_option
@json_option
def eval_command(
    model: str, store: Path, device: str, options: EngineOptions, mixed: bool, as_json: bool, **plan: Any
) -> None:
    """Evaluate MODEL under thinking budgets and store every answer.

    The same command resumes an interrupted run; a finished one does no work.
    """
    check_plan(model, eval_plan := EvalPlan(**plan), options, store)
    run = prunus.evaluate(model, eval_plan, store, device=device, options=options, mixed=mixed)
    from prunus.reporting.terminal import curve_table

    show(run, as_json, lambda _: progress.out_console.print(curve_table([run])))


@command(
    "Make",
    "traces",
    "prunus traces tiny own.jsonl --task tiny-train --limit 200 --chain-tokens 256 --only correct",
    "prunus traces Qwen/Qwen3-0.6B own.jsonl --task gsm8k-train --limit 200 --engine vllm",
    rare=("prompt", "seed", "batch_size", "request", "serving"),
)
@model_argument
@out_argument
@task_option
@options(TraceRecipe)
@engine_options()
@device_option
@overwrite_option
@json_option
def traces_command(
    model: str, out: Path, device: str, options: EngineOptions, overwrite: bool, as_json: bool, **recipe: Any
) -> None:
    """Write MODEL's chains of thought to OUT.jsonl, for calibration.

    Use it as `--calibration traces:OUT.jsonl`. Evaluation sets are refused. The same command resumes an interrupted
    run.
    """
    check_plan(model, trace_recipe := TraceRecipe(**recipe), options)
    made = prunus.traces(model, out, trace_recipe, device=device, options=options, overwrite=overwrite)
    show(made, as_json, show_summary)


@command("Begin here", "demo", "prunus demo --out prunus-demo", "prunus demo --experts")
@click.option("--out", type=path, default=Path("prunus-demo"), show_default=True, help="Folder of what it makes.")
@click.option("--quick", is_flag=True, help="Two variants on few problems: a minute.")
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
    show(prunus.show_profile(name or "auto", model), as_json, lambda found: progress.put(repr(found)))


def print_list(entries: Sequence[Record], as_json: bool) -> None:
    """Print entries as JSON, or a row each: name, description, source, and what it needs, if anything; by kind."""
    from rich.text import Text

    from prunus.text_table import UNLIMITED, TextTable, printed

    rows = [entry.to_json() for entry in entries]
    tables, width = list[Any](), max(len(row["name"]) for row in rows)
    for kind, of_kind in groupby(rows, lambda row: row.get("kind")):
        tables += [*[Text("")] * bool(tables), Text(f"{kind}:")] if kind else []
        tables.append(TextTable("", "", left=("",), gap=2))
        for row in of_kind:
            needs = f"; needs {row['needs']}" if row.get("needs", "nothing") != "nothing" else ""
            source = f" ({row['source']}{needs})" if "source" in row else ""
            tables[-1].add_row(f"{row['name']:<{width}}", f"{row['description']}{source}")
    show(rows, as_json, lambda _: progress.put(printed(*tables, width=UNLIMITED)))


ACTIONS = ("run", "plan", "report")
OF_RUN = ("ray", "gpus_per_task", "cpus_per_task", "mixed", "batches")  # options of one action only


@command(
    "Evaluate",
    "study",
    "prunus study plan examples/tiny.toml",
    "prunus study examples/tiny.toml",
    "prunus study examples/paper.toml --ray",
)
@click.argument("words", nargs=-1, required=True, metavar="[run|plan|report] FILE.toml")
@where_option("--out", type=path, help="Folder of the study; default: study-FILE.")
@where_option("--store", type=path, help="File of the results; default: results.db in the study's folder.")
@device_option
@mixed_option
@where_option("--batches", type=int, help="Stop after N batches; the study's file must have by_batch = true.")
@ray_options
@json_option
def study_command(
    words: tuple[str, ...],
    out: Path | None,
    store: Path | None,
    device: str,
    as_json: bool,
    **workers: Any,
) -> None:
    """Run a study: a grid of models, recipes and plans.

    It does what is missing of FILE.toml, compares and reports. The same command resumes an interrupted run. `plan`
    runs nothing: it prints the cells, which are done, and what the rest takes. `report` writes the page of the finished
    cells, also during a run.
    """
    action, file = parse(words)
    if action == "plan":
        show(prunus.plan_study(file, out=out, store=store, device=device), as_json, print_plan)
    elif action == "report":
        show(prunus.report_study(file, out=out, store=store), as_json, print_outcomes)
    else:
        show(prunus.study(file, out=out, store=store, device=device, **workers), as_json, print_outcomes)


def parse(words: tuple[str, ...]) -> tuple[str, str]:
    """(action, file); the action is `run` where none is given.

    Raises PrunusError unless there is exactly one file, and where an option was given that the action does not have.
    """
    action, *files = words if words[0] in ACTIONS else ("run", *words)
    if len(files) != 1:
        raise PrunusError(f"give one FILE.toml after {action}: `prunus study {action} FILE.toml`")
    for name in OF_RUN:
        if action != "run" and is_given(name):
            raise PrunusError(f"--{name.replace('_', '-')} belongs to `prunus study run`")
    return action, files[0]


def print_plan(plan: "StudyPlan") -> None:
    """Print what a study would do as a table."""
    from prunus.studies.records import plan_table

    progress.out_console.print(plan_table(plan))


def print_outcomes(done: "StudyResult") -> None:
    """Print a table of verdicts for each model and plan, the outcomes of searches, and where the report is."""
    from prunus.studies.records import search_lines

    for contrast in done.comparisons:
        if contrast.comparison is not None:
            show_verdicts(contrast.comparison)
    for search in done.searches:
        progress.put("\n".join(search_lines(search, len({search.model for search in done.searches}) > 1)))
    progress.say(f"report: {done.report}")


NOTHING_FOUND = 3  # exit code
# Settings of EvalPlan that are options of a search; a study's [[find]] table has all.
OF_PLAN = (
    "budgets", "samples", "base_samples", "limit", "profile", "temperature", "prompt", "seed", "batch_size", "engine",
    "answer_tokens",
)  # fmt: skip
# Settings of PruneRecipe that are options.
OF_PRUNING = ("calibration", "sequences", "seqlen", "calibration_tokens", "scope", "allocation", "propagation")


@command(
    "Decide",
    "find",
    "prunus find tiny out/found --task tiny --budgets 64,256 --ladder 0.05:0.3:0.05 --margin 0.05",
    "prunus find tiny out/found --task tiny --budgets 64,256 --dry-run",
    "prunus find Qwen/Qwen3-0.6B out/small --task gsm8k --engine vllm --calibration traces:own.jsonl --dry-run",
    rare=(
        "stop_margin", "recover", "alpha", "most_tokens", "look", "base_samples", "profile", "temperature", "prompt",
        "seed", "batch_size", "answer_tokens",
        "request", "serving", "seqlen", "calibration_tokens", "sequences", "device", "ray", "gpus_per_task",
        "cpus_per_task", "overwrite",
    ),
)  # fmt: skip
@model_argument
@out_argument
@task_option
@click.option(
    "--ladder",
    metavar="FROM:TO:STEP|FILE.toml",
    help="Sparsities, from gentle to harsh (or 0.2,0.4), or a file of recipes; default: fewer bits, then also fewer"
    f" channels or experts, in vllm and llama.cpp; else, or with --method, {DEFAULT_LADDER}.",
)
@several(
    "--method",
    "methods",
    help="Methods of zeros, each with a ladder of its own: wanda,sparsegpt; default: wanda.",
    metavar="NAME,...",
)
@options(FindRules, ("margin", "stop_margin", "alpha", "most_tokens", "look"))
@options(EvalPlan, OF_PLAN)
@engine_options("url", "served_model", "tokenizer")
@options(PruneRecipe, OF_PRUNING)
@recover_option
@store_option
@device_option
@ray_options
@dry_run_option
@overwrite_option
@json_option
def find_command(
    model: str,
    out: Path,
    ladder: str | None,
    methods: tuple[str, ...],
    recover: bool,
    store: Path,
    options: EngineOptions,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Find the smallest MODEL shown to solve and to stop as well.

    Variants from gentle to harsh, the rungs of a ladder, are compared with MODEL in turn, each on only as
    many problems as it takes to certify or refuse it. OUT is the last one before the first that is not certified. Exit
    code 3: none was, and OUT is not written. The same command resumes an interrupted run.
    """
    pruning = {name: given.pop(name) for name in OF_PRUNING}
    settings = {name: value for name, value in pruning.items() if is_given(name)}
    plan = EvalPlan(**{name: given.pop(name) for name in list(given) if name in hints_of(EvalPlan)})
    if ladder is None or not ladder.endswith(".toml"):
        settings["seed"] = plan.seed
    check_plan(model, plan, options, store)
    workers = {name: given.pop(name) for name in ("gpus_per_task", "cpus_per_task")}
    given |= {"methods": methods or None, "settings": settings, "recovery": {} if recover else None}
    given |= {"store": store, "options": options}
    if dry_run:
        forecast = prunus.plan_find(model, out, plan, ladder, **given)
        show(forecast.to_json(), as_json, lambda _: print_forecast(forecast))
        return
    found = prunus.find(model, out, plan, ladder, **given, **workers)
    show(found.to_json(), as_json, lambda _: print_search(found))
    if found.out is None:
        sys.exit(NOTHING_FOUND)


def print_forecast(forecast: "SearchForecast") -> None:
    """Print what to expect of a search, and its ladder if that is one by bytes."""
    progress.put("\n".join(forecast.lines))
    if forecast.ladder is not None:
        progress.put(f"the ladder, of which an edited copy may be given as --ladder FILE.toml:\n\n{forecast.ladder}")


def print_search(result: "Found") -> None:
    """Print what a search found, and what it took."""
    progress.put("\n".join(result.claims) or f"no rung was certified, so {result.model} stays as it is")
    full = f"; all rungs in full would have taken about {result.full_grid_tokens:,}"
    progress.say(f"{result.tokens:,} tokens{full}" + (f"; written: {result.out}" if result.out else ""))
