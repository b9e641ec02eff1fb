"""PrunusError, the error that a user can correct."""


class PrunusError(Exception):
    """Wrong input or environment. The message is one line: what is wrong, with names and numbers, and what to do.

    The command line prints it after `error: ` and exits with status 2.
    """
