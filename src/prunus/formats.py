"""The formats of the files that Prunus writes: a number for each kind of file, and what happens to other numbers."""

from collections.abc import Mapping
from types import MappingProxyType

from prunus.errors import PrunusError
from prunus.version import __version__
from prunus.visible import visible

# What a kind of file is called in messages -> its format today.
FORMATS: Mapping[str, int] = MappingProxyType(
    {"store": 6, "certificate": 7, "choice": 4, "manifest": 1, "file of statistics": 3, "file of importance scores": 2}
)


def check_format(kind: str, file: object, found: object, instead: str, writer: str = "") -> None:
    """Raise PrunusError unless a file has today's format of its kind, a key of FORMATS.

    This is the only place that knows of formats. Whoever changes what a kind of file holds raises its number here, and
    either leaves files of the number before refused, or rewrites them here before they are read.

    found: the format that the file states. instead: advice for the user. writer: the program that wrote the file, if
    that is known.
    """
    if found != FORMATS[kind] or isinstance(found, bool):
        number = " ".join(visible(str(found)).split())[:50]
        by = f", written by {writer}" if writer else ""
        raise PrunusError(
            f"the {kind} '{file}' has format {number}{by}; this is prunus {__version__}, which reads format"
            f" {FORMATS[kind]}: {instead}"
        )
