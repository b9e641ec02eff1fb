"""The command that plans, runs and reports a study, which is a grid of models, recipes and plans."""

from pathlib import Path
from typing import Any

import click

import prunus
from prunus import progress
from prunus.cli.common import command, device_option, is_given, json_option, path, ray_options, show, show_verdicts
from prunus.errors import PrunusError

ACTIONS = ("run", "plan", "report")
OPTIONS_OF_ONE_ACTION = {"no_measure": "plan", "ray": "run", "gpus_per_task": "run", "cpus_per_task": "run"}


@command(
    "study",
    "prunus study plan examples/tiny.toml",
    "prunus study examples/tiny.toml",
    "prunus study examples/paper.toml --ray",
)
@click.argument("words", nargs=-1, required=True, metavar="[run|plan|report] FILE.toml")
@click.option("--out", type=path, help="Folder of the study; default: study-FILE.")
@click.option("--store", type=path, help="Store of the results; default: results.db in the study's folder.")
@device_option
@ray_options
@click.option("--no-measure", is_flag=True, help="plan: load no model, so that no time is estimated.")
@json_option
def study_command(
    words: tuple[str, ...],
    out: Path | None,
    store: Path | None,
    device: str,
    no_measure: bool,
    as_json: bool,
    **workers: Any,
) -> None:
    """Run a study, the grid of models, recipes and plans of a TOML file: do what is missing, compare, report.

    Then it carries out the searches of the file's [[find]] tables, as `prunus find` does. You can stop it at any time;
    the same command resumes it. `plan` runs nothing: it prints the cells, which of them are done, and how long the rest
    would take. `report` writes the page from the finished cells, also during a run.
    """
    action, file = parse(words)
    if action == "plan":
        plan = prunus.plan_study(file, out=out, store=store, device=device, measure=not no_measure)
        show(plan, as_json, print_plan)
    elif action == "report":
        show(prunus.report_study(file, out=out, store=store), as_json, print_outcomes)
    else:
        show(prunus.run_study(file, out=out, store=store, device=device, **workers), as_json, print_outcomes)


def parse(words: tuple[str, ...]) -> tuple[str, str]:
    """(action, file); the action is `run` where none is given.

    Raises PrunusError unless there is exactly one file, and where an option was given that the action does not have.
    """
    action, *files = words if words[0] in ACTIONS else ("run", *words)
    if len(files) != 1:
        raise PrunusError(f"give one FILE.toml after {action}: `prunus study {action} FILE.toml`")
    for option, owner in OPTIONS_OF_ONE_ACTION.items():
        if action != owner and is_given(option):
            raise PrunusError(f"--{option.replace('_', '-')} belongs to `prunus study {owner}`")
    return action, files[0]


def print_plan(plan: dict[str, Any]) -> None:
    """Print what a study would do as a table."""
    from prunus.study.live_table import plan_table

    progress.out_console.print(plan_table(plan))


def print_outcomes(done: dict[str, Any]) -> None:
    """Print a table of verdicts for each model and plan, the outcomes of searches, and where the report is."""
    from prunus.study.live_table import search_lines

    for entry in done["comparisons"]:
        if entry["comparison"] is not None:
            show_verdicts(entry["comparison"])
    for search in done["searches"]:
        click.echo("\n".join(search_lines(search, len({one["model"] for one in done["searches"]}) > 1)))
    progress.say(f"report: {done['report']}")
