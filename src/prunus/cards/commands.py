"""Command lines that repeat what the steps of a manifest and a plan say."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from prunus.cards.markdown import LIMIT, hub_id, public, shown
from prunus.recipes import EvalPlan
from prunus.results.characters import one_line
from prunus.settings import settings_of
from prunus.step import STEPS, defaults, recipe_of, step_kind

Data = Mapping[str, Any]
# Settings that are shown first, with their defaults too.
FIRST = ("bits", "method", "sparsity", "pattern", "blocks", "keep", "drop", "intermediate_size")
RESULT = "result"  # the folder that the last command writes


def commands(steps: Sequence[Data], origin: str, plan: Data | None) -> list[str]:
    """Command lines that repeat the steps from the model `origin` on, and an evaluation; folders have new names."""
    model, lines = origin, []
    for number, step in enumerate(steps, 1):
        out = RESULT if number == len(steps) else f"step-{number}"
        action, recipe = str(step["action"]), recipe_of(step)
        if action in STEPS:
            dense = ["--dense", dense_of(step, origin, steps)] if step_kind(action).needs_pruned else []
            lines.append(line(action, model, out, *dense, *options_of(action, recipe)))
        elif action == "dequantize":
            lines.append(line("dequantize", model, out))
        else:
            lines.append(f"# {one_line(action)}: see prunus.json")
        model = out
    if plan is not None and "budgets" in plan:
        options = plan_options(plan)
        lines += [line("eval", one, *options, "--store", "results.db") for one in (origin, RESULT)]
        lines.append(line("compare", "results.db", "--base", origin))
    return lines


def dense_of(step: Data, origin: str, steps: Sequence[Data]) -> str:
    """The dense model of a recovery: the origin, unless that was pruned by another program and recovered first."""
    dense = step.get("dense")
    if steps[0]["action"] != "recover" or not isinstance(dense, Mapping):
        return origin
    return hub_id(dense.get("hub")) or public(str(dense.get("name")))


def options_of(action: str, recipe: Data) -> list[str]:
    """The options of a command that make this recipe."""
    given = dict(recipe)
    if given.get("pattern"):
        given.pop("sparsity", None)  # the pattern says it
    shown_always = {key: given[key] for key in FIRST if given.get(key) is not None}
    known = {k: v for k, v in defaults(action).items() if k not in shown_always}
    return flags(given, known, step_kind(action).recipe)


def plan_options(plan: Data) -> list[str]:
    """The options of `prunus eval` that make this plan."""
    known = {field.name: field.default for field in fields(EvalPlan)}
    given = {key: value for key, value in plan.items() if key in known and not isinstance(value, Mapping)}
    return flags(given, known, EvalPlan)


def flags(given: Data, default: Data, of: type) -> list[str]:
    """Options for the values that are not the default ones. of: the class of the settings."""
    settings, found = settings_of(of), list[str]()
    for key, value in given.items():
        if value is None or (key in default and value == default[key]):
            continue
        option = settings[key].option if key in settings else "--" + key.replace("_", "-")
        if isinstance(value, bool):
            found.append(option if value else f"--no-{option[2:]}")
        elif key == "tasks":
            found += [part for task in value for part in ("--task", public(str(task)))]
        elif isinstance(value, list | tuple):
            found += [option, ",".join(map(str, value))]
        else:
            found += [option, shown(key, value)]
    return found


def line(command: str, *words: str) -> str:
    """A command line for a shell."""
    return shlex.join(["prunus", command, *(one_line(word, LIMIT) for word in words)])
