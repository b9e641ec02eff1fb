"""Settings: what is known of a field of a recipe, and the checks that serve Python, JSON, TOML and the command line."""

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from functools import cache, partial
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from prunus import plugins
from prunus.errors import PrunusError, nearest
from prunus.plain_data import storable
from prunus.settings.budgets import Off

_KINDS: Mapping[object, str] = {
    int: "a whole number",
    Off: "off",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Mapping: "a table",
}
_LONGEST = 100  # maximum number of characters shown of a value
# Headings of the options of a command; help shows the options of ADVANCED only if it is asked for all.
GROUPS = ("Options", "Calibration", "Sampling", "Engine", "Where and how", "Advanced", "General")
OPTIONS, CALIBRATING, SAMPLING, ENGINE, WHERE, ADVANCED, GENERAL = GROUPS


class Conflict(NamedTuple):
    """A value that a field of the recipe cannot have together with a setting.

    value: None stands for every value except the field's default. message: of the error; names in braces stand for the
    recipe's fields.
    """

    field: str
    value: Any
    message: str


class Setting(NamedTuple):
    """The facts about a setting, which is a field of a recipe, a key of a study's tables and an option of a command.

    type: one of int, float, bool and str, or for a field its whole type. help: one line, with the unit. choices: the
    only valid values. at_least, above, at_most, below: the range. note: appended to the message of a range error.
    conflicts: those of every value but the default. metavar: what help shows instead of the type. omit_default: whether
    JSON leaves the field out where it has its default, so that hashes do not depend on a setting that nobody changed.
    group: one of GROUPS; by default GROUP of the most general class that has the field. flag: the name on the command
    line, if it is another. required: whether the command requires it.

    A method, allocation or depth method (its owner) may declare settings, which become fields of the recipe. Several
    owners may declare the same one; types and defaults must agree, while the range may differ.
    """

    name: str
    type: Any
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    note: str = ""
    conflicts: tuple[Conflict, ...] = ()
    metavar: str | None = None
    omit_default: bool = False
    group: str = OPTIONS
    flag: str = ""
    required: bool = False

    @property
    def option(self) -> str:
        """The name of the command line's option, such as `--min-sparsity`."""
        return "--" + (self.flag or self.name).replace("_", "-")

    @property
    def hint(self) -> Any:
        """The type of the recipe's field."""
        plain: Any = Literal[self.choices] if self.choices else self.type
        return plain if self.default is not None else plain | None

    def spelled(self, value: str) -> str:
        """The choice that equals a text but for case, such as q4_k_m for Q4_K_M; else the text."""
        return next((choice for choice in self.choices if choice.casefold() == value.casefold()), value)

    def check(self, value: Any, owner: str = "") -> None:
        """Raise PrunusError if a value of the right type is not one of the choices or is outside the range."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise PrunusError(f"{self.name} {self.unknown(value)}")
        if not (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        ):
            where = f"{self._range()} for {owner}" if owner else self._range()
            raise PrunusError(f"{self.name} must {where}, not {value}{self.note and '; ' + self.note}")

    def unknown(self, value: object) -> str:
        """The part of an error message about a value that is not among the choices."""
        if self.name == "method" and (line := plugins.problem(plugins.METHODS, value)):
            return line
        return f"'{value}' is not known; {nearest(value, self.choices)}"

    def _range(self) -> str:
        low = self.above if self.at_least is None else self.at_least
        high = self.at_most if self.below is None else self.below
        if low is not None and high is not None:
            opening, closing = "(["[self.above is None], ")]"[self.below is None]
            return f"lie in {opening}{low:g}, {high:g}{closing}"
        if self.at_least is not None:
            return f"be at least {low:g}" if low else "be 0 or more"
        return f"be above {low:g}" if low is not None else f"be below {high:g}"


def about(help: str, **more: object) -> Mapping[Any, Any]:
    """The metadata of a dataclass's field that is a setting. more: fields of Setting."""
    return {Setting: {"help": help, **more}}


def setting(default: object, help: str, **more: object) -> Any:
    """A field of a dataclass that is a setting. more: fields of Setting."""
    return field(default=default, metadata=about(help, **more))


advanced = partial(setting, group=ADVANCED)  # of a single method, or for special cases


@cache
def settings_of(cls: type) -> Mapping[str, Setting]:
    """{field: its setting} of a dataclass: its own fields in their order, then those of its base classes."""
    own, hints, settings = {field.name: field for field in fields(cls)}, hints_of(cls), {}
    classes = (cls, *reversed(cls.__mro__[1:]))
    group = {
        name: vars(each).get("GROUP", OPTIONS) for each in cls.__mro__ for name in vars(each).get("__annotations__", ())
    }
    for name in (name for each in classes for name in vars(each).get("__annotations__", ())):
        if name in own and name not in settings and Setting in own[name].metadata:
            more = {"group": group[name], **own[name].metadata[Setting]}
            choices = more.pop("choices", None) or choices_of(hints[name])
            settings[name] = Setting(name, hints[name], own[name].default, choices=choices, **more)
    return MappingProxyType(settings)


def described(cls: type, users: Callable[[str], str] | None = None) -> str:
    """The docstring of a class of settings, with a line for each of them: what it is, choices, and the default.

    users: by the name of a setting, who uses it.
    """
    known, lines = settings_of(cls), list[str]()
    made = {field.name: field.default_factory() for field in fields(cls) if field.default_factory is not MISSING}
    for name, setting in known.items():
        default = made.get(name, setting.default)
        parts = [_without_dashes(setting.help, known)]
        parts += [f"One of {', '.join(setting.choices)}."] if setting.choices else []
        if default is not MISSING and (
            default is not None or "default" not in setting.help
        ):  # else the help says what takes its place
            parts.append(f"Default: {default!r}.")
        lines.append(f"    {name}: {f'{users(name)}: ' if users else ''}{' '.join(parts)}")
    return "\n".join([(cls.__doc__ or "").rstrip(), "", *lines, "    "])


def _without_dashes(help: str, known: Mapping[str, Setting]) -> str:
    """The help with the command's options (`--min-sparsity`) replaced by the names of their settings."""
    for name, setting in known.items():
        help = re.sub(rf"(?<![\w-]){setting.option}(?![\w-])", name, help)
    return help


def choices_of(hint: object) -> tuple[str, ...]:
    """The values of a Literal type, which may also be None; none of another type."""
    parts = (hint, *get_args(hint)) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ())


def check_settings(settings: object) -> None:
    """Check and convert the fields of a frozen dataclass in its __post_init__.

    Whole numbers become floats in fields of that type, or the choice that they spell, as in `group = 32`; a choice may
    be written in any case; and lists become tuples, so that equal settings have equal JSON. Raises PrunusError that
    names the first field with a value of the wrong type, or else a field that is out of its range or in conflict with
    another.
    """
    for name, hint in hints_of(type(settings)).items():
        value = getattr(settings, name)
        if type(value) is int and str(value) in choices_of(hint):
            object.__setattr__(settings, name, str(value))
            continue
        if wrong := misfit(name, value, hint):
            raise PrunusError(wrong)
        if type(value) is int and float in (hint, *get_args(hint)):
            object.__setattr__(settings, name, float(value))
        elif isinstance(value, list):
            object.__setattr__(settings, name, tuple(value))
    for name, setting in settings_of(type(settings)).items():
        if setting.choices and isinstance(value := getattr(settings, name), str):
            object.__setattr__(settings, name, setting.spelled(value))
        value = getattr(settings, name)
        setting.check(value)
        if value != setting.default:
            check_conflicts(settings, setting.conflicts)


def check_conflicts(settings: object, conflicts: Sequence[Conflict]) -> None:
    """Raise PrunusError with the message of the first conflict that applies to the settings."""
    for name, value, message in conflicts:
        actual = getattr(settings, name)
        if actual == value if value is not None else actual != getattr(type(settings), name):
            raise PrunusError(message.format_map(vars(settings)))


@cache
def hints_of(settings: type) -> Mapping[str, Any]:
    """{field: type} of a dataclass."""
    hints = get_type_hints(settings)
    return {field.name: hints[field.name] for field in fields(settings)}


def misfit(name: str, value: object, hint: object) -> str | None:
    """The error message for a value that does not have the type of its setting; None if it has."""
    if fits(value, hint):
        return None
    shown = repr(value)
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
    return f"'{name}' must be {kind(hint)}, not {shown}"


def fits(value: object, hint: object) -> bool:
    """Whether a value has a type. A whole number counts as a float, a list as a tuple.

    A bool is no number, nor are NaN and infinity: every comparison with NaN is false, so that it passes range checks.
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if origin is tuple:
        return isinstance(value, list | tuple) and all(fits(inner, get_args(hint)[0]) for inner in value)
    if origin is Literal:
        return isinstance(value, str)  # the recipe itself checks the choices
    if origin is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if hint is float:
        is_whole = type(value) is int and abs(value) <= sys.float_info.max
        return is_whole or (isinstance(value, float) and math.isfinite(value))
    if hint is str:  # an argument that is not UTF-8 has halves of surrogate pairs
        return type(value) is str and storable(value) == value
    return type(value) is hint


def kind(hint: object) -> str:
    """A type in words, such as `a whole number`."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(kind(part) for part in get_args(hint) if part is not NoneType)
    if origin is tuple:
        return f"a list, each {kind(get_args(hint)[0])}"
    return _KINDS.get(origin or hint, "a text")
