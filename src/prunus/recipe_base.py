"""The base class of recipes: checks of fields, JSON, a content hash, and fields that methods declare as options."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar, get_args

from prunus.declarations import Allocation, Conflict, Criterion, DepthMethod, Method, owners_of
from prunus.errors import PrunusError
from prunus.hashing import canonical_json, content_hash
from prunus.kinds import check_types

# Values of fields that JSON stores under an older name, so that stored recipes and their hashes stay as they were.
STORED_WORDS: Mapping[str, Mapping[str, str]] = MappingProxyType({"propagation": {"true_sequential": "staged"}})
# Fields of a recipe that say how much a token of a trace counts.
TOKEN_WEIGHTS = ("prompt_weight", "chain_weight")
# Fields that say which tokens calibrate, and how many.
CALIBRATION, AMOUNT = ("calibration", "seqlen", "seed"), ("samples", "calibration_tokens")
# Fields of a recipe that say on what it is calibrated.
CALIBRATED = ("calibration", "samples", "seqlen", "calibration_tokens", "seed", *TOKEN_WEIGHTS)
# Stands in the class body of a recipe for a default that the methods with this option declare.
DECLARED: Any = None
Declaration = TypeVar("Declaration", Method, Allocation, DepthMethod, Criterion)
Class = TypeVar("Class", bound=type)


def with_options(*tables: Mapping[str, Any]) -> Callable[[Class], Class]:
    """A decorator that makes each option that methods declare a field of a recipe, with its declared default.

    The class may name the field, so that editors know it; else the field is added at the end. Such added fields came
    after recipes were first stored, so the decorator adds them to LATER.
    """

    def extended(cls: Class) -> Class:
        named = set(cls.__annotations__)
        for table in tables:
            for name, owners in owners_of(table).items():
                setattr(cls, name, owners[0][1].default)
                cls.__annotations__.setdefault(name, owners[0][1].hint)
        added = (name for name in cls.__annotations__ if name not in named)
        cls.LATER = (*cls.LATER, *added)  # type: ignore[attr-defined]
        return cls

    return extended


def without_removed(stored: Mapping[str, Any], removed: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings without those of earlier versions that have their default.

    removed: {setting: its default} of earlier versions. Raises PrunusError that names one with another value.
    """
    for name in stored.keys() & removed.keys():
        if stored[name] != removed[name]:
            raise PrunusError(
                f"'{name}' {stored[name]!r} is a setting that only earlier versions have: leave it out, or make anew"
                " without it what was made with it"
            )
    return {name: value for name, value in stored.items() if name not in removed}


@dataclass(frozen=True)
class Recipe:
    """A frozen set of settings whose types are checked when it is made, with JSON and a content hash.

    LATER: fields that were added after recipes were first stored. JSON leaves them out where they have their default,
    so that the hashes of stored recipes stay as they were. REMOVED: {field: its default} of earlier versions. JSON has
    them, unless they are in LATER, for the same reason.
    """

    LATER: ClassVar[tuple[str, ...]] = ()
    REMOVED: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __post_init__(self) -> None:
        check_types(self)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain data; tuples become lists."""
        usual = {**self.REMOVED, **{field.name: field.default for field in fields(self)}}
        values = {**self.REMOVED, **asdict(self)}
        data = {name: value for name, value in values.items() if name not in self.LATER or value != usual[name]}
        for name, words in STORED_WORDS.items():
            if name in data:
                data[name] = words.get(data[name], data[name])
        return json.loads(canonical_json(data))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The recipe that to_json described. Raises PrunusError that names a key that is unknown or was removed."""
        known = {field.name for field in fields(cls)}
        data = without_removed(data, cls.REMOVED)
        if unknown := sorted(set(data) - known):
            raise PrunusError(f"{cls.__name__}: unknown key '{unknown[0]}'; known keys are {', '.join(sorted(known))}")
        return cls(**data)

    @classmethod
    def like(cls, recipe: "Recipe", **changes: Any) -> Self:
        """The default recipe of this class with the calibration of another recipe, except for changes."""
        values = {name: getattr(recipe, name) for name in CALIBRATED if hasattr(recipe, name)}
        if "samples" in changes:
            values["calibration_tokens"] = None  # it would override samples
        return cls(**values | changes)

    @property
    def weighted(self) -> bool:
        """Whether tokens of prompt and chain count differently."""
        return len({getattr(self, name, 1.0) for name in TOKEN_WEIGHTS}) > 1

    @property
    def hash(self) -> str:
        """12 hex digits of the SHA-256 of the recipe's JSON."""
        return content_hash(self.to_json())

    def _check_choice(self, name: str, choices: Any) -> None:
        """Raise PrunusError unless a field is one of the choices: names, or a Literal type of them."""
        value, known = getattr(self, name), get_args(choices) or tuple(choices)
        if value not in known:
            raise PrunusError(f"{name} '{value}' is not known; choose one of {', '.join(known)}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise PrunusError(f"{name} must be at least 1, not {getattr(self, name)}")

    def _check_options(self, what: str, table: Mapping[str, Declaration]) -> None:
        """Raise PrunusError where an option is out of range, or is set and does not belong to the recipe's choice.

        what: the field with that choice (`method`, `allocation`). table: the declarations to choose from.
        """
        chosen = getattr(self, what)
        for name, owners in owners_of(table).items():
            value, usual = getattr(self, name), getattr(type(self), name)
            mine = next((option for owner, option in owners if owner == chosen), None)
            if mine is None and value != usual:
                users = " or ".join(owner for owner, _ in owners)
                raise PrunusError(f"{name} belongs to {what} {users}, not to {chosen}")
            if mine is not None:
                mine.check(value, chosen)
            if mine is not None and value != usual:
                self._check_conflicts(mine.conflicts)
        self._check_conflicts(table[chosen].conflicts)

    def _check_conflicts(self, conflicts: Sequence[Conflict]) -> None:
        for field, value, message in conflicts:
            found = getattr(self, field)
            if found == value if value is not None else found != getattr(type(self), field):
                raise PrunusError(message.format_map(vars(self)))

    def _check_calibration(self) -> None:
        """Raise PrunusError unless numbers of tokens are positive, and their weights finite, >= 0 and not all 0."""
        self._check_positive("samples", "seqlen")
        if getattr(self, "calibration_tokens", None) is not None:
            self._check_positive("calibration_tokens")
        weights = {name: getattr(self, name, 1.0) for name in TOKEN_WEIGHTS}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise PrunusError(f"{name} must be 0 or more, not {weight}")
        if not any(weights.values()):
            raise PrunusError("prompt_weight and chain_weight are both 0, so that no token would count")
