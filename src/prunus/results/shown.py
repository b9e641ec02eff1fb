"""Results as the tables of the terminal, for a notebook."""

from collections.abc import Callable

# The function that makes a text of data, given the name of a function of reporting/terminal.py. That module is of a
# higher layer and takes a while to import, so the package's __init__.py registers a function that imports it.
PRINTERS: list[Callable[[str, object], str]] = []


def as_text(table: str, data: object) -> str:
    """Data as the table that a function of reporting/terminal.py makes of it."""
    return PRINTERS[0](table, data)
