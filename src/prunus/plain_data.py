"""Plain data: read from JSON and TOML (any fault in the text is a ValueError), and hashed; records.

The line numbers of keys in a TOML text are for error messages: tomllib does not report them.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from functools import cache
from math import isfinite
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from prunus.errors import nearest
from prunus.visible import visible

MOST_DOTS = 1000  # in a line of TOML: tomllib takes minutes for a key of very many parts
MOST_DIGITS = 300  # of a whole number; more than 308 are larger than any float
DEEP = "it is nested too deeply"
_LONG_NUMBER = re.compile(rf"[=,\[]\s*[-+]?\d[\d_]{{{MOST_DIGITS}}}")
_HEADER = re.compile(r"\s*\[\[?\s*([\w.\-\"']+)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*([\w.\-\"']+)\s*=")


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """The value of a JSON text. hooks: of json.loads.

    Raises ValueError if the text is not JSON, is nested too deeply to be read, or has a whole number that is larger
    than any float.
    """
    try:
        return json.loads(text, parse_int=_whole, **hooks)
    except RecursionError as error:
        raise ValueError(DEEP) from error


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of a JSON object, for json's object_pairs_hook. Raises ValueError if a key occurs twice.

    json takes the last value and other programs the first, so what is checked would not be what is used.
    """
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has '{twin[:100]}' twice")
    return data


def storable(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair (JSON's `\\ud83d`), which no file can keep."""
    return text.encode("utf-8", "replace").decode()


def is_storable(data: object) -> bool:
    """Whether all texts of plain data can be kept in a file, which half of a surrogate pair cannot."""
    try:
        canonical_json(data).encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_toml(text: str) -> dict[str, Any]:
    """The content of a TOML text. Raises ValueError as parse_json does."""
    if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise ValueError(f"a line has more than {MOST_DOTS} dots")
    if _LONG_NUMBER.search(text):
        raise ValueError(f"a number has more than {MOST_DIGITS} digits")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(DEEP) from error


class LineNumbers:
    """The line numbers of a study file, found by table and key."""

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str, int, str], int] = {}
        table, number, seen = "", 0, dict[str, int]()
        for line, content in enumerate(text.splitlines(), 1):
            if header := _HEADER.match(content):
                table = _bare(header[1])
                number = seen[table] = seen.get(table, -1) + 1
                self._lines[table, number, ""] = line
            elif key := _KEY.match(content):
                self._lines.setdefault((table, number, _bare(key[1])), line)

    def of(self, table: str, key: str = "", number: int = 0) -> int | None:
        """The line of a key of the number-th table of that name; else the line of the table's header; else None.

        table: `` for the top level.
        """
        candidates = [(table, number, key), ("", 0, f"{table}.{key}"), (table, number, ""), ("", 0, table)]
        if not table:
            candidates.append((key, 0, ""))  # the file has a table where a top-level key is expected
        return next((self._lines[candidate] for candidate in candidates if candidate in self._lines), None)


def _bare(key: str) -> str:
    return key.replace('"', "").replace("'", "")


def suggestion(word: str, known: Iterable[str], elsewhere: Mapping[str, Iterable[str]]) -> str:
    """The hint that ends the message about an unknown key: its right table, a similar key, or all known keys.

    elsewhere: keys of the other tables, by the name of the table in messages.
    """
    known = sorted(known)
    for table, keys in elsewhere.items():
        if word in keys:
            return f"it belongs under {table}"
    return nearest(word, known, "known keys are")


def canonical_json(data: object) -> str:
    """Stored: the JSON text that is hashed for ids; equal data give the same text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(data: object, length: int = 12) -> str:
    """Stored: the first `length` hex digits of the SHA-256 of the data's canonical JSON."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:length]


R = TypeVar("R")
SHOWN = (str, int, float, bool)  # types of values that are shown in a line


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
@dataclass(frozen=True)
class Record:
    """Base class of records: frozen dataclasses whose plain data has the names of the fields as keys, in their order.

    A field whose default is None is left out while it is None, and a HIDDEN field is always left out. NaN and infinity
    become None when a record is made. LAST: fields whose keys come last in the data, although those of a base class
    would come first.
    """

    LAST: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True, repr=False)(cls)

    def __repr__(self) -> str:
        shown = (f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not isfinite(value):
                object.__setattr__(self, name, None)

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        ordered = sorted(fields(self), key=lambda field: self.LAST.index(field.name) if field.name in self.LAST else -1)
        return {
            key: plain(value)
            for field in ordered
            if (key := _key_of(field)) is not None
            and ((value := getattr(self, field.name)) is not None or field.default is not None)
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The record that was written as this plain data. Raises ValueError or TypeError for data of other types."""
        by_key = {_key_of(part): part for part in fields(cls)}
        if unknown := [key for key in _of_kind(data, dict) if key not in by_key]:
            raise ValueError(f"'{storable(unknown[0])[:50]}' is not known")
        return cls(**{by_key[key].name: _read_field(cls, by_key[key], value) for key, value in data.items()})


def _key_of(part: "Field[Any]") -> Any:
    """The key of a field in the plain data; None where that does not have it."""
    return part.metadata.get("key", part.name)


def _read_field(kind: type, part: "Field[Any]", value: Any) -> Any:
    """The value of a field of a dataclass, converted to its type. Raises ValueError that names the field's key."""
    try:
        return read_value(read_hints(kind)[part.name], value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_key_of(part)}: {error}") from error


@cache
def read_hints(kind: type) -> Mapping[str, Any]:
    """{field: type} of a dataclass, as read_value takes it."""
    return get_type_hints(kind, include_extras=True)


def read_value(hint: Any, value: Any) -> Any:
    """A value of plain data, converted to the type of its field. Raises ValueError or TypeError if that does not fit.

    hint: the type; `Annotated[kind, function]` is read by the function. Keys that are numbers are texts in JSON.
    """
    kind, of = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        return of[1](value)
    if kind in (UnionType, Union):
        others = [option for option in of if option is not NoneType]
        return None if value is None and len(others) < len(of) else _read_any(others, value)
    if kind is Mapping:
        pairs = _of_kind(value, dict).items()
        return {read_value(of[0], _key(of[0], name)): read_value(of[1], inner) for name, inner in pairs}
    if kind in (Sequence, list):
        return [read_value(of[0], inner) for inner in _of_kind(value, list)]
    if kind is tuple:
        values = _of_kind(value, list)
        hints = [of[0]] * len(values) if of[1:] == (...,) else of
        if len(hints) != len(values):
            raise ValueError(f"it must have {len(hints)} values, not {len(values)}")
        return tuple(read_value(part, inner) for part, inner in zip(hints, values, strict=True))
    if kind is Literal:
        return _known(of, value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(_known([member.value for member in hint], value))
    if isinstance(hint, type) and hasattr(hint, "of"):
        return hint.of(value)
    return _of_kind(value, (int, float) if kind is float else kind)


def _known(values: Sequence[Any], value: Any) -> Any:
    """The value itself. Raises ValueError unless it is one of the values."""
    if value not in values:
        raise ValueError(f"it must be {' or '.join(map(str, values))}, not {storable(repr(value))[:50]}")
    return value


def _read_any(hints: Sequence[Any], value: Any) -> Any:
    """A value, converted to the first of these types that fits it."""
    for hint in hints[:-1]:
        try:
            return read_value(hint, value)
        except (TypeError, ValueError):
            continue
    return read_value(hints[-1], value)


def _key(hint: Any, name: Any) -> Any:
    """A key of a mapping, converted from int to text or back if the type of the keys (hint) requires it."""
    if hint is str and type(name) is int:
        return str(name)
    return int(name) if hint is int and isinstance(name, str) and re.fullmatch(r"-?\d{1,18}", name) else name


def _of_kind(value: Any, kind: Any) -> Any:
    """The value itself. Raises ValueError unless it is of this kind (Any: all kinds) and a file can keep its texts."""
    right = kind is Any or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))
    if not right or (isinstance(value, float) and not isfinite(value)):
        names = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}
        raise ValueError(f"it must be {names.get(kind, 'a number')}, not {storable(repr(value))[:50]}")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list):
        for inner in (*value, *value.values()) if isinstance(value, dict) else value:
            _of_kind(inner, Any)
    return value


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """Stored plain data, and the fields that are read from it; a field that the data lacks has its default.

    data: as it is stored, or will be.
    """

    data: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: "Mapping[str, Any] | StoredData") -> Self:
        """The object read from plain data. Raises ValueError that names a field with a value of another type."""
        data = data.data if isinstance(data, StoredData) else data
        if not isinstance(data, Mapping):
            raise ValueError(f"it must be an object, not {storable(repr(data))[:50]}")
        there = [part for part in fields(cls) if part.name != "data" and data.get(_key_of(part)) is not None]
        return cls(data=data, **{part.name: _read_field(cls, part, data[_key_of(part)]) for part in there})

    def differing(self, other: "StoredData") -> list[str]:
        """The keys whose values differ between the plain data of both, sorted."""
        keys = self.data.keys() | other.data.keys()
        return sorted(key for key in keys if self.data.get(key) != other.data.get(key))

    def to_json(self) -> Mapping[str, Any]:
        """The plain data."""
        return self.data

    def __or__(self, changes: "Mapping[str, Any] | StoredData") -> Self:
        """Copy whose plain data has these keys with these values."""
        return self.of({**self.data, **(changes.data if isinstance(changes, StoredData) else changes)})


HIDDEN = {"key": None}  # metadata of a field that the plain data does not have


class PrintedRecord(Record):
    """A record that is shown as commands print it, a line per entry."""

    def __repr__(self) -> str:
        return "\n  ".join([type(self).__name__, *summary_lines(self.to_json())])


class Listing(list[R]):
    """A list of records that is shown as a table: their numbers and texts, a row for each."""

    def __repr__(self) -> str:
        from prunus.text_table import UNLIMITED, TextTable, printed  # imports rich

        entries = [plain(entry) for entry in self]
        names = [
            key for key in (entries[0] if entries else ()) if any(isinstance(entry[key], SHOWN) for entry in entries)
        ]
        if not names:
            return ""
        table = TextTable(*names, left=[key for key in names if not isinstance(entries[0][key], int | float)], gap=2)
        for entry in entries:
            table.add_row(*(visible(str(entry[key])) for key in names))
        return printed(table, width=UNLIMITED)


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """`key: value` for each text and number of a summary, and its warnings."""
    shown = {key: value for key, value in summary.items() if isinstance(value, SHOWN)}
    lines = [
        f"{key.replace('_', ' ') if key.isidentifier() else key}: "
        + (f"{value:.4g}" if isinstance(value, float) else str(value))
        for key, value in shown.items()
    ]
    return [*lines, *(f"warning: {warning}" for warning in summary.get("warnings", ()))]


def made(kind: Callable[..., R], *parts: Mapping[str, object], **more: object) -> R:
    """A record of a kind, with its fields from several dicts; later values replace earlier ones."""
    return kind(**{name: value for part in (*parts, more) for name, value in part.items()})


def plain(data: Any) -> Any:
    """The data with every record in it as plain data, and None for NaN and infinity, which JSON does not have."""
    if hasattr(data, "to_json"):
        return data.to_json()
    if isinstance(data, Mapping):
        return {name: plain(value) for name, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [plain(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data
