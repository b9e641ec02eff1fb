"""Results as the tables of the terminal, for a notebook."""

from importlib import import_module
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 110  # columns


def as_text(table: str, data: object) -> str:
    """Data as the table that a function of reporting/terminal.py makes of it.

    That module is of a higher floor and takes a while to import, so it is looked up by name when a table is asked for.
    """
    made = getattr(import_module("prunus.reporting.terminal"), table)(data)
    return printed(*(made if isinstance(made, list | tuple) else [made]))


def printed(*tables: "RenderableType") -> str:
    """Tables as text, without colours, one below the other."""
    from rich.console import Console

    stream = StringIO()
    Console(file=stream, width=WIDTH, color_system=None).print(*tables, sep="\n")
    return stream.getvalue().rstrip()
