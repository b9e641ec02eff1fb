r"""Sets of real numbers as unions of intervals: \mathbb{R}\setminus(-3,2) is (-\infty,-3]\cup[2,\infty).

A set with exact ends is a sorted sequence of cuts, at which the line alternately enters and leaves the set. A cut is a
value and whether it comes just after the value: [1, 2) is ((1, False), (2, False)), and {1} is ((1, False), (1, True)).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import inf
from typing import Literal

# The parsed form of an answer.

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


Cut = tuple[Fraction | float, bool]
REALS = Node("interval", "()", parts=(Node("formula", r"-\infty"), Node("formula", r"\infty")))
_INFINITE = {r"-\infty": -inf, r"\infty": inf}
_START, _END = (-inf, True), (inf, False)


def cuts(node: Node) -> tuple[Cut, ...] | None:
    """The set that a node stands for; None unless its ends are all exact numbers or infinite."""
    pieces: list[tuple[Cut, Cut]] = []
    for piece in node.parts if node.kind == "union" else (node,):
        values = [_value(part) for part in piece.parts]
        if piece.kind == "set":
            pieces += [((value, False), (value, True)) for value in values if value is not None]
        elif piece.kind not in ("interval", "tuple") or len(values) != 2:
            return None
        elif values[0] is not None and values[1] is not None:
            brackets = piece.text or "()"
            pieces.append(((values[0], brackets[0] == "("), (values[1], brackets[1] == "]")))
        if None in values or (
            pieces and (pieces[-1][0] >= pieces[-1][1] or pieces[-1][0] < _START or pieces[-1][1] > _END)
        ):
            return None
    return _merged(pieces)


def difference(left: Node, right: Node) -> Node | None:
    """The numbers of left that are not in right; None where that cannot be told.

    The ends must be exact, unless left is the whole line; then the ends of right are taken to be in ascending order.
    """
    left_cuts, right_cuts = cuts(left), cuts(right)
    if left_cuts is not None and right_cuts is not None:
        return _node(_toggled(_merged([*_pairs(_toggled(left_cuts)), *_pairs(right_cuts)])))
    if left_cuts != (_START, _END):
        return None
    gaps: list[Node] = []
    opening, start = "(", REALS.parts[0]
    for piece in right.parts if right.kind == "union" else (right,):
        if piece.kind == "set":
            ends = [("[", part, part, "]") for part in piece.parts]
        elif piece.kind in ("interval", "tuple") and len(piece.parts) == 2:
            brackets = piece.text or "()"
            ends = [(brackets[0], *piece.parts, brackets[1])]
        else:
            return None
        for before, low, high, after in ends:
            if low.text not in _INFINITE:
                gaps.append(Node("interval", opening + ("]" if before == "(" else ")"), parts=(start, low)))
            opening, start = "[" if after == ")" else "(", high
    if start.text not in _INFINITE:
        gaps.append(Node("interval", opening + ")", parts=(start, REALS.parts[1])))
    return _union(gaps)


def _value(part: Node) -> Fraction | float | None:
    if part.percent or part.rounded or part.units or part.parts:
        return None
    return _INFINITE.get(part.text) if part.value is None else part.value


def _merged(pieces: list[tuple[Cut, Cut]]) -> tuple[Cut, ...]:
    """The union of pieces, each given by its two cuts."""
    merged: list[Cut] = []
    for start, end in sorted(pieces):
        if merged and start <= merged[-1]:
            merged[-1] = max(merged[-1], end)
        else:
            merged += [start, end]
    return tuple(merged)


def _toggled(some: Sequence[Cut]) -> tuple[Cut, ...]:
    """The complement of a set."""
    start = some[1:] if some[:1] == (_START,) else (_START, *some)
    return tuple(start[:-1] if start[-1:] == (_END,) else (*start, _END))


def _pairs(some: Sequence[Cut]) -> list[tuple[Cut, Cut]]:
    return list(pairwise(some))[::2]


def _node(some: Sequence[Cut]) -> Node | None:
    pieces: list[Node] = []
    for (start, after_start), (end, after_end) in _pairs(some):
        brackets = ("(" if after_start else "[") + ("]" if after_end else ")")
        parts = (_bound(start),) if start == end else (_bound(start), _bound(end))
        pieces.append(Node("set", parts=parts) if start == end else Node("interval", brackets, parts=parts))
    return _union(pieces)


def _union(pieces: list[Node]) -> Node | None:
    """The union of some pieces; None for the empty set, which has other notations."""
    return pieces[0] if len(pieces) == 1 else Node("union", parts=tuple(pieces)) if pieces else None


def _bound(value: Fraction | float) -> Node:
    if isinstance(value, Fraction):
        return Node("number", str(value), value)
    return REALS.parts[value > 0]
