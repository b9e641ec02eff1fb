"""The command that finds how far a model can be compressed while it provably still solves and still stops."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import prunus
from prunus import progress, recipes
from prunus.cli.common import (
    choice,
    command,
    device_option,
    is_given,
    json_option,
    model_argument,
    overwrite_option,
    print_json,
    ray_options,
    recipe_option,
    recover_option,
)
from prunus.cli.evaluation import plan_options, store_option
from prunus.cli.pruning import CALIBRATION_HELP
from prunus.declarations import Allocation, declared
from prunus.engines import EngineOptions
from prunus.evaluation.beforehand import check_plan
from prunus.recipes import EvalPlan, PruneRecipe

NOTHING_FOUND = 3  # exit code
# Options for fields of PruneRecipe, by the name of the field; those of evaluation have some of these names.
PRUNING = {
    "calibration": "calibration",
    "calibration_samples": "samples",
    "seqlen": "seqlen",
    "calibration_tokens": "calibration_tokens",
    "scope": "scope",
    "allocation": "allocation",
    "propagation": "propagation",
}


@command(
    "find",
    "prunus find tiny out/found --task tiny --budgets 64,256 --ladder 0.05:0.3:0.05 --margin 0.03\n"
    "prunus find tiny out/found --task tiny --budgets 64,256 --dry-run",
)
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--ladder",
    default="0.1:0.7:0.05",
    show_default=True,
    metavar="FROM:TO:STEP|FILE.toml",
    help="Sparsities to try, from gentle to harsh (or a list: 0.2,0.4), or a file with [[prune]] and [[drop]] tables.",
)
@click.option(
    "--method",
    help="One method or several, each with a ladder of its own: wanda,sparsegpt. Default: wanda.",
    metavar="NAME,...",
)
@click.option(
    "--margin",
    default="0.02",
    show_default=True,
    metavar="SHARE|N%",
    help="Loss of accuracy to rule out (0.02: two points; 5%: 5 % of what MODEL solves).",
)
@click.option(
    "--stop-margin",
    default="0.05",
    show_default=True,
    metavar="SHARE|N%",
    help="The same of the chains that end by themselves.",
)
@click.option("--alpha", default=0.05, show_default=True, help="Probability of any false certificate.")
@click.option("--max-tokens", type=int, help="End when the rows looked at took N tokens.", metavar="N")
@click.option(
    "--look", type=int, help="Problems evaluated between two decisions; default: a batch of the engine.", metavar="N"
)
@plan_options
@recipe_option(PruneRecipe, "calibration", f"For pruning: {CALIBRATION_HELP}")
@click.option("--calibration-samples", default=PruneRecipe.samples, show_default=True, help="Calibration sequences.")
@recipe_option(PruneRecipe, "seqlen", "Tokens per calibration sequence.", type=int)
@recipe_option(PruneRecipe, "calibration_tokens", "Exactly N calibration tokens, instead of samples.", type=int)
@recipe_option(PruneRecipe, "scope", "Which Linears of a block are pruned.", type=choice(recipes.Scope))
@recipe_option(
    PruneRecipe,
    "allocation",
    "How blocks share the sparsity.",
    type=choice(declared(Allocation)),
)
@recipe_option(
    PruneRecipe,
    "propagation",
    "Inputs on which a Linear is calibrated, as for prune; with dense they are measured once for all rungs.",
    type=choice(recipes.Propagation),
)
@recover_option
@store_option
@click.option("--serve", help="openai: command that starts a server, such as 'vllm serve {model} --port {port}'.")
@device_option
@ray_options
@click.option("--dry-run", is_flag=True, help="Print what to expect; write nothing.")
@overwrite_option
@json_option
def find_command(
    model: str,
    out: Path,
    ladder: str,
    method: str | None,
    margin: str,
    stop_margin: str,
    alpha: float,
    max_tokens: int | None,
    look: int | None,
    store: Path,
    recover: bool,
    serve: str | None,
    device: str,
    engine: EngineOptions,
    ray: str | None,
    gpus_per_task: float | None,
    cpus_per_task: float,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the most compressed version of MODEL that provably still solves and still stops to the folder OUT.

    Rung after rung of a ladder is pruned and compared with MODEL, problem by problem, only as far as it takes to
    certify or refuse it; the walk ends at the first rung that is not certified. Exit code 3: none was, and OUT is not
    written. After an interruption the same command goes on.
    """
    pruning = {name: options.pop(name) for name in PRUNING}
    settings = {PRUNING[name]: value for name, value in pruning.items() if is_given(name)}
    plan = EvalPlan(**options)
    if not ladder.endswith(".toml"):
        settings["seed"] = plan.seed
    check_plan(model, plan, engine, store)
    found = prunus.find(
        model, out, plan, ladder, methods=method.split(",") if method else None, settings=settings,
        recovery={} if recover else None, margin=margin, stop_margin=stop_margin, alpha=alpha, max_tokens=max_tokens,
        look=look, store=store,
        device=device, engine=replace(engine, serve=serve), ray=ray, gpus_per_task=gpus_per_task,
        cpus_per_task=cpus_per_task, dry_run=dry_run, overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        print_json(found)
    elif dry_run:
        click.echo("\n".join(found["lines"]))
    else:
        click.echo("\n".join(found["claims"]) or f"no rung was certified, so {found['model']} stays as it is")
        full = f"; all rungs in full would have taken about {found['full_grid_tokens']:,}"
        progress.say(f"{found['tokens']:,} tokens{full}" + (f"; written: {found['out']}" if found["out"] else ""))
    if not dry_run and found["out"] is None:
        sys.exit(NOTHING_FOUND)
