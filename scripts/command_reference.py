"""Write docs/commands.md from the command line's own help, or check that it is up to date.

python scripts/command_reference.py [--check]
"""

import argparse
import re
import sys
from pathlib import Path

import click

from prunus.cli.common import ALL, cli

TARGET = Path(__file__).parents[1] / "docs" / "commands.md"
INTRODUCTION = """\
# Commands

Made from `prunus COMMAND --help` with all options by `make docs`; do not edit. Exit codes: 0 done; 1 an internal error
(`-v` shows the traceback), for `verify` a claim that does not hold; 2 wrong input or environment, one line that says
what to do; 3 nothing certified by `find`, or a requirement of `compare` not met; 130 interrupted; the same command
continues.

Every command also has `--help`, `-q` (`--quiet`: print errors only) and `-v` (`--verbose`: show the traceback of
internal errors); those with a group *Advanced* have `--help-all`.
"""
OF_ALL = re.compile(r"^  (-q, --quiet|-v, --verbose|--help|--help-all)  .*\n", re.MULTILINE)


def reference() -> str:
    """Return the help of every command as Markdown."""
    parts = [INTRODUCTION]
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=f"prunus {name}", max_content_width=100, terminal_width=100)
        context.meta[ALL] = True
        text = OF_ALL.sub("", command.get_help(context) + "\n").replace("\nGeneral:\n\n", "\n")
        parts.append(f"## prunus {name}\n\n```\n{text.strip()}\n```\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail unless the file is up to date")
    if not parser.parse_args().check:
        TARGET.write_text(reference())
    elif not TARGET.exists() or TARGET.read_text() != reference():
        sys.exit("docs/commands.md is not up to date with the command line: run `make docs`")


if __name__ == "__main__":
    main()
