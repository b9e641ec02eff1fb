"""Frozen dataclasses that are written as plain data: what compare, summarise and report pass on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from types import UnionType
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints

from prunus.margins import Margin

R = TypeVar("R")


@dataclass(frozen=True)
class Record:
    """Its plain data has the names of the fields as keys, in their order.

    A field that is None by default is left out while it is. Numbers that are not finite turn into None at once.
    """

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, float) and not isfinite(value):
                object.__setattr__(self, one.name, None)

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        return {
            one.metadata.get("key", one.name): plain(value)
            for one in fields(self)
            if (value := getattr(self, one.name)) is not None or one.default is not None
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The record that was written as this plain data."""
        hints, names = get_type_hints(cls), {one.metadata.get("key", one.name): one.name for one in fields(cls)}
        return cls(**{names[key]: _read(hints[names[key]], value) for key, value in data.items()})


def _read(hint: Any, value: Any) -> Any:
    """A value of plain data as the type of its field says."""
    of = get_args(hint)
    if value is None or hint is Any:
        return value
    if get_origin(hint) is UnionType:
        return _read(of[0], value)
    if get_origin(hint) is Mapping:
        return {name: _read(of[1], one) for name, one in value.items()}
    if get_origin(hint) is Sequence:
        return [_read(of[0], one) for one in value]
    return hint.of(value) if isinstance(hint, type) and issubclass(hint, Record | Margin) else value


def made(kind: Callable[..., R], *parts: Mapping[str, object], **more: object) -> R:
    """A record from dicts of its fields."""
    return kind(**{name: value for part in (*parts, more) for name, value in part.items()})


def plain(data: Any) -> Any:
    """Records and what holds them as plain data; None for nan and infinity, which JSON does not have."""
    if hasattr(data, "to_json"):
        return data.to_json()
    if isinstance(data, Mapping):
        return {name: plain(value) for name, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [plain(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data
