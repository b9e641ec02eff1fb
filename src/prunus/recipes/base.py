"""The base class of recipes: checks of fields, JSON, a content hash, and fields that methods declare as options."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

from prunus.errors import PrunusError, nearest
from prunus.plain_data import canonical_json, content_hash
from prunus.recipes.declarations import Declaration, owners_of
from prunus.settings import ADVANCED, CALIBRATING, check_conflicts, check_settings, setting, settings_of

# Fields that say which tokens calibrate, and how many.
CALIBRATION, AMOUNT = ("calibration", "seqlen", "seed"), ("sequences", "calibration_tokens")
# Placeholder in the class body of a recipe for the field that the methods with this option declare.
DECLARED: Any = None
KEEP = 0.75  # share of the experts, or channels, that are kept unless a recipe says otherwise
Class = TypeVar("Class", bound=type)


def with_options(*kinds: Mapping[str, Any]) -> Callable[[Class], Class]:
    """A decorator that makes each option that methods declare a field of a recipe, whose help names the methods.

    The class may name the field, so that editors know it; else the field is added at the end, and JSON leaves out its
    default. The range may depend on the method, so Recipe.check_options checks it.
    """

    def extended(cls: Class) -> Class:
        for declarations in kinds:
            for name, owners in owners_of(declarations).items():
                added, first = name not in cls.__annotations__, owners[0][1]
                cls.__annotations__.setdefault(name, first.hint)
                help = f"{', '.join(owner for owner, _ in owners)}: {first.help}"
                more = {"choices": first.choices, "omit_default": added, "group": ADVANCED}
                setattr(cls, name, setting(first.default, help, **more))
        return cls

    return extended


@dataclass(frozen=True)
class Recipe:
    """A frozen set of settings that are checked when it is made, with JSON and a content hash."""

    def __post_init__(self) -> None:
        check_settings(self)

    def to_json(self) -> dict[str, Any]:
        """Stored: the settings as plain data; tuples become lists."""
        omitted = {name: each.default for name, each in settings_of(type(self)).items() if each.omit_default}
        data = {name: value for name, value in asdict(self).items() if name not in omitted or value != omitted[name]}
        return json.loads(canonical_json(data))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The recipe that to_json described. Raises PrunusError that names an unknown key."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise PrunusError(
                f"{cls.__name__}: unknown key '{unknown[0]}'; {nearest(unknown[0], sorted(known), 'known keys are')}"
            )
        return cls(**data)

    @classmethod
    def given(cls, recipe: Self | None) -> Self:
        """The recipe itself; for None, a recipe of all defaults. Raises PrunusError for a recipe of another class."""
        if recipe is None:
            return cls()
        if not isinstance(recipe, cls):
            raise PrunusError(f"this takes {cls.__name__}, not {type(recipe).__name__}")
        return recipe

    @classmethod
    def like(cls, recipe: "Recipe", **changes: Any) -> Self:
        """The default recipe of this class with the calibration of another recipe, except for changes."""
        values = {name: getattr(recipe, name) for name in CALIBRATED if hasattr(recipe, name)}
        if "sequences" in changes:
            values["calibration_tokens"] = None  # it would override sequences
        return cls(**values | changes)

    @property
    def hash(self) -> str:
        """12 hex digits of the SHA-256 of the recipe's JSON."""
        return content_hash(self.to_json())

    def check_options(self, what: str, declarations: Mapping[str, Declaration]) -> None:
        """Raise PrunusError where an option is out of range, or is set and does not belong to the recipe's choice.

        what: the field with that choice (`method`, `allocation`). declarations: the entries that it chooses from.
        """
        chosen = getattr(self, what)
        for name, owners in owners_of(declarations).items():
            value, usual = getattr(self, name), getattr(type(self), name)
            mine = next((option for owner, option in owners if owner == chosen), None)
            if mine is None and value != usual:
                users = " or ".join(owner for owner, _ in owners)
                raise PrunusError(f"{name} belongs to {what} {users}, not to {chosen}")
            if mine is not None:
                mine.check(value, chosen)
                if value != usual:
                    check_conflicts(self, mine.conflicts)


@dataclass(frozen=True, kw_only=True)
class Calibrated(Recipe):
    """A recipe whose method looks at the tokens of some texts."""

    GROUP: ClassVar[str] = CALIBRATING

    calibration: str = setting(
        "auto",
        "traces:FILE (of `prunus traces`), a .txt or .jsonl file, c4 or wikitext2; auto: tiny for tiny, else it must be"
        " given.",
    )
    sequences: int = setting(128, "Calibration sequences.", at_least=1)
    seqlen: int = setting(2048, "Tokens per calibration sequence.", at_least=1)
    calibration_tokens: int | None = setting(None, "Exactly N tokens, instead of a number of sequences.", at_least=1)
    seed: int = setting(0, "Seed of the calibration sample.")

    @property
    def tokens(self) -> int:
        """How many calibration tokens are asked for; chains may have fewer."""
        return self.calibration_tokens or self.sequences * self.seqlen


# Fields of a recipe that say on what it is calibrated.
CALIBRATED = tuple(settings_of(Calibrated))
