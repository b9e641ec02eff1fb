"""Command lines that repeat what the steps of a manifest and a plan say."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from prunus.cards.markdown import LIMIT, hub_id, public, shown
from prunus.recipes import DropRecipe, EvalPlan, ExpertsRecipe, PruneRecipe, Recipe, RecoverRecipe, TraceRecipe
from prunus.results.characters import one_line
from prunus.results.labels import recipe_of

Data = Mapping[str, Any]
RECIPES: Mapping[str, type[Recipe]] = {
    "prune": PruneRecipe,
    "drop": DropRecipe,
    "experts": ExpertsRecipe,
    "recover": RecoverRecipe,
}
# Settings that are shown first, with their defaults too.
FIRST = ("method", "sparsity", "pattern", "blocks", "keep", "drop")
RESULT = "result"  # the folder that the last command writes


def settings(action: str, recipe: Data) -> list[tuple[str, Any]]:
    """(name, value) of the settings that are not the defaults; FIRST in any case."""
    usual = defaults(action)
    kept = {k: v for k, v in recipe.items() if v is not None and (k in FIRST or k not in usual or v != usual[k])}
    return sorted(kept.items(), key=lambda pair: (FIRST.index(pair[0]) if pair[0] in FIRST else len(FIRST), pair[0]))


def defaults(action: str) -> dict[str, Any]:
    """The default settings of a step."""
    return {field.name: field.default for field in fields(RECIPES[action])} if action in RECIPES else {}


def commands(steps: Sequence[Data], origin: str, plan: Data | None) -> list[str]:
    """Command lines that repeat the steps from the model `origin` on, and an evaluation; folders have new names."""
    model, lines, left = origin, [], list(steps)
    while left:
        step, count = left[0], rounds_of(left)
        out = RESULT if len(left) == count else f"step-{len(steps) - len(left) + 1}"
        action, recipe = str(step["action"]), recipe_of(step)
        if count > 1:
            lines.append(rounds_command(left[:count], model, out))
        elif action in RECIPES:
            dense = ["--dense", dense_of(step, origin, steps)] if action == "recover" else []
            lines.append(line(action, model, out, *dense, *options_of(action, recipe)))
        elif action == "quantise":
            lines += [line("pack", model, f"{out}-packed", "--int8"), line("unpack", f"{out}-packed", out, "--lossy")]
        elif action == "dequantize":
            lines.append(line("dequantize", model, out))
        else:
            lines.append(f"# {one_line(action)}: see prunus.json")
        model, left = out, left[count:]
    if plan is not None and "budgets" in plan:
        options = plan_options(plan)
        lines += [line("eval", one, *options, "--store", "results.db") for one in (origin, RESULT)]
        lines.append(line("compare", "results.db", "--base", origin))
    return lines


def dense_of(step: Data, origin: str, steps: Sequence[Data]) -> str:
    """The dense model of a recovery: the origin, unless that was pruned by another program and recovered first."""
    told = step.get("dense")
    if steps[0]["action"] != "recover" or not isinstance(told, Mapping):
        return origin
    return hub_id(told.get("hub")) or public(str(told.get("name")))


def rounds_of(steps: Sequence[Data]) -> int:
    """How many of the next steps one command made: two in every round, else one."""
    rounds = steps[0].get("round")
    count = 2 * rounds["of"] if isinstance(rounds, Mapping) and isinstance(rounds.get("of"), int) else 1
    return count if 4 <= count <= len(steps) else 1


def rounds_command(steps: Sequence[Data], model: str, out: str) -> str:
    """The command that pruned and recovered in rounds: the first round's settings, with the last one's sparsity."""
    first, recovery, second = steps[0], steps[1], steps[2]
    recipe = {**recipe_of(first), "sparsity": recipe_of(steps[-2]).get("sparsity")}
    chains = second["round"].get("chains", {})
    drawn = dict(chains.get("recipe", {}))
    drawn["seed"] = int(drawn.get("seed", 1)) - 1  # each round after the first has the next seed
    usual = {field.name: field.default for field in fields(TraceRecipe)}
    return line(
        "prune", model, out, *options_of("prune", recipe), "--recover",
        *options_of("recover", recipe_of(recovery), "recover-"), "--rounds", str(first["round"]["of"]),
        "--drawn-from", str(chains.get("from", "recovered")), *flags(drawn, usual, "traces-"),
    )  # fmt: skip


def options_of(action: str, recipe: Data, prefix: str = "") -> list[str]:
    """The options of a command that make this recipe."""
    given = dict(recipe)
    if given.get("pattern"):
        given.pop("sparsity", None)  # the pattern says it
    shown_always = {key: given[key] for key in FIRST if given.get(key) is not None}
    return flags(given, {k: v for k, v in defaults(action).items() if k not in shown_always}, prefix)


def plan_options(plan: Data) -> list[str]:
    """The options of `prunus eval` that make this plan."""
    known = {field.name: field.default for field in fields(EvalPlan)}
    given = {key: value for key, value in plan.items() if key in known and not isinstance(value, Mapping)}
    return flags(given, known)


def flags(given: Data, usual: Data, prefix: str = "") -> list[str]:
    """Options for the values that are not the usual ones."""
    found: list[str] = []
    for key, value in given.items():
        if value is None or (key in usual and value == usual[key]):
            continue
        name = prefix + key.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        elif key == "tasks":
            found += [part for task in value for part in (f"--{prefix}task", public(str(task)))]
        elif isinstance(value, list | tuple):
            found += [f"--{name}", ",".join(map(str, value))]
        else:
            found += [f"--{name}", shown(key, value)]
    return found


def line(command: str, *words: str) -> str:
    """A command line for a shell."""
    return shlex.join(["prunus", command, *(one_line(word, LIMIT) for word in words)])
