r"""The exact value of an answer that is arithmetic of written numbers: 0.35, \frac{7}{20}, 137 1/2, 6.72\times10^{-5}.

All arithmetic is on exact fractions, so 1/2^{98} and 1/2^{99} differ, and a decimal equals a fraction only if it
terminates. Letters, roots and functions are left to math-verify in the workers. Work is bounded: numbers have at most
MAX_BITS bits, and nesting is at most MAX_DEPTH deep.
"""

import re
from fractions import Fraction
from math import factorial

MAX_BITS = 20_000
MAX_DEPTH = 30
MAX_FACTORIAL = 1000

_TOKEN = re.compile(r"\\(?:frac|cdot|times|div)(?![A-Za-z])|[0-9]+\.?[0-9]*|\.[0-9]+|[-+*/^(){}!]")
_MIXED = re.compile(r"(?P<sign>[-+]?)(?P<whole>[0-9]+) (?P<over>[0-9]+)/(?P<under>[0-9]+)")
_REPEATING = re.compile(
    r"(?P<sign>[-+]?)(?P<head>[0-9]*)\.(?P<once>[0-9]*)\\(?:overline|bar|dot)\{?(?P<again>[0-9]+)\}?"
)
_WHOLE = re.compile(r"[0-9]+")
_TIMES = frozenset((r"\cdot", r"\times", "*"))
_OVER = frozenset((r"\div", "/"))


class _NotArithmetic(Exception):
    """The text is not plain arithmetic, or its value is too large to compute."""


def exact_value(text: str) -> Fraction | None:
    """The value of a text in normal form (normalise.latex); None where it is not plain arithmetic."""
    if mixed := _MIXED.fullmatch(text):
        sign, whole, over, under = mixed.groups()
        if not int(under):
            return None
        value = int(whole) + Fraction(int(over), int(under))
        return -value if sign == "-" else value
    if repeating := _REPEATING.fullmatch(text):
        sign, head, once, again = repeating.groups()
        nines = (10 ** len(again) - 1) * 10 ** len(once)
        value = Fraction(f"{head or 0}.{once or 0}") + Fraction(int(again), nines)
        return -value if sign == "-" else value
    tokens: list[str] = _TOKEN.findall(text)
    if "".join(tokens) != text:
        return None
    try:
        reader = _Parser(tokens)
        value = reader.sum(0)
        return value if reader.at == len(tokens) else None
    except (_NotArithmetic, ZeroDivisionError, ValueError):
        return None


class _Parser:
    """A recursive-descent parser of tokens; every method parses from position `at` on and returns a value."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, token: str) -> None:
        if self.next() != token:
            raise _NotArithmetic
        self.at += 1

    def sum(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise _NotArithmetic
        value = self.sign() * self.product(depth)
        while self.next() in ("+", "-"):
            value = _bounded(value + self.sign() * self.product(depth))
        return value

    def sign(self) -> int:
        """The product of the signs at this position: 1 or -1; 1 where there is none."""
        sign = 1
        while self.next() in ("+", "-"):
            sign = -sign if self.next() == "-" else sign
            self.at += 1
        return sign

    def product(self, depth: int) -> Fraction:
        value = self.power(depth)
        while (token := self.next()) not in ("", "+", "-", ")", "}"):
            if token in _TIMES or token in _OVER:
                self.at += 1
                factor = self.sign() * self.power(depth)
                value = _bounded(value / factor if token in _OVER else value * factor)
            elif token in ("(", r"\frac"):
                value = _bounded(value * self.power(depth))
            else:
                raise _NotArithmetic
        return value

    def power(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self.next() == "!":
            self.at += 1
            if value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
                raise _NotArithmetic
            value = Fraction(factorial(int(value)))
        if self.next() != "^":
            return value
        self.at += 1
        exponent = self.exponent(depth)
        if exponent.denominator != 1:
            raise _NotArithmetic
        size = max(value.numerator.bit_length(), value.denominator.bit_length())
        if size * abs(exponent) > MAX_BITS:
            raise _NotArithmetic
        return value ** int(exponent)

    def exponent(self, depth: int) -> Fraction:
        if self.next() == "{":
            return self.atom(depth)
        token = self.next()
        if not re.fullmatch("[0-9]", token):  # TeX raises only one digit: it shows 2^10 as 2¹0
            raise _NotArithmetic
        self.at += 1
        return Fraction(token)

    def atom(self, depth: int) -> Fraction:
        token = self.next()
        if token in ("(", "{"):
            self.at += 1
            value = self.sum(depth + 1)
            self.take(")" if token == "(" else "}")
            return value
        if token == r"\frac":
            return self.fraction(depth)
        if not token or token[0] not in "0123456789.":
            raise _NotArithmetic
        self.at += 1
        value = Fraction(token)
        if _WHOLE.fullmatch(token) and self.next() == r"\frac":  # 137\frac{1}{2} is a mixed number, not a product
            start = self.at
            part = self.fraction(depth)
            inside = self.tokens[start + 1 : self.at]
            if len(inside) != 6 or not all(map(_WHOLE.fullmatch, (inside[1], inside[4]))):
                raise _NotArithmetic
            value += part
        return value

    def fraction(self, depth: int) -> Fraction:
        self.take(r"\frac")
        parts = []
        for _ in range(2):
            self.take("{")
            parts.append(self.sum(depth + 1))
            self.take("}")
        return _bounded(parts[0] / parts[1])


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 4 * MAX_BITS:
        raise _NotArithmetic
    return value
