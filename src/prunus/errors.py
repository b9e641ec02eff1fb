"""The one error that is the user's to mend."""


class PrunusError(Exception):
    """Wrong input or environment. Its message is one line: what is wrong (with name and number) and what to do.

    The command line prints it after `error: ` and exits with status 2.
    """
