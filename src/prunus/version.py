"""The version of the package, and those of the packages on which results depend."""

from functools import cache
from importlib.metadata import version

__version__ = "0.4.0"


def versions() -> dict[str, str]:
    """The versions of the packages on which a result may depend, by name."""
    return {"prunus": __version__} | {package: version_of(package) for package in ("torch", "transformers")}


@cache
def version_of(package: str) -> str:
    """The version of an installed package; cached, since looking it up reads the package's whole metadata."""
    return version(package)
