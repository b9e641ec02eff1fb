"""Whether a value is of the type that a setting has: one check for recipes in Python, in JSON and in TOML."""

import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from prunus.errors import PrunusError

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Mapping: "a table"}
_LONGEST = 100  # characters of a value that are shown


def settle(settings: Any) -> None:
    """Check the type of every field of a dataclass as it is made; PrunusError names the first that is wrong.

    Whole numbers become floats where the field is one, and lists tuples: then the same setting is the same JSON.
    """
    for name, hint in hints_of(type(settings)).items():
        value = getattr(settings, name)
        if wrong := misfit(name, value, hint):
            raise PrunusError(wrong)
        if type(value) is int and float in (hint, *get_args(hint)):
            object.__setattr__(settings, name, float(value))
        elif isinstance(value, list):
            object.__setattr__(settings, name, tuple(value))


@cache
def hints_of(settings: type) -> Mapping[str, Any]:
    """The type of each field of a dataclass."""
    hints = get_type_hints(settings)
    return {field.name: hints[field.name] for field in fields(settings)}


def misfit(name: str, value: Any, hint: Any) -> str | None:
    """What is wrong with the value of a setting of that type, None if nothing is."""
    if fits(value, hint):
        return None
    shown = repr(value)
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
    return f"'{name}' must be {kind(hint)}, not {shown}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type. A whole number is a number, a list a tuple; true and false are no numbers."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if origin is tuple:
        return isinstance(value, list | tuple) and all(fits(one, get_args(hint)[0]) for one in value)
    if origin is Literal:
        return isinstance(value, str)  # which ones, the recipe says itself
    if origin is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if hint is float:
        is_whole = type(value) is int and abs(value) <= sys.float_info.max
        return is_whole or isinstance(value, float)
    return type(value) is hint


def kind(hint: Any) -> str:
    """A type in words."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(kind(part) for part in get_args(hint) if part is not NoneType)
    if origin is tuple:
        return f"a list, each {kind(get_args(hint)[0])}"
    return _KINDS.get(origin or hint, "a text")
