"""Methods, tasks and profiles of other packages, which name them as entry points.

The object of an entry point is plain data: for a method or a task a dict of fields, with functions as texts such as
`my_package.halfway:prune`; for a profile the path of its TOML file. `--help` therefore knows names and options without
importing the code, which is imported when it is used.
"""

import sys
from collections.abc import Callable, Collection
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from prunus.errors import PrunusError

METHODS, TASKS, PROFILES = "prunus.methods", "prunus.tasks", "prunus.profiles"  # groups of entry points
ADVICE = "; name the functions by texts, as CONTRIBUTING.md shows"
Entry = TypeVar("Entry")
_packages: dict[tuple[str, str], str] = {}  # {(group, name): `my-package 1.0`} of what can be used
_problems: dict[tuple[str, str], str] = {}  # {(group, name): why it cannot be used}


class Code:
    """A function of a plugin, which is imported when it is called first. words: `my_package.halfway:prune`."""

    def __init__(self, package: str, words: str) -> None:
        self.package, self.words = package, words

    def __call__(self, *given: Any, **more: Any) -> Any:
        return self.function()(*given, **more)

    def function(self) -> Callable[..., Any]:
        """The function. Raises PrunusError that names the package where it cannot be imported."""
        try:
            module, _, name = self.words.partition(":")
            found = getattr(import_module(module), name)
            if not callable(found):
                raise TypeError("it is no function")
        except Exception as error:  # whatever the code of others raises
            raise PrunusError(f"{self.words} of the package {self.package} cannot be imported: {why(error)}") from error
        return found


def entries(group: str, make: Callable[[str, str, Any], Entry], taken: Collection[str]) -> dict[str, Entry]:
    """{name: entry} of a group's entry points in all installed packages; `check` says why a broken entry is left out.

    make(name, package, object): the entry. taken: names that Prunus has itself, which no package replaces.
    """
    made = dict[str, Entry]()
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        if point.name in taken or point.name in made:
            continue
        package, key = package_of(point), (group, point.name)
        try:
            made[point.name] = make(point.name, package, _loaded(point))
            _packages[key] = package
        except Exception as error:  # whatever the code of others raises
            leave_out(group, point.name, package, error)
    return made


def leave_out(group: str, name: str, package: str, error: Exception) -> None:
    """Remember why an entry cannot be used."""
    _problems[group, name] = f"{name} of the package {package} ({group}) cannot be used: {why(error)}"


def package_of(point: EntryPoint) -> str:
    """Name and version of the package that an entry point is from, such as `my-package 1.0`."""
    return "without a name" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def origin(group: str, name: str) -> str | None:
    """The package and version that an entry is from; None for those of Prunus itself."""
    return _packages.get((group, name))


def check(group: str, name: object) -> None:
    """Raise PrunusError where an installed package has an entry of this name that cannot be used."""
    if line := problem(group, name):
        raise PrunusError(line)


def problem(group: str, name: object) -> str | None:
    """Why the entry of this name cannot be used; None where it can, or where there is none."""
    return _problems.get((group, str(name)))


def _loaded(point: EntryPoint) -> Any:
    had_torch = "torch" in sys.modules
    try:
        found = point.load()
    except ImportError as error:
        if "circular import" in str(error):
            raise PrunusError(f"{point.module} imports Prunus{ADVICE}") from error
        raise
    if "torch" in sys.modules and not had_torch:
        raise PrunusError(f"{point.module} imports torch{ADVICE}")
    return found


def why(error: Exception) -> str:
    """An error in words."""
    return str(error) if isinstance(error, PrunusError) else f"{type(error).__name__}: {error}"
