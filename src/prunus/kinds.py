"""Check the types of settings; the same check serves recipes in Python, JSON and TOML."""

import math
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from prunus.budgets import Off
from prunus.errors import PrunusError

_KINDS = {
    int: "a whole number",
    Off: "off",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Mapping: "a table",
}
_LONGEST = 100  # maximum number of characters shown of a value


def check_types(settings: Any) -> None:
    """Check and convert the fields of a frozen dataclass in its __post_init__.

    Whole numbers become floats in fields of that type, and lists become tuples, so that equal settings have equal JSON.
    Raises PrunusError that names the first field with a value of the wrong type.
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
    """{field: type} of a dataclass."""
    hints = get_type_hints(settings)
    return {field.name: hints[field.name] for field in fields(settings)}


def misfit(name: str, value: Any, hint: Any) -> str | None:
    """The error message for a value that does not have the type of its setting; None if it has."""
    if fits(value, hint):
        return None
    shown = repr(value)
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
    return f"'{name}' must be {kind(hint)}, not {shown}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type. A whole number counts as a float, a list as a tuple.

    A bool is no number, nor are NaN and infinity: every comparison with NaN is false, so that it passes range checks.
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if origin is tuple:
        return isinstance(value, list | tuple) and all(fits(one, get_args(hint)[0]) for one in value)
    if origin is Literal:
        return isinstance(value, str)  # the recipe itself checks the choices
    if origin is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if hint is float:
        is_whole = type(value) is int and abs(value) <= sys.float_info.max
        return is_whole or (isinstance(value, float) and math.isfinite(value))
    return type(value) is hint


def kind(hint: Any) -> str:
    """A type in words, such as `a whole number`."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(kind(part) for part in get_args(hint) if part is not NoneType)
    if origin is tuple:
        return f"a list, each {kind(get_args(hint)[0])}"
    return _KINDS.get(origin or hint, "a text")
