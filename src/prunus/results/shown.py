"""Results as the tables of the terminal, for a notebook."""

from collections.abc import Callable

# Makes a text of data, by the name of a function of reporting/terminal.py. That module is of a higher floor and takes a
# while to import, so the package's __init__.py, which is above all floors, registers a function that imports it.
PRINTERS: list[Callable[[str, object], str]] = []


def as_text(table: str, data: object) -> str:
    """Data as the table that a function of reporting/terminal.py makes of it."""
    return PRINTERS[0](table, data)
