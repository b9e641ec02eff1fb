"""A whole grid in one command."""

from pathlib import Path

import click

import prunus
from prunus import progress
from prunus.cli.common import command, device_option, json_option, print_json
from prunus.errors import PrunusError

ACTIONS = ("run", "plan", "report")


@command(
    "study",
    "prunus study plan examples/tiny.toml\nprunus study examples/tiny.toml\nprunus study examples/paper.toml --ray",
)
@click.argument("words", nargs=-1, required=True, metavar="[run|plan|report] FILE.toml")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for all of it; default: study-FILE.")
@click.option("--store", type=click.Path(path_type=Path), help="Results; default: results.db in that folder.")
@device_option
@click.option(
    "--ray",
    is_flag=False,
    flag_value="auto",
    metavar="[HOST:PORT]",
    help="Run on a Ray cluster: at this address, else of RAY_ADDRESS, else on this machine.",
)
@click.option(
    "--gpus-per-task", type=click.FloatRange(0), help="With --ray, of each worker; default: 1 where there are any."
)
@click.option(
    "--cpus-per-task",
    type=click.FloatRange(0, min_open=True),
    default=1,
    show_default=True,
    help="With --ray, of each worker.",
)
@click.option("--no-measure", is_flag=True, help="plan: load no model; no estimate of time.")
@json_option
def study_command(
    words: tuple[str, ...],
    out: Path | None,
    store: Path | None,
    device: str,
    ray: str | None,
    gpus_per_task: float | None,
    cpus_per_task: float,
    no_measure: bool,
    as_json: bool,
) -> None:
    """Models x recipes x plans of a TOML file: run what is missing, compare, report.

    Stop it whenever you like; the same command goes on. `plan` runs nothing: it prints the cells, what is done, and
    what the rest would take. `report` makes the page of what is there, also while the study runs.
    """
    action, file = parse(words)
    if no_measure and action != "plan":
        raise PrunusError("--no-measure belongs to `prunus study plan`")
    if ray is None and (gpus_per_task is not None or cpus_per_task != 1):
        raise PrunusError("--gpus-per-task and --cpus-per-task belong to --ray")
    if action == "plan":
        plan = prunus.plan_study(file, out=out, store=store, device=device, measure=not no_measure)
        if as_json:
            print_json(plan)
            return
        from prunus.study.plan_table import plan_table

        progress.out_console.print(plan_table(plan))
        return
    if action == "report":
        done = prunus.report_study(file, out=out, store=store)
    else:
        done = prunus.run_study(
            file,
            out=out,
            store=store,
            device=device,
            ray=ray,
            gpus_per_task=gpus_per_task,
            cpus_per_task=cpus_per_task,
        )
    if as_json:
        print_json(done)
        return
    from prunus.reporting.terminal import verdict_table

    for entry in done["comparisons"]:
        if entry["comparison"] is not None:
            progress.out_console.print(verdict_table(entry["comparison"]))
    progress.say(f"report: {done['report']}")


def parse(words: tuple[str, ...]) -> tuple[str, str]:
    """Action and file; running needs not be said."""
    action, *files = words if words[0] in ACTIONS else ("run", *words)
    if len(files) != 1:
        raise PrunusError(f"one FILE.toml, please, after {action}: `prunus study {action} FILE.toml`")
    return action, files[0]
