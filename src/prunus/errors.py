"""PrunusError, the error that a user can correct, and the words of common advice."""

import errno
import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class PrunusError(Exception):
    """Wrong input or environment. The message is one line: what is wrong, with names and numbers, and what to do.

    The command line prints it after `error: ` and exits with status 2.
    """


def nearest(word: object, known: Iterable[str], otherwise: str = "choose one of") -> str:
    """The end of a message about an unknown word: the known word that is most like it, or else all known words."""
    known = list(known)
    by_case = {name.casefold(): name for name in reversed(known)}
    near = get_close_matches(str(word).casefold(), by_case, n=1)
    return f"did you mean '{by_case[near[0]]}'?" if near else f"{otherwise} {', '.join(known)}"


def pip(extra: str) -> str:
    """The command that installs an extra, such as `view`; no package index has Prunus, so it is for a clone."""
    return f"pip install '.[{extra}]' in a clone of Prunus"


def missing_package(error: ModuleNotFoundError) -> str | None:
    """The message for a package that Prunus needs and that is not installed; None if the module is Prunus's own."""
    name = (error.name or "").partition(".")[0]
    if name in ("", "prunus"):
        return None
    return f"the package {name} is not installed, which Prunus needs: `pip install .` in a clone brings all of them"


def no_file(path: Path) -> str:
    """Why a path is not a regular file: nothing is there, or something else."""
    if path.exists():
        return "it is a folder" if path.is_dir() else "it is not a regular file"
    return os.strerror(errno.ENOENT)


def unreadable(file: str, error: OSError | str) -> PrunusError:
    """The PrunusError for an unreadable file. file: its path, or its kind and path. error: the OSError, or a reason."""
    return PrunusError(f"{file} cannot be read: {error if isinstance(error, str) else error.strerror or error}")
