"""The command for a study: a grid of models, recipes and plans."""

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
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the study; default: study-FILE.")
@click.option(
    "--store", type=click.Path(path_type=Path), help="Store of the results; default: results.db in the study's folder."
)
@device_option
@click.option(
    "--ray",
    is_flag=False,
    flag_value="auto",
    metavar="[HOST:PORT]",
    help="Run on a Ray cluster: at this address, else at $RAY_ADDRESS, else one started on this machine.",
)
@click.option(
    "--gpus-per-task", type=click.FloatRange(0), help="With --ray: GPUs of each worker; default: 1, or 0 without GPUs."
)
@click.option(
    "--cpus-per-task",
    type=click.FloatRange(0, min_open=True),
    default=1,
    show_default=True,
    help="With --ray: CPUs of each worker.",
)
@click.option("--no-measure", is_flag=True, help="plan: load no model, so that no time is estimated.")
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
    """Run a study, the grid of models, recipes and plans of a TOML file: do what is missing, compare, report.

    You can stop it at any time; the same command resumes it. `plan` runs nothing: it prints the cells, which of them
    are done, and how long the rest would take. `report` writes the page from the finished cells, also during a run.
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
    """Return (action, file); the action is `run` where none is given."""
    action, *files = words if words[0] in ACTIONS else ("run", *words)
    if len(files) != 1:
        raise PrunusError(f"give one FILE.toml after {action}: `prunus study {action} FILE.toml`")
    return action, files[0]
