"""The command that chooses a model, its form, a budget and votes for a machine."""

import sys
from pathlib import Path
from typing import Any

import click

import prunus
from prunus import progress
from prunus.cli.common import (
    ChoiceType,
    command,
    device_option,
    dry_run_option,
    engine_options,
    is_given,
    json_option,
    options,
    out_argument,
    overwrite_option,
    own_option,
    path,
    several,
    show,
    store_option,
)
from prunus.errors import PrunusError
from prunus.recipes import EvalPlan, PruneRecipe
from prunus.settings import ENGINE, settings_of
from prunus.settings.engines import IN_CHOOSE, EngineOptions
from prunus.settings.margins import MARGIN
from prunus.studies.choose.limits import Limits

NOTHING_FITS = 3  # exit code
OF_PLAN = (
    "budgets", "samples", "limit", "profile", "temperature", "prompt", "seed", "batch_size", "answer_tokens",
)  # fmt: skip
OF_CALIBRATION = ("calibration", "seqlen", "calibration_tokens")


@command(
    "Decide",
    "choose",
    "prunus choose tiny out/best --task tiny --budgets 32,128,512 --memory 500MB --seconds 60",
    "prunus choose Qwen/Qwen3-0.6B Qwen/Qwen3-1.7B out/best --engine llama.cpp --task gsm8k --memory 4GB --seconds 20",
    "prunus choose Qwen/Qwen3-0.6B Qwen/Qwen3-1.7B out/fast --memory 4GB --seconds 5 --speeds out/best",
    rare=(
        "alpha", "look", "profile", "temperature", "prompt", "seed", "batch_size", "request", "serving", "seqlen",
        "calibration_tokens", "speeds", "device", "overwrite",
    ),
)  # fmt: skip
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@out_argument
@options(Limits)
@several("--task", "tasks", metavar="NAME,...", help="As for eval; default: the rows that the store has, and no more.")
@options(EvalPlan, OF_PLAN)
@click.option(
    "--margin", default=str(MARGIN), show_default=True, metavar="SHARE", help="Sample until no other is better by it."
)
@click.option("--alpha", default=0.05, show_default=True, type=float, help="Probability that the claim is false.")
@click.option("--look", type=click.IntRange(1), metavar="N", help="Problems between two decisions; default: 64.")
@click.option("--forms", type=path, metavar="FILE.toml", help="Forms to try, instead of the engine's.")
@own_option(
    "--engine",
    type=ChoiceType(IN_CHOOSE),
    default="hf",
    show_default=True,
    group=ENGINE,
    envvar="PRUNUS_ENGINE",
    help="Who serves it.",
)
@engine_options("url", "served_model", "tokenizer", alone=False)
@options(PruneRecipe, OF_CALIBRATION)
@store_option
@click.option("--speeds", type=path, metavar="FILE", help="A choice.json whose speed test to use; of this machine.")
@device_option
@dry_run_option
@overwrite_option
@json_option
def choose_command(
    models: tuple[str, ...],
    out: Path,
    tasks: tuple[str, ...],
    options: EngineOptions,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Choose the most accurate form, budget and votes that fit.

    Each MODEL is tried in every form of the engine and at every budget, alone and as a vote of --samples. A speed test
    says which of them fit. Problems are taken until no other that fits is better by the margin. OUT has the form,
    serve.sh, choice.json and choice.html. Exit code 3: nothing fits.
    """
    plan = {name: given.pop(name) for name in list(given) if name in OF_PLAN}
    settings = {name: given.pop(name) for name in OF_CALIBRATION}
    if not tasks and (named := [name for name in plan if is_given(name)]):
        raise PrunusError(f"without --task the plan is that of the rows: leave out {', '.join(named)}")
    given["limits"] = Limits(**{name: given.pop(name) for name in settings_of(Limits)})
    given["settings"] = {name: value for name, value in settings.items() if is_given(name)}
    planned = EvalPlan(tasks=tasks, **plan) if tasks else None
    if dry_run:
        ahead = prunus.plan_choose(models, out, planned, options=options, **given)
        show(ahead, as_json, lambda _: progress.put(repr(ahead)))
        return
    chosen = prunus.choose(models, out, planned, options=options, **given)
    show(chosen, as_json, lambda _: progress.put(repr(chosen)))
    if chosen.out is None:
        sys.exit(NOTHING_FITS)
