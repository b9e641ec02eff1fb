"""PrunusError, the error that a user can correct, and the advice on an unknown word."""

from collections.abc import Iterable
from difflib import get_close_matches


class PrunusError(Exception):
    """Wrong input or environment. The message is one line: what is wrong, with names and numbers, and what to do.

    The command line prints it after `error: ` and exits with status 2.
    """


def nearest(word: object, known: Iterable[str], otherwise: str = "choose one of") -> str:
    """The end of a message about an unknown word: the known word that is most like it, or else all of them."""
    known = list(known)
    near = get_close_matches(str(word), known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"{otherwise} {', '.join(known)}"
