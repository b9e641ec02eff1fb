"""The error that a user can fix."""


class PrunusError(Exception):
    """Wrong input or environment. Its message is one line: what is wrong (with name and number) and what to do.

    The command line prints it after `error: ` and exits with status 2.
    """
