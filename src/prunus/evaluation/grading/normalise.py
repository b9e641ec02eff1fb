"""Normal forms of answers: digits, a letter, LaTeX without decoration, or text with single blanks."""

import re
from collections.abc import Sequence
from fractions import Fraction
from string import ascii_uppercase
from typing import NamedTuple

# Split a quantity into its number and what follows: a unit (5 cm^2, 42 apples), a scale (1 million), percent.

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
        sign, degrees, minutes, seconds = arc.groups()
        value = rf"{degrees}+\frac{{{minutes}}}{{60}}+\frac{{{seconds or 0}}}{{3600}}"
        return Quantity(f"{sign}({value})", units=frozenset(["degree^1"]))
    if any(match.end() == len(body) for match in DEGREE.finditer(body)):
        return Quantity(body, units=frozenset(["degree^1"]))
    number = ticks.rstrip("'")
    if (marks := len(ticks) - len(number)) in (1, 2) and _BODY.search(number) and _PLAIN_NUMBER.fullmatch(number):
        return Quantity(number, units=_TICKED[marks - 1])
    for _ in range(3):
        if match := _PERCENT.search(body):
            percent, body = True, _BLANK_END.sub("", body[: match.start()])
            continue
        styled = _STYLED.search(body[-MAX_UNIT:])
        plain = None if styled else _PLAIN.search(body[-MAX_UNIT:])
        match = styled or plain
        if match is None:
            break
        start = max(0, len(body) - MAX_UNIT) + match.start()
        before = _BLANK_END.sub("", body[:start])
        if not before or not _BODY.search(before) or (plain and not _PLAIN_NUMBER.fullmatch(before)):
            break
        phrase, exponent = match.groups()
        words = re.findall(r"[A-Za-z]+", phrase)
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
        power = next((_POWERS[word.lower()] for word in words if word.lower() in _POWERS), exponent or "1")
        known = [KNOWN[name] for word in words if (name := word if word in KNOWN else word.lower()) in KNOWN]
        units |= {f"{name}^{power}" for name in known}
        body = before
    return Quantity(body, scale, units, percent)


def ticked(text: str) -> str:
    r"""The text with every prime as an apostrophe: 60^{\prime\prime}, 60″ and 60" become 60''."""
    return _PRIMES.sub(lambda mark: "'" * (2 if mark[0] in '"”″' else max(1, mark[0].count(r"\prime"))), text)


def _is_unit(words: list[str], apart: bool) -> bool:
    """Whether words are a unit. Single letters and short words must be known units, else they are variables."""
    if not words or not apart or any(word.lower() in NOT_UNITS for word in words):
        return False
    if "".join(words).lower() in ("am", "pm"):
        return False
    known = [len(word) > 2 or word in KNOWN for word in words]
    return any(known) and all(fits or word in ("of", "sq", "cu", "a") for fits, word in zip(known, words, strict=True))


_FONTS = ("bf", "it", "rm", "sf", "tt")
_WRAPPERS = frozenset(
    ["text", "mbox", "hbox", "textnormal", "emph", "underline", "boldsymbol", "bm", "operatorname"]
) | {kind + font for kind in ("text", "math") for font in _FONTS}
_WRAPPER = re.compile(rf"\\(?:{'|'.join(sorted(_WRAPPERS))})\b\s*(?=\{{)")
# Signs that people type where LaTeX has commands. A blank keeps the command apart from a letter that follows.
_SIGNS = str.maketrans(
    {
        "\u00a0": "~", "\u2009": "~", "\u202f": "~",
        "−": "-", "–": "-", "≤": r"\le ", "≥": r"\ge ", "∞": r"\infty ", "π": r"\pi ", "×": r"\times ",
        "·": r"\cdot ", "÷": r"\div ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ", "≈": r"\approx ",
        "≠": r"\ne ", "∖": r"\setminus ", "ℝ": r"\mathbb{R}",
        "²": "^2", "³": "^3", "√": r"\sqrt ",
    }
)  # fmt: skip
# 2,220 and 2{,}220 and 2,\!220; 2 220 and 2\,220 and 2~220. Not 3, 500 (a list), nor x_1 200.
_GROUPS = re.compile(
    r"(?<![0-9._^])[1-9][0-9]{0,2}"
    r"(?:(?:(?:\{,\}|,)(?:\\[!,:;][ ]?){0,3}[0-9]{3})+|(?:(?:\\[,:;! ]|[ ~]){1,3}[0-9]{3})+)(?![0-9])"
)
_DEPTH = {"(": 1, "[": 1, r"\(": -1, r"\[": -1, r"\{": 1, ")": -1, "]": -1, r"\)": 1, r"\]": 1, r"\}": -1}
_ROOT = re.compile(r"√\s*([0-9]+)")
_TEXT_COMMA = re.compile(r"\\(?:text|mbox)\{,\}")
_ROW_SPACE = re.compile(r"\\\\\[[0-9.]{1,6} ?[a-z]{2}\]")
_EXPLICIT = re.compile(r"\{,\}|\\|[ ~]")
_NOT_DIGITS = re.compile(r"[^0-9]+")

# Whole numbers
_THIN = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: $()\[\]]|[${}~*€£]")
_THOUSANDS_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_INTEGER = re.compile(r"([+-]?) *0*([0-9]+)(?:\.0*)?(?P<unit> *%| .+|[A-Za-z]{2}.*)?")
_SCALED = re.compile(
    rf"(?P<number>[+-]?[0-9]+(?:\.[0-9]+)?) ?(?P<scale>{'|'.join(SCALES)})(?P<unit> .+)?", re.IGNORECASE
)
_CHOICE_BEFORE = re.compile(r"\([A-H]\)[ :.]*(?=[-+0-9])")
_UNIT = re.compile(r"[A-Za-z/(][A-Za-z²³/ .'()-]*(?:(?<=[A-Za-z])\^?[23])?[A-Za-z/ .]*")
_UNIT_LETTERS = frozenset("mgshLl")
# Words that change the number they follow.
_NOT_UNITS = frozenset(
    ["and", "or", "plus", "minus", "times", "over", "pi", "i", "x", "n", "e", "sqrt", "half", "third", "quarter"]
) | frozenset(["dozen", "hundred", "thousand", "million", "billion", "trillion"])

# LaTeX
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
_SIZES = frozenset(rf"\{size}{side}" for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r", "m"))
_DROPPED = _SIZES | {
    r"\left", r"\right", r"\!", r"\,", r"\;", r"\:", "\\ ", "~", r"\quad", r"\qquad", r"\displaystyle", r"\textstyle",
    "$", r"\$", r"\(", r"\)", r"\[", r"\]", r"\bf", r"\rm", r"\it",
}  # fmt: skip
_SAME = {r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\lbrace": r"\{", r"\rbrace": r"\}"} | {
    r"\ne": r"\neq", r"\backslash": r"\setminus", r"\smallsetminus": r"\setminus", r"\colon": ":",
    r"\leq": r"\le", r"\geq": r"\ge", r"\leqslant": r"\le", r"\geqslant": r"\ge", r"\lt": "<", r"\gt": ">"
}  # fmt: skip
_ARGUMENTS = {r"\frac": 2, r"\sqrt": 1}
_LETTER_EQUALS = re.compile(r"[A-Za-z]=")
_PLAIN_INTEGER = re.compile(r"-?[0-9]+")

# Choices
_BARE_LETTER = re.compile(r"(?:(?:option|choice|answer)\s+)?[(\[]?\s*([A-Z])\s*[)\]]?[.:,;]?", re.IGNORECASE)
_LED_LETTER = re.compile(
    r"(?i:option|choice)\s+[(\[]?(?P<named>[A-Z])\b|[(\[](?P<bracketed>[A-Z])[)\]]|(?P<marked>[A-Z])[).:,;](?=\s|$)"
    r"|(?P<reasoned>[A-Z])(?=,?\s+(?:because|since|as)\s)|(?P<bare>[B-HJ-Z])(?=\s)"
)
_ANOTHER = re.compile(r"[\s.:)\]]*(?:[,;/&]|\band\b|\bor\b)[\s(\[]*(?:option\s+)?([A-Z])(?![A-Za-z'])")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3}")
_IN_WORDS = r"(?<![A-Za-z0-9]){}(?![A-Za-z0-9])"
# A number or formula inside a text counts only if it is no part of a larger expression, such as x in x^2 or 2 in -2.
_APART = (
    r"(?<![^\s\"(\[])(?<![A-Za-z0-9]\()(?<![-+*/^<>0-9] )(?<![0-9], ){}"
    r"(?![^\s\")\].,;!?]|[.,][0-9]|[,;]? (?:[+*/^=<>0-9\\]|- ?[0-9]))"
)


def integer(text: str) -> str | None:
    r"""A whole number as plain digits with a sign, or None where the text is not one.

    Currency signs, thousands separators, degrees, leading zeros, a trailing `.0`, fonts, `x =`, the letter of a choice
    before it and units are dropped; 3 million is 3000000; \frac{84}{2} and 42\pi are not read as whole numbers.
    """
    text = _ungroup(DEGREE.sub(" ", text.translate(_SIGNS)))
    text = _WRAPPER.sub(" ", text).replace("\\%", "%").replace("{,}", ",")
    text = " ".join(_THIN.sub("", text).split()).rpartition("=")[2].strip().rstrip(".")
    text = _CHOICE_BEFORE.sub("", _THOUSANDS_COMMA.sub("", text))
    if scaled := _SCALED.fullmatch(text):
        number, scale, unit = scaled.groups()
        text = f"{Fraction(number) * 10 ** SCALES[scale.lower()]}{unit or ''}"
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    sign, digits, unit = match.groups()
    if not _is_unit_or_none(unit or ""):
        return None
    return f"-{digits}" if sign == "-" and digits != "0" else digits


def _is_unit_or_none(text: str) -> bool:
    unit = text.strip()
    if unit in ("", "%"):
        return True
    words = re.findall(r"[A-Za-z]+", unit)
    single_ok = len(unit) > 1 or unit in _UNIT_LETTERS
    return single_ok and bool(_UNIT.fullmatch(unit)) and not any(word.lower() in _NOT_UNITS for word in words)


def math(text: str) -> str:
    r"""LaTeX in normal form (see latex), also without `x=` in front of the value of a letter."""
    joined = latex(text)
    if name_of(joined):
        joined = joined[2:]
    if _PLAIN_INTEGER.fullmatch(joined):
        joined = integer(joined) or joined
    return joined


def name_of(joined: str) -> str:
    """The variable whose value a text in normal form states, such as x in x=5; empty if there is none."""
    return joined[0] if _LETTER_EQUALS.match(joined) and joined.count("=") == 1 and len(joined) > 2 else ""


def latex(text: str, grouped: bool = True) -> str:
    r"""LaTeX in normal form, without parts that do not change its meaning; math-verify can still read it.

    Drops blanks (but not between two digits), \left \right \big and thin spaces, dollar signs, degrees, font commands
    around their content, trailing stops and thousands separators: 2,220 and 2 220 become 2220, and the remaining
    commas separate elements. \dfrac becomes \frac, \frac12 becomes \frac{1}{2}.
    """
    text = _TEXT_COMMA.sub("{,}", _ROOT.sub(r"\\sqrt{\1}", ticked(text))).replace("{:}", ":")
    text = DEGREE.sub("", _ROW_SPACE.sub(r"\\\\", text.translate(_SIGNS)))
    if text.startswith("**") and text.endswith("**"):
        text = text.strip("*")
    if grouped:
        text = _ungroup(text)
    return _join(_braced(_undecorated(_TOKEN.findall(text)))).rstrip(".,;:")


def _ungroup(text: str) -> str:
    """The text without thousands separators. Inside brackets a bare comma separates elements: (1,200)."""
    parts: list[str] = []
    depth = done = 0
    for group in _GROUPS.finditer(text):
        between = text[done : group.start()]
        depth += sum(sign * between.count(bracket) for bracket, sign in _DEPTH.items())
        keep = depth > 0 and not _EXPLICIT.search(group[0])
        parts += [between, group[0] if keep else _NOT_DIGITS.sub("", group[0])]
        done = group.end()
    return "".join([*parts, text[done:]])


def is_integer(text: str) -> bool:
    """Whether a normalised answer is just a whole number."""
    return _PLAIN_INTEGER.fullmatch(text) is not None


def _undecorated(tokens: list[str]) -> list[str]:
    """The text without dropped tokens and font commands; blanks survive only between digits."""
    kept: list[str] = []
    closing: list[bool] = []  # for every open brace: whether it is kept
    font = blank = False
    for token in tokens:
        if token.isspace():
            blank = True
            continue
        if token in _DROPPED:
            continue
        if token[0] == "\\" and token[1:] in _WRAPPERS:
            font = True
            continue
        if token == "{":
            closing.append(not font)
        if (token == "{" and font) or (token == "}" and closing and not closing.pop()):
            font = False
            continue
        if blank and token.isdigit() and kept and kept[-1].isdigit():
            kept.append(" ")
        font = blank = False
        kept.append(_SAME.get(token, token))
    return kept


def _braced(tokens: list[str]) -> list[str]:
    r"""The tokens with braces around every one-token argument of \frac and \sqrt."""
    out: list[str] = []
    waiting = [0]  # for every open brace: how many arguments the command inside still takes
    for token in tokens:
        if token == "}":
            if len(waiting) > 1:
                waiting.pop()
            waiting[-1] = max(0, waiting[-1] - 1)
        elif token == "{":
            waiting.append(0)
        elif token == " " and (waiting[-1] or out[-1:] == ["}"]):
            continue
        elif waiting[-1] and token not in _ARGUMENTS and token != "[":
            waiting[-1] -= 1
            out += ["{", token, "}"]
            continue
        else:
            waiting[-1] = _ARGUMENTS.get(token, 0)
        out.append(token)
    return out


def _join(tokens: list[str]) -> str:
    """Tokens as text, with a blank between a command and a letter after it."""
    parts: list[str] = []
    for token in tokens:
        if parts and parts[-1][0] == "\\" and parts[-1][-1].isalpha() and token[0].isalpha():
            parts.append(" ")
        parts.append(token)
    return "".join(parts)


def choice(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that a text names by its letter or its text; None where it names none or two.

    Read as C: `C`, `c`, `(C)`, `C)`, `C.`, `option C`, `C) its text`, `C because`, and fonts around them. A capital A
    followed by a word is an article, not a choice.
    """
    letters, plain = ascii_uppercase[: len(choices)], _plain(text)
    if (bare := _BARE_LETTER.fullmatch(plain)) and bare[1].upper() in letters:
        return bare[1].upper()
    answer, options = exact(text).rstrip("."), [exact(option).rstrip(".") for option in choices]
    equal = [index for index, option in enumerate(options) if option and option == answer]
    if not equal and (led := _LED_LETTER.match(plain)):
        kind = led.lastgroup or ""
        letter, rest = led[kind], plain[led.end(kind) :]
        if letter in letters:
            another = _ANOTHER.match(rest)
            return None if another and another[1] in letters and another[1] != letter else letter
    if not equal:
        equal = [index for index, option in enumerate(options) if option and math(option) == math(answer)]
    if not equal:
        for index, option in enumerate(map(_plain, options)):
            around = _IN_WORDS if _WORD.search(option) else _APART
            if option and re.search(around.format(re.escape(option)), _plain(answer)):
                equal.append(index)
    return ascii_uppercase[equal[0]] if len(equal) == 1 else None


def _plain(text: str) -> str:
    """The text without fonts and the marks of formulas."""
    return _WRAPPER.sub("", text).translate(str.maketrans("", "", "${}*")).strip()


def exact(text: str) -> str:
    """The text with every run of blanks replaced by one blank."""
    return " ".join(text.split())
