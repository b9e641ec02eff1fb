"""Commands that list tasks and methods, and the demo."""

from collections.abc import Sequence
from pathlib import Path

import click

import prunus
from prunus.cli.common import command, json_option, print_json


@command("demo", "prunus demo --out prunus-demo\nprunus demo --experts")
@click.option("--out", type=click.Path(path_type=Path), default=Path("prunus-demo"), show_default=True)
@click.option("--quick", is_flag=True, help="Use a fifth of the problems: takes a minute, with wider intervals.")
@click.option("--experts", is_flag=True, help="Remove experts of the built-in mixture of experts instead.")
def demo_command(out: Path, quick: bool, experts: bool) -> None:
    """Run everything on the built-in reasoner: prune, drop, recover, evaluate, compare, report."""
    prunus.demo(out, quick=quick, experts=experts)


@command("tasks", "prunus tasks")
@json_option
def tasks_command(as_json: bool) -> None:
    """List the built-in problem sets."""
    print_list(prunus.tasks(), as_json)


@command("methods", "prunus methods")
@json_option
def methods_command(as_json: bool) -> None:
    """List the pruning methods, allocations and depth methods."""
    print_list(prunus.methods(), as_json)


def print_list(rows: Sequence[dict[str, str]], as_json: bool) -> None:
    """Print rows as JSON, or one line each: name, description, source, and what it needs, if anything."""
    if as_json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        needs = f"; needs {row['needs']}" if row.get("needs", "nothing") != "nothing" else ""
        source = f" ({row['source']}{needs})" if "source" in row else ""
        click.echo(f"{row['name']:<{width}}  {row['description']}{source}")
