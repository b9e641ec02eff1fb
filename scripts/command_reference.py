"""Write docs/commands.md from the command line's own help, or check that it is up to date.

python scripts/command_reference.py [--check]
"""

import argparse
import re
import sys
import textwrap
from collections import Counter
from pathlib import Path

import click

from prunus.cli.common import ALL, cli

TARGET = Path(__file__).parents[1] / "docs" / "commands.md"
INTRODUCTION = """\
# Commands

Made from `prunus COMMAND --help` with all options by `make docs`; do not edit. Exit codes: 0 done; 1 an internal error
(`-v` shows the traceback), for `verify` a claim that does not hold; 2 wrong input or environment, one line that says
what to do; 3 nothing certified by `find`, nothing that fits for `choose`, or a requirement of `compare` not met; 130
interrupted (the same command continues).

Every command also has `--help`, `-q` (`--quiet`: print errors only) and `-v` (`--verbose`: show the traceback of
internal errors); those with a group *Advanced* have `--help-all`. Options without a text are those of [several
commands](#options-of-several-commands).
"""
OF_ALL = re.compile(r"^  (-q, --quiet|-v, --verbose|-h, --help \[WORD\]|--help-all)  .*\n(?: {8,}.*\n)*", re.MULTILINE)


ENTRY = re.compile(r"^  ((?:-\w, )?--\S.*?)(?:  +|\n {4,})(\S.*(?:\n {4,}.*)*)", re.MULTILINE)  # an option and its text
OF_VALUE = re.compile(r" [^-/].*")  # what follows the name of an option
SEVERAL = 2  # commands, from which on the text of an option is not repeated


def reference() -> str:
    """Return the help of every command as Markdown; the text of an option that several have is there once."""
    helps = help_of_all()
    found = Counter((option, " ".join(text.split())) for help in helps.values() for option, text in ENTRY.findall(help))
    several = sorted(entry for entry, count in found.items() if count >= SEVERAL)

    def shortened(match: re.Match[str]) -> str:
        option, text = match.groups()
        return f"  {OF_VALUE.sub('', option)}" if (option, " ".join(text.split())) in several else match[0]

    parts = [INTRODUCTION]
    parts += [f"## {name}\n\n```\n{ENTRY.sub(shortened, help)}\n```\n" for name, help in helps.items()]
    lines = [textwrap.fill(f"{option}: {text}", 100, subsequent_indent="    ") for option, text in several]
    parts.append("\n".join(["## Options of several commands", "", "```", *lines, "```", ""]))
    return "\n".join(parts)


def help_of_all() -> dict[str, str]:
    """Return {`prunus NAME`: its help with all options, but those that every command has}."""
    found = {}
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=f"prunus {name}", max_content_width=100, terminal_width=100)
        context.meta[ALL] = True
        text = OF_ALL.sub("", command.get_help(context) + "\n").replace("\nGeneral:\n\n", "\n")
        found[f"prunus {name}"] = text.strip()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail unless the file is up to date")
    if not parser.parse_args().check:
        TARGET.write_text(reference())
    elif not TARGET.exists() or TARGET.read_text() != reference():
        sys.exit("docs/commands.md is not up to date with the command line: run `make docs`")


if __name__ == "__main__":
    main()
