"""Every command in a block of a page, of a help text or at the top of an example is taken by the real parser.

Each is called as a user would, up to the function of the API that it calls, which is not: so options, their values, and
the plans and recipes that they make are checked, and what they need of this machine is not.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import prunus
from prunus.checkpoint.resolve import tiny_folder
from prunus.cli import cli
from prunus.pruning.calibration import saved_statistics
from prunus.step import STEPS, step_kind

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SKILL.md", ROOT / "training/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
END = {"&&", "||", "|", ";", "&", "done", ">", "2>", "do"}
# What commands check of this machine before they call the API.
NEEDS = ("evaluation.check_plan", "models.check_calibration", "models.check_readable", "models.read_source")


def commands_in(text: str) -> Iterator[str]:
    """Each `prunus ...` of a shell's lines, without comments; lines that end in a backslash go on."""
    for line in re.sub(r" *\\\n#? *", " ", text).splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while "prunus" in words:
            words = words[words.index("prunus") + 1 :]
            ends = next((place for place, word in enumerate(words) if word in END or word.endswith(";")), len(words))
            given = [word.rstrip(";") for word in words[: ends + (ends < len(words) and words[ends].endswith(";"))]]
            if given and given[0] in cli.commands:
                yield shlex.join(given)


def documented() -> Iterator[tuple[str, str]]:
    """(where, command) of all."""
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        if name == "docs/commands.md":
            continue  # made of the help texts, which come below
        for block in re.findall(r"^ *```(?:bash|sh|console)?\n(.*?)^ *```", page.read_text(), re.M | re.S):
            shown = block if "$ prunus" not in block else "\n".join(re.findall(r"^\$ .*(?:\\\n.*)*", block, re.M))
            try:
                yield from ((name, command) for command in commands_in(shown))
            except ValueError:  # not of a shell: a quotation mark that no other closes
                assert not re.search(r"^\$? ?prunus \w", block, re.M), f"{name}: {block}"
    for name, command in cli.commands.items():
        for line in re.findall(r"^ *(prunus .*)", command.epilog or "", re.M):
            yield from ((f"help of {name}", one) for one in commands_in(line))
    for example in sorted((ROOT / "examples").glob("*.toml")):
        lines = re.findall(r"^#   (?:\$ )?(.*)", example.read_text(), re.M)
        shown = [line for line in lines if line.startswith("prunus") or line.startswith("  ")]
        yield from ((f"examples/{example.name}", command) for command in commands_in("\n".join(shown)))


COMMANDS = sorted(set(documented()))


class Called(Exception):
    """The command has called the API."""


def call(*_: Any, **__: Any) -> Any:
    raise Called


def test_there_are_commands_of_every_kind():
    assert {shlex.split(command)[0] for _, command in COMMANDS} == set(cli.commands) and len(COMMANDS) > 100


@pytest.mark.parametrize(("where", "command"), COMMANDS, ids=lambda one: one[:60])
def test_the_command_is_taken(where, command, monkeypatch):
    for name in prunus.__all__:
        if name[0].islower():
            monkeypatch.setattr(prunus, name, call)
    for name in NEEDS:
        monkeypatch.setattr(f"prunus.cli.{name}", lambda *_, **__: None)
    name, *arguments = shlex.split(command)
    monkeypatch.setattr("prunus.cli.models.resolve", lambda _: tiny_folder())
    monkeypatch.setattr(saved_statistics, "read_stats", lambda _: [None])
    monkeypatch.setattr(saved_statistics, "check_given", lambda *_: None)
    for kind in map(step_kind, STEPS):
        monkeypatch.setattr(type(kind), "make", call)
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda _: True})())
    monkeypatch.setattr(click, "confirm", lambda *_, **__: True)
    with pytest.raises(Called), cli.commands[name].make_context(f"prunus {name}", arguments) as context:
        cli.commands[name].invoke(context)
