r"""Split a quantity into its number and what follows: a unit (5 cm^2, 42 apples), a scale (1 million), percent."""

import re
from fractions import Fraction
from typing import NamedTuple

SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NAMES = {
    "meter": "m metre meters metres", "centimeter": "cm centimetre centimeters centimetres",
    "millimeter": "mm millimeters",
    "kilometer": "km kilometers", "inch": "in inches", "foot": "ft feet", "yard": "yd yards", "mile": "mi miles",
    "gram": "g grams", "kilogram": "kg kilograms", "pound": "lb lbs pounds", "ounce": "oz ounces",
    "liter": "L l liters", "second": "s sec seconds", "minute": "min minutes", "hour": "h hr hours", "day": "days",
    "week": "weeks", "month": "months", "year": "years", "cent": "cents", "dollar": "dollars usd", "euro": "euros",
    "degree": "degrees deg", "radian": "radians rad",
}  # fmt: skip
KNOWN = {word: name for name, words in _NAMES.items() for word in (name, *words.split())}
# Words after a number that are not a unit: they change its value, or belong to the sentence.
_SENTENCE_WORDS = """and or plus minus times over mod pi i x n e sqrt sin cos tan cot sec csc log ln exp lim max min
    cis half third quarter dozen pair to not is are if when where with without more less than at least most else"""
_TIME_WORDS = "noon midnight morning afternoon evening"
NOT_UNITS = frozenset(SCALES) | frozenset(f"{_SENTENCE_WORDS} {_TIME_WORDS}".split())
MAX_UNIT = 60

DEGREE = re.compile(
    r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|°|\\degrees?(?![A-Za-z])|(?<=[0-9}])\^\s?(?:\{o\}|o(?![A-Za-z]))"
)
_PRIMES = re.compile(r"\^\s*(?:\{\s*(?:\\prime\s*)+\}|\\prime(?![A-Za-z]))|(?<=[0-9}])[\"”]|[′’″]")
# What one prime and two primes after a number may stand for.
_TICKED = (frozenset(["minute^1", "foot^1"]), frozenset(["second^1", "inch^1"]))
_BLANKS = r"(?:\\[,;:! ]|~|\s)*"
_ARC = re.compile(
    rf"(?P<sign>[-+]?)(?P<degrees>[0-9]+)(?:{DEGREE.pattern}){_BLANKS}(?P<minutes>[0-9]+(?:\.[0-9]+)?)'"
    rf"(?:{_BLANKS}(?P<seconds>[0-9]+(?:\.[0-9]+)?)'')?"
)
_STYLED = re.compile(
    r"\\(?:text|mbox|hbox|textrm|textbf|textit|mathrm|mathbf|rm|operatorname)\s*\{(?P<words>[^{}\\$0-9=<>]*)\}"
    r"\s*(?:\^\s*\{?(?P<power>[0-9])\}?)?\s*$"
)
_PLAIN = re.compile(r"(?P<words>[A-Za-z][A-Za-z./ -]*)(?:\^\s*\{?(?P<power>[0-9])\}?)?$")
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
_PERCENT = re.compile(r"\\?%$")
_BODY = re.compile(r"[0-9a-zA-Z)}\]!]$")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\\?[$€£])?[0-9.,/ {}()\\!~^]*(?:\\[dt]?frac[0-9 {}]+)?[0-9. }~\\,;:]*")
_BLANK_END = re.compile(r"(?:\\[,;:! ]|~|\s|\\$)+$")


class Quantity(NamedTuple):
    """A quantity in parts. body: the text of the number. scale: its factor. units: the known ones, as cm^2."""

    body: str
    scale: Fraction = Fraction(1)
    units: frozenset[str] = frozenset()
    percent: bool = False


def split_quantity(text: str) -> Quantity:
    """An answer with units, scale and percent split off; an answer without them is just a body."""
    body, scale, units, percent = text.strip().rstrip("."), Fraction(1), frozenset[str](), False
    if r"\$" in body or (body.startswith(("$", "€")) and not body.endswith("$")):
        units = frozenset(["dollar^1"])
    ticks = ticked(body)
    if arc := _ARC.fullmatch(ticks):
        degrees = rf"{arc['degrees']}+\frac{{{arc['minutes']}}}{{60}}+\frac{{{arc['seconds'] or 0}}}{{3600}}"
        return Quantity(f"{arc['sign']}({degrees})", units=frozenset(["degree^1"]))
    if any(found.end() == len(body) for found in DEGREE.finditer(body)):
        return Quantity(body, units=frozenset(["degree^1"]))
    number = ticks.rstrip("'")
    if (marks := len(ticks) - len(number)) in (1, 2) and _BODY.search(number) and _PLAIN_NUMBER.fullmatch(number):
        return Quantity(number, units=_TICKED[marks - 1])
    for _ in range(3):
        if found := _PERCENT.search(body):
            percent, body = True, _stripped(body[: found.start()])
            continue
        styled = _STYLED.search(body[-MAX_UNIT:])
        plain = None if styled else _PLAIN.search(body[-MAX_UNIT:])
        found = styled or plain
        if found is None:
            break
        start = max(0, len(body) - MAX_UNIT) + found.start()
        before = _stripped(body[:start])
        if not before or not _BODY.search(before) or (plain and not _PLAIN_NUMBER.fullmatch(before)):
            break
        words = re.findall(r"[A-Za-z]+", found["words"])
        if words and words[0].lower().removesuffix("s") in SCALES and _PLAIN_NUMBER.fullmatch(before):
            scale *= 10 ** SCALES[words[0].lower().removesuffix("s")]
            words = [word for word in words[1:] if word.lower() != "of"]
            if not words:
                body = before
                continue
        if [word.lower() for word in words] in (["percent"], ["per", "cent"], ["percentage", "points"]):
            percent, body = True, before
            continue
        apart = styled is not None or body[start - 1 : start].isspace()
        if not _is_unit(words, apart):
            break
        power = next((_POWERS[word.lower()] for word in words if word.lower() in _POWERS), found["power"] or "1")
        known = [KNOWN[name] for word in words if (name := word if word in KNOWN else word.lower()) in KNOWN]
        units |= {f"{name}^{power}" for name in known}
        body = before
    return Quantity(body, scale, units, percent)


def ticked(text: str) -> str:
    r"""The text with every prime as an apostrophe: 60^{\prime\prime}, 60″ and 60" become 60''."""
    return _PRIMES.sub(lambda mark: "'" * (2 if mark[0] in '"”″' else max(1, mark[0].count(r"\prime"))), text)


def _stripped(text: str) -> str:
    return _BLANK_END.sub("", text)


def _is_unit(words: list[str], apart: bool) -> bool:
    """Whether words are a unit. Single letters and short words must be known units, else they are variables."""
    if not words or not apart or any(word.lower() in NOT_UNITS for word in words):
        return False
    if "".join(words).lower() in ("am", "pm"):
        return False
    known = [len(word) > 2 or word in KNOWN for word in words]
    return any(known) and all(fits or word in ("of", "sq", "cu", "a") for fits, word in zip(known, words, strict=True))
