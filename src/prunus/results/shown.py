"""Results as the tables of the terminal, for a notebook."""

from importlib import import_module


def as_text(table: str, data: object) -> str:
    """Data as the table that a function of reporting/terminal.py makes of it.

    That module is of a higher floor and takes a while to import, so it is looked up by name when a table is asked for.
    """
    from prunus.text_table import printed  # imports rich

    made = getattr(import_module("prunus.reporting.terminal"), table)(data)
    return printed(*(made if isinstance(made, list | tuple) else [made]))
