"""Margins: losses to rule out, in points or as a share of what the base has."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Self

from prunus.errors import PrunusError

MARGIN = 0.05  # the default, of accuracy and of chains that end by themselves


@dataclass(frozen=True)
class Margin:
    """The loss that is ruled out.

    size: as a share of all problems (0.02 is two points), or, if relative, of the base.
    relative: whether it is a share of what the base has: of the problems that it solves, of its chains that end.
    """

    size: float
    relative: bool = False

    @classmethod
    def of(cls, given: "MarginLike", name: str = "margin", zero: bool = True) -> Self:
        """Margin of 0.02, "5%", or {"relative": 0.05} as in JSON. name: for messages.

        Raises PrunusError unless it lies in [0, 1), or without `zero` in (0, 1).
        """
        if isinstance(given, Margin):
            margin = cls(given.size, given.relative)
        else:
            relative, size = False, given
            if isinstance(given, Mapping):
                relative, size = True, given.get("relative") if len(given) == 1 else None
            elif isinstance(given, str):
                text = given.strip()
                relative = text.endswith("%")
                try:
                    size = float(text.removesuffix("%")) / (100 if relative else 1)
                except ValueError:
                    size = None
            good = isinstance(size, int | float) and not isinstance(size, bool) and isfinite(size)
            if not good:
                raise PrunusError(
                    f"{name} '{given}' is no margin: write 0.02 for two points, or 5% for that part of the base"
                )
            margin = cls(float(size), relative)  # pyright: ignore[reportArgumentType]
        if not (0 <= margin.size < 1) or (not zero and margin.size == 0):
            share = "a share in [0, 1)" if zero else "a share in (0, 1)"
            raise PrunusError(
                f"{name} must be {share}, not {margin.size:g}; 0.02 is two points, 5% is relative to the base"
            )
        return margin

    def to_json(self) -> Any:
        """A number of points as a share, or {"relative": share}."""
        return {"relative": self.size} if self.relative else self.size

    def points(self, base: float) -> float:
        """The margin as a share of all problems. base: the share of them that the base has, such as its accuracy."""
        return self.size * base if self.relative else self.size

    def covers(self, base: float) -> bool:
        """Whether a model could lose everything and still be within the margin. base: the share that the base has."""
        return base <= self.points(base)

    def words(self, of: str = "what the base solves") -> str:
        """`2 points`, or `5 % of what the base solves`."""
        return f"{100 * self.size:g} % of {of}" if self.relative else f"{100 * self.size:g} points"


MarginLike = float | str | Mapping[str, float] | Margin  # what a user, a file or stored data gives as a margin
LEVELS: Mapping[str, MarginLike] = {"high": 0.02, "medium": 0.05, "low": 0.10}  # of thinking, by default
