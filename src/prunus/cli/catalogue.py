"""The demo, and the lists of tasks and methods."""

from pathlib import Path

import click

import prunus
from prunus.cli.common import command, json_option, print_json
from prunus.declarations import Allocation, DepthMethod, Method, declared


@command("demo", "prunus demo --out prunus-demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("prunus-demo"), show_default=True)
@click.option("--quick", is_flag=True, help="Use a fifth of the problems: takes a minute, with wider intervals.")
def demo_command(out: Path, quick: bool) -> None:
    """Run everything on the built-in reasoner: prune, drop, evaluate, compare, report."""
    prunus.demo(out, quick=quick)


@command("tasks", "prunus tasks")
@json_option
def tasks_command(as_json: bool) -> None:
    """List the built-in problem sets."""
    from prunus.evaluation.tasks import TASKS

    show_catalogue(
        [{"name": t.name, "source": t.source, "description": t.description} for t in TASKS.values()], as_json
    )


@command("methods", "prunus methods")
@json_option
def methods_command(as_json: bool) -> None:
    """List the pruning methods, allocations and depth methods."""
    rows = [
        {"name": one.name, "source": one.source, "description": one.description, "needs": one.needs}
        for one in [*declared(Method).values(), *declared(Allocation).values()]
    ]
    rows += [
        {
            "name": one.name,
            "source": one.source,
            "description": one.description,
            "needs": "hidden states" if one.needs_data else "nothing",
        }
        for one in declared(DepthMethod).values()
    ]
    show_catalogue(rows, as_json)


def show_catalogue(rows: list[dict[str, str]], as_json: bool) -> None:
    """Names with source and one line each."""
    if as_json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        needs = f"; needs {row['needs']}" if row.get("needs", "nothing") != "nothing" else ""
        click.echo(f"{row['name']:<{width}}  {row['description']} ({row['source']}{needs})")
