"""The commands of the kinds of steps: one for each of STEPS."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import prunus
from prunus.cli.common import command, is_given, options, out_argument, recover_option, show_summary
from prunus.errors import PrunusError
from prunus.pruning.calibration.beforehand import check_calibration
from prunus.recipes import RecoverRecipe
from prunus.settings import settings_of
from prunus.step import STEPS, Step, Where, step_kind


def add_command(action: str, kind: Step) -> None:
    """Make the command of a kind of step: its arguments, the settings of its recipe, and how it is carried out."""
    ways = [name for name in settings_of(Where) if name in (*kind.options, "device", "dry_run", "overwrite")]

    def call(model: str, out: Path, **given: Any) -> None:
        asked = {name: value for name, value in given.items() if name in settings_of(kind.recipe) and is_given(name)}
        where = Where(**{name: given[name] for name in ways})
        carry_out(kind, model, out, asked, where, given.get("recover", False))

    call.__doc__ = inspect.getdoc(kind)
    parts = [options(kind.recipe), *([recover_option] if "recover" in kind.options else []), options(Where, ways)]
    for part in reversed(parts):
        call = part(call)
    call = out_argument(call)
    model = click.argument("model", metavar="PRUNED" if kind.needs_pruned else "MODEL")
    command(action, *kind.examples)(model(call))


def carry_out(kind: Step, model: str, out: Path, asked: Mapping[str, Any], where: Where, recovers: bool) -> None:
    """Make the step that a user asks for with these settings, and possibly a recovery after it."""
    recipe = kind.asked(asked)
    if not recovers:
        check_calibration(recipe, model, out, stats=where.stats)
        if where.stats is not None:
            from prunus.pruning.calibration.saved_statistics import FIELDS, LEAST, check_given

            check_given(where.stats, model, {name: asked[name] for name in (*FIELDS, LEAST) if name in asked})
        show_summary(kind.make(model, out, recipe, where, None))
        return
    if where.stats is not None:
        raise PrunusError("--recover trains on calibration tokens, which --stats does not hold: leave one of them out")
    steps = [recipe, RecoverRecipe.like(recipe)]
    for step in steps:
        check_calibration(step, model, out)
    ways = {name: getattr(where, name) for name in ("device", "offload", "overwrite", "dry_run")}
    show_summary(prunus.apply_steps(model, out, steps, **ways))


for _action in STEPS:
    add_command(_action, step_kind(_action))
