"""Commands that list tasks, methods and profiles, and the demo."""

from collections.abc import Sequence
from pathlib import Path

import click

import prunus
from prunus.cli.common import command, json_option, path, show


@command("demo", "prunus demo --out prunus-demo", "prunus demo --experts")
@click.option("--out", type=path, default=Path("prunus-demo"), show_default=True)
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


@command(
    "profiles",
    "prunus profiles",
    "prunus profiles --model Qwen/Qwen3-0.6B",
    "prunus profiles mine.toml --model my-model",
)
@click.argument("name", required=False)
@click.option("--model", help="Show the profile for this model: a prompt, and every marker with its token ids.")
@json_option
def profiles_command(name: str | None, model: str | None, as_json: bool) -> None:
    """List the built-in profiles, or show the profile NAME (also a FILE.toml).

    With --model and without NAME, show the profile that the model's own files indicate.
    """
    if name is None and model is None:
        print_list(prunus.profiles(), as_json)
        return
    found = prunus.show_profile(name or "auto", model)
    width = max(map(len, found))
    show(found, as_json, lambda _: click.echo("\n".join(f"{key:<{width}}  {found[key]!r}" for key in found)))


def print_list(rows: Sequence[dict[str, str]], as_json: bool) -> None:
    """Print rows as JSON, or one line each: name, description, source, and what it needs, if anything."""
    width, lines = max(len(row["name"]) for row in rows), []
    for row in rows:
        needs = f"; needs {row['needs']}" if row.get("needs", "nothing") != "nothing" else ""
        source = f" ({row['source']}{needs})" if "source" in row else ""
        lines.append(f"{row['name']:<{width}}  {row['description']}{source}")
    show(rows, as_json, lambda _: click.echo("\n".join(lines)))
