"""Limits of a choice: Limits has a field for each that a user can set, and LIMITS how choices are held to it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from prunus.disk import show_bytes
from prunus.errors import PrunusError
from prunus.plain_data import Record
from prunus.settings import about, check_settings, described, setting

UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}


class Limits(Record):
    """Limits that a choice has to keep."""

    memory: str | float = field(
        metadata=about("Most memory of weights, caches and engine: 4GB.", metavar="BYTES", required=True)
    )
    seconds: float = field(metadata=about("Most seconds of an answer, on average.", above=0, required=True))
    users: int = setting(1, "Users at once.", flag="at", at_least=1)

    def __post_init__(self) -> None:
        check_settings(self)
        object.__setattr__(self, "memory", memory_of(self.memory))


Limits.__doc__ = described(Limits)


def memory_of(text: str | float) -> int:
    """Bytes of `4GB`, `500 MB`, `2GiB` or a number."""
    if isinstance(text, int | float):
        number, size = float(text), 1.0
    else:
        word = text.strip()
        unit = next((name for name in UNITS if word.casefold().endswith(name.casefold())), "")
        size = UNITS.get(unit, 1.0)
        try:
            number = float(word.removesuffix(word[len(word) - len(unit) :]) if unit else word)
        except ValueError:
            raise PrunusError(f"'{text}' is no amount of memory, such as 4GB or 500MB") from None
    if not 0 < number * size < 1 << 60:
        raise PrunusError(f"'{text}' is no amount of memory, such as 4GB or 500MB")
    return int(number * size)


@dataclass(frozen=True)
class Limit:
    """How choices are held to a field of Limits.

    name: of the field. bounds: the field of a ChoiceRow that it bounds. drawn: whether that is only known from rows,
    those of the pilot. word: the state of a choice that misses the limit. taken, most: make text, before the unit, of
    what a choice takes and of the limit. none: message if nothing fits, with the limit `{most}` and `{least}`, the
    least that a choice takes. over: message if the chosen choice takes `{taken}` over all rows, more than the limit.
    axis, heading: titles of its chart. scale: by which values are divided there.
    """

    name: str
    bounds: str
    drawn: bool
    word: str
    taken: Callable[[Any], str]
    most: Callable[[Any], str]
    unit: str
    none: str
    over: str
    axis: str
    heading: str
    scale: float = 1

    def of(self, limits: Limits) -> float:
        """The limit itself; infinite where it is not set."""
        value = getattr(limits, self.name)
        return inf if value is None else value

    def value(self, taken: Any) -> float:
        """The value that the limit bounds. taken: a ChoiceRow or Taken."""
        return getattr(taken, self.bounds)

    def words(self, value: float) -> str:
        """Amount that a choice takes, in words: `3.1 s`."""
        return f"{self.taken(value)}{self.unit}"

    def most_words(self, limits: Limits) -> str:
        """The limit in words: `20 s`."""
        return f"{self.most(self.of(limits))}{self.unit}"


LIMITS = (
    Limit(
        "seconds", bounds="seconds", drawn=True, word="too slow", taken="{:.3g}".format, most="{:g}".format, unit=" s",
        none="nothing answers in {most}: the fastest takes {least}", over="its answers take {taken}",
        axis="Seconds of an answer", heading="Against seconds",
    ),
    Limit(
        "memory", bounds="bytes", drawn=False, word="too large", taken=show_bytes, most=show_bytes, unit="",
        none="nothing fits into {most}: the least is {least}", over="it takes {taken}",
        axis="Megabytes", heading="Against memory", scale=1e6,
    ),
)  # fmt: skip
KNOWN = [limit for limit in LIMITS if not limit.drawn]  # what a choice takes of these is known before any row
DRAWN = [limit for limit in LIMITS if limit.drawn]
