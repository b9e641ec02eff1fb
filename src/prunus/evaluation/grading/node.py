"""The parsed form of an answer."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Kind = Literal[
    "number",
    "formula",
    "words",
    "letter",
    "based",
    "list",
    "set",
    "tuple",
    "interval",
    "union",
    "matrix",
    "equation",
    "time",
]


@dataclass(frozen=True)
class Node:
    r"""A part of a parsed answer.

    text: normal form of a formula or equation; digits of a number in another base; words in lower case without blanks;
    the letter of a choice; brackets of an interval ("[)"); rows x columns of a matrix; seconds since midnight of a time
    of day. value: exact value of a number. parts: the elements in order; of an equation its right side. name: the
    letter left of =, the base, or the normal form of a time. percent, rounded (`\approx`) and units: how the value was
    marked.
    """

    kind: Kind
    text: str = ""
    value: Fraction | None = None
    parts: tuple["Node", ...] = ()
    name: str = ""
    percent: bool = False
    rounded: bool = False
    units: frozenset[str] = frozenset()
