r"""Parse an answer as a number, formula, list, set, tuple, interval, matrix or words, without algebra.

Formulas inside are in normal form (normalise.latex) and are compared by a worker. Only plain arithmetic is evaluated
(arithmetic.py). Nesting deeper than MAX_DEPTH stays one formula.
"""

import re
from dataclasses import replace
from typing import Literal

from prunus.evaluation.grading import normalise
from prunus.evaluation.grading.arithmetic import exact_value
from prunus.evaluation.grading.intervals import REALS, Node, cuts, difference
from prunus.evaluation.grading.normalise import split_quantity

MAX_DEPTH = 5
_STYLE = r"\\(?:text|mbox|textrm|mathrm)\s*"
_AND = re.compile(_STYLE + r"\{\s*,?\s*and\s*\}|(?<=[\s$}),])and(?=[\s$\\])|;")
_OR = re.compile(_STYLE + r"\{\s*,?\s*or\s*\}|(?<=[\s$}),])or(?=[\s$\\])|\\(?:lor|vee)(?![A-Za-z])")
_APPROX = re.compile(r"\\(?:approx|simeq|doteq)(?![A-Za-z])|≈")
_ROUGHLY = re.compile(r"(?:\\text\{)?(?:approximately|about|roughly|approx\.?)\}?[\s~]+", re.IGNORECASE)
_BASED = re.compile(
    r"\(?(?P<digits>[0-9A-F]+(?:\.[0-9A-F]+)?)\)?(?:_\{?(?:base-?)?|\(?(?:in)?base-?)(?P<base>[0-9]{1,2}|[a-z]+)\}?\)?"
)
_BASE_NAMES = "two three four five six seven eight nine ten eleven twelve"
BASES = {name: base for base, name in enumerate(_BASE_NAMES.split(), 2)} | {
    "sixteen": 16, "binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16, "hex": 16,
}  # fmt: skip
_WORDS = re.compile(r"[A-Za-z'-]+(?: +[A-Za-z'-]+)*")
_LONG_WORD = re.compile(r"(?:^|[ '-])(?!(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|gcd|lcm|mod)\b)[A-Za-z]{3,}")
_STYLED_WORDS = re.compile(r"\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|emph)\s*\{([A-Za-z' -]{2,})\.?\}\.?")
_CHOICE = re.compile(r"\(?([A-Z])\)?")
_LABEL = re.compile(
    r"(\\(?:text|textbf|mathrm|mathbf|textrm)\s*\{\s*"
    r"(?:\([A-H]\)[.:]?\s*\}|[A-H][.:)]\s*\}|[A-H]\s*\}(?=\\[,;: ]|~|\s))(?:\\[,;:! ]|~|\s|\\q?quad|[:.,])*(?=\S))"
    r"|\([A-H]\)(?:\\[,;:! ]|~|\s|\\q?quad|:)+(?=\S)|[A-H][).:]\s+(?=\S)"
)
_OPERATOR = re.compile(r"[-+*/^_=<>)\]},&!]|\\(?:cdot|times|cup|cap|le|ge|in|pm|mp)(?![A-Za-z])")
_RELATION = re.compile(r"\\(?:le|ge)(?![A-Za-z])|[<>]")
_REALS = re.compile(r"\\mathbb ?\{?R\}?|\\(?:R|Reals|reals)(?![A-Za-z])")
_FROM_REALS = re.compile(rf"(?:{_REALS.pattern})[-/](?=[(\[]|\\\{{)")  # - and / stand for \setminus there
_COMPLEMENT = re.compile(r"([(\[].*[)\]])\^\{?(?:[cC]|\\complement)\}?")
_UNEQUAL = re.compile(rf"(?:(?P<member>[A-Za-z])\\in(?:{_REALS.pattern}),)?(?P<name>[A-Za-z])\\neq(?P<values>[^<>=]+)")
_NO_MEMBER = re.compile(r"[A-Za-z]\\notin(?![A-Za-z])")
_TIME = re.compile(
    r"(?P<hour>0?[1-9]|1[0-2])(?::(?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9]))?)?"
    r"(?:(?P<half>[AaPp])\.?[Mm]\.?|in ?the ?(?P<part>morning|afternoon|evening)|(?P<twelve>noon|midnight))"
)
_MEMBER = re.compile(r"[A-Za-z]\\in(?![A-Za-z])")
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega)|[a-z]\([a-z]\)")
# Names that an answer may have left of =: x, x_1, f(x), AB, \angle ABC. With a sum there it is an equation.
_NAME = re.compile(rf"(?:{_VARIABLE.pattern})(?:_\{{?[0-9a-z]+\}}?)?|[A-Za-z]\([^()=]*\)|\\angle ?[A-Z]+|[A-Z]{{2,3}}")
_BUILDER = re.compile(r"\\\{[A-Za-z](?:\\in\\mathbb\{?R\}?)?(?:\\mid|\\vert|:|\|) ?([^|]+)\\\}")
_SEPARATORS: tuple[tuple[str, Literal["union", "list"]], ...] = ((r"\lor", "union"), (",", "list"), (r"\cup", "union"))
_SIGN = re.compile(r"\\[pm][mp](?![A-Za-z])")
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}")
_OPEN = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
_CLOSE = frozenset(_OPEN.values())
_PIECE = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)


def readings(text: str) -> list[Node]:
    """Parses of an answer, likeliest first: as written, without a choice's letter, with thousands separators kept."""
    nodes = [read(text)]
    styled = text.strip().strip("$*").strip()
    if (label := _LABEL.match(styled)) and (label[1] or not _OPERATOR.match(styled, label.end())):
        nodes.append(read(styled[label.end() :]))
    if ungrouped := normalise.latex(text) != normalise.latex(text, grouped=False):
        nodes.append(read(text, grouped=not ungrouped))
    return nodes


def read(text: str, depth: int = 0, grouped: bool = True) -> Node:
    """One answer, parsed in its written form."""
    text = text.strip()
    before, *rounded = _APPROX.split(text, maxsplit=1)
    if rounded and not before.strip(" $="):
        return replace(read(rounded[0], depth + 1, grouped), rounded=True) if depth < MAX_DEPTH else _formula(text)
    text = before if rounded else text
    if (rough := _ROUGHLY.match(text)) and depth < MAX_DEPTH:
        return replace(read(text[rough.end() :], depth + 1, grouped), rounded=True)
    if words := _read_words(text):
        return words
    quantity = split_quantity(text)
    latex = normalise.latex(_AND.sub(" , ", _OR.sub(r" \\lor ", quantity.body)), grouped)
    node = _read_latex(latex, depth)
    if quantity.scale != 1:
        value = node.value
        node = _formula(text) if value is None else Node("number", latex, value * quantity.scale)
    if quantity.percent:
        node = replace(node, percent=True)
    return replace(node, units=quantity.units) if quantity.units else node


def _read_words(text: str) -> Node | None:
    plain = text.strip("$*. ")
    styled = _STYLED_WORDS.fullmatch(plain)
    phrase = styled[1] if styled else plain if _WORDS.fullmatch(plain) and len(plain) > 3 else ""
    words = phrase if styled or _LONG_WORD.search(phrase) else ""
    words = "".join(words.lower().split())
    return Node("words", words) if len(words) > 1 else None


def _read_latex(latex: str, depth: int) -> Node:
    """An answer in normal form parsed; commas separate elements, and `\\lor` stands for "or"."""
    if depth > MAX_DEPTH:
        return _formula(latex)
    if _SIGN.search(latex) and len(_split(latex, ",")) == 1 and not latex.startswith(r"\{"):
        both = [_SIGN.sub(lambda sign, upper=upper: _resolved(sign[0], upper), latex) for upper in (True, False)]
        return Node("list", parts=tuple(_read_latex(reading, depth + 1) for reading in both))
    if unequal := _read_unequal(latex, depth):
        return unequal
    for separator, kind in _SEPARATORS:
        pieces = _split(latex, separator)
        if len(pieces) > 1 and all(pieces):
            return _joined(kind, [_read_latex(piece, depth + 1) for piece in pieces])
    if builder := _BUILDER.fullmatch(latex):
        return _read_latex(builder[1], depth + 1)
    if member := _MEMBER.match(latex):
        return _read_latex(latex[member.end() :], depth + 1)
    if node := _read_rest(latex, depth) or _read_inequality(latex, depth) or _read_equation(latex, depth):
        return node
    if based := _BASED.fullmatch(latex):
        digits, name = based.groups()
        base = int(name) if name.isdigit() else BASES.get(name)
        if base and (base > 10 or digits.replace(".", "").isdigit()):
            return Node("based", digits.lstrip("0") or "0", name=str(base))
    if node := _read_time(latex) or _read_enclosed(latex, depth):
        return node
    if letter := _CHOICE.fullmatch(latex):
        return Node("letter", letter[1])
    return _formula(latex)


def _formula(latex: str) -> Node:
    latex = latex.removeprefix("+")
    if (value := exact_value(latex)) is not None:
        return Node("number", latex, value)
    return Node("formula", latex)


def _resolved(sign: str, upper: bool) -> str:
    return "+" if (sign == r"\pm") == upper else "-"


def _joined(kind: Literal["union", "list"], parts: list[Node]) -> Node:
    """A list or union of the parts. "x = 1 or x = 2" is a list; nested lists or unions are flattened."""
    if kind == "union" and not all(part.kind in ("interval", "tuple", "set", "union") for part in parts):
        kind = "list"
    flat = [inner for part in parts for inner in (part.parts if part.kind == kind else (part,))]
    return Node(kind, parts=tuple(flat))


def _read_rest(latex: str, depth: int) -> Node | None:
    r"""The real numbers, a set of them without another (A \setminus B), or a complement, as a union of intervals."""
    if _REALS.fullmatch(latex):
        return REALS
    if complement := _COMPLEMENT.fullmatch(latex):
        inside = _read_enclosed(complement[1], depth + 1)
        return difference(REALS, inside) if inside else None
    first, *others = _split(latex, r"\setminus") or [latex]
    if others and all((first, *others)):
        rest: Node | None = REALS if first == "R" else _read_latex(first, depth + 1)
        for other in others:
            rest = rest and difference(rest, _read_latex(other, depth + 1))
        return rest
    if outside := _NO_MEMBER.match(latex) or _FROM_REALS.match(latex):
        return difference(REALS, _read_latex(latex[outside.end() :], depth + 1))
    return None


def _read_unequal(latex: str, depth: int) -> Node | None:
    r"""x \ne 1, or x \ne 1, x \ne 2, as the real numbers without these."""
    match = _UNEQUAL.fullmatch(latex)
    if match is None:
        return None
    member, name, listed = match.groups()
    if member not in (None, name):
        return None
    values = [value.removeprefix(rf"{name}\neq") for value in _split(listed, ",")]
    removed = Node("set", parts=tuple(_read_latex(value, depth + 1) for value in values))
    return difference(REALS, removed) if cuts(removed) else None


def _read_time(latex: str) -> Node | None:
    """A time of day with a.m., p.m. or a word for them."""
    match = _TIME.fullmatch(latex)
    if match is None:
        return None
    hour, minute, second, half, part, twelve = match.groups()
    if twelve and int(hour) != 12:
        return None
    is_late = (half or part or twelve).lower() not in ("a", "morning", "midnight")
    return Node("time", str(seconds(int(hour) % 12 + 12 * is_late, minute, second)), name=latex)


def seconds(hour: int, minute: str | None, second: str | None) -> int:
    """The seconds since midnight of a time on a 24-hour clock."""
    return 3600 * hour + 60 * int(minute or 0) + int(second or 0)


def _read_inequality(latex: str, depth: int) -> Node | None:
    """A < x <= b, x > a and the like as intervals; other inequalities are treated as equations."""
    signs = _RELATION.findall(latex)
    if not signs or "=" in latex:
        return None
    sides = [side.strip() for side in _RELATION.split(latex)]
    below = [sign in ("<", r"\le") for sign in signs]
    strict = [sign in "<>" for sign in signs]
    if len(sides) == 3 and below[0] == below[1] and _VARIABLE.fullmatch(sides[1]):
        start, end = (sides[0], sides[2]) if below[0] else (sides[2], sides[0])
        opening, closing = ("(" if open_ else "[" for open_ in (strict if below[0] else strict[::-1]))
    elif len(sides) == 2 and (_VARIABLE.fullmatch(sides[0]) or _VARIABLE.fullmatch(sides[1])):
        left = _VARIABLE.fullmatch(sides[0]) is not None
        bound, is_upper, bracket = sides[1 if left else 0], below[0] == left, "(" if strict[0] else "["
        start, end = (r"-\infty", bound) if is_upper else (bound, r"\infty")
        opening, closing = ("(", bracket) if is_upper else (bracket, "(")
    else:
        return Node("equation", latex)
    closing = ")" if closing == "(" else "]"
    parts = (_read_latex(start, depth + 1), _read_latex(end, depth + 1))
    return Node("interval", opening + closing, parts=parts)


def _read_equation(latex: str, depth: int) -> Node | None:
    sides = _split(latex, "=")
    if len(sides) < 2 or not all(sides):
        return None
    name = sides[0] if _NAME.fullmatch(sides[0]) else ""
    return Node("equation", latex, parts=(_read_latex(sides[-1], depth + 1),), name=name)


def _read_enclosed(latex: str, depth: int) -> Node | None:
    """The set, tuple or interval that a pair of brackets encloses, or a part in redundant parentheses."""
    if matrix := _MATRIX.fullmatch(latex):
        rows = [_split(row, "&") for row in _split(matrix[2], "\\\\") if row]
        if rows and all(len(row) == len(rows[0]) and all(row) for row in rows):
            cells = tuple(_read_latex(cell, depth + 1) for row in rows for cell in row)
            return Node("matrix", f"{len(rows)} x {len(rows[0])}", parts=cells)
        return None
    opening = next((start for start in (r"\{", "(", "[") if latex.startswith(start)), None)
    closing = next((end for end in (r"\}", ")", "]") if latex.endswith(end)), None)
    if opening is None or closing is None or (opening == r"\{") != (closing == r"\}"):
        return None
    inside = latex[len(opening) : -len(closing)]
    if _split(inside, "") == []:  # the brackets at the two ends are not a pair
        return None
    elements = _split(inside, ",")
    if opening == r"\{":
        parts = [_read_latex(element, depth + 1) for element in elements if element]
        return Node("set", parts=_joined("list", parts).parts)
    if not all(elements):
        return None
    if len(elements) == 1:
        return _read_latex(inside, depth + 1) if opening + closing == "()" else None
    parts = tuple(_read_latex(element, depth + 1) for element in elements)
    if opening + closing == "()":
        infinite = len(parts) == 2 and any(part.text.endswith(r"\infty") for part in parts)
        return Node("interval", "()", parts=parts) if infinite else Node("tuple", parts=parts)
    return Node("interval", opening + closing, parts=parts) if len(parts) == 2 else None


def _split(latex: str, separator: str) -> list[str]:
    """The pieces between the separators outside all brackets; any closing bracket closes any opening one.

    The list is empty where a bracket closes that was never opened.
    """
    pieces, depth, environments = [""], 0, 0
    for match in _PIECE.finditer(latex):
        piece = match[0]
        if piece in _OPEN:
            depth += 1
        elif piece in _CLOSE:
            depth -= 1
            if depth < 0:
                return []
        environments += (piece == r"\begin") - (piece == r"\end")
        if piece == separator and depth == 0 and environments == 0:
            pieces.append("")
        else:
            pieces[-1] += piece
    return pieces
