r"""Other forms of gold answers: some mean the same, some only look similar.

They are made from the gold answer's text and from exact values (fractions, decimals), never by the grader under test. A
form is made only where the gold answer's shape shows that it is sound: (2, 4) may be a point or an interval, so it is
written as an inequality only where infinity, a square bracket, a union or the question shows that it is an interval.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

INTEGER = re.compile(r"-?[0-9]+")
GROUPED = re.compile(r"[0-9]{1,3}(?:,(?:\\! ?)?[0-9]{3})+")
DECIMAL = re.compile(r"-?[0-9]*\.[0-9]+")
MONEY = re.compile(r"\\\$(?P<number>[0-9.,\\! ]+)")
FRACTION = re.compile(r"(?P<sign>-?)\\d?frac *(?:\{(?P<a>[0-9]+)\}|(?P<a1>[0-9])) *(?:\{(?P<b>[0-9]+)\}|(?P<b1>[0-9]))")
MIXED = re.compile(r"(?P<whole>[0-9]+) *\\frac\{(?P<a>[0-9]+)\}\{(?P<b>[0-9]+)\}")
DEGREES = re.compile(r"(?P<number>-?[0-9]+)\^\\circ")
PRIMED = re.compile(r"(?P<number>[0-9]+)'")
ARC = re.compile(r"(?P<degrees>[0-9]+)\^\\circ (?P<minutes>[0-9]+)'")
TIME = re.compile(r"(?P<hour>[0-9]+)\{:\}(?P<minute>[0-9]{2})\\text\{ (?P<half>[ap])\.m\.\}")
BASED = re.compile(r"(?P<digits>[0-9]+)_\{?(?P<base>[0-9]+)\}?")
WITH_UNIT = re.compile(r"(?P<number>[0-9.]+) *\\(?:mbox|text)\{ (?P<unit>[a-z]+)\}(?P<power>\^2)?")
LABEL = re.compile(r"\\text\{\((?P<letter>[A-F])\)\}")
WORD = re.compile(r"\\text\{(?P<word>[A-Za-z]{2,})\}")
EQUATION = re.compile(r"(?P<name>[a-z]) *= *(?P<value>.+)")
IN_INTERVAL = re.compile(r"x *\\in *")
LETTERS = re.compile(r"(?<!\\)(?<![A-Za-z\\])([a-z])(?![A-Za-z])")
# Shapes that MATH500 has not, or only once; made up here.
MADE_UP = (
    r"4{:}45\text{ p.m.}", r"12{:}05\text{ a.m.}", r"12{:}30\text{ p.m.}", r"10{:}08\text{ a.m.}", "30'", "6'",
    r"5^\circ 30'", r"12^\circ 6'", r"(-\infty,-3]\cup[2,\infty)", r"(-\infty,1)\cup(1,4)\cup(4,\infty)",
    r"[-\sqrt{2},\sqrt{2}]", r"[0,3)\cup(3,\infty)",
)  # fmt: skip
BASE_NAMES = {"5": "five", "6": "six", "8": "eight", "9": "nine"}


class Form(NamedTuple):
    """One form. kind: what was changed. text: what a model would have written. same: whether it means the same."""

    kind: str
    text: str
    same: bool


def forms(gold: str, question: str) -> list[Form]:
    """Return all forms of one gold answer, each text once, in a fixed order."""
    found: dict[str, Form] = {}
    made = [Form(kind, text, True) for kind, text in _same(gold, question)]
    made += [Form(kind, text, False) for kind, text in _other(gold, question)]
    for form in made:
        if found.setdefault(form.text, form).same != form.same:
            raise AssertionError(f"{form.text!r} was made of {gold!r} with both meanings")
    return list(found.values())


def _boxed(kind: str, *answers: str) -> Iterator[tuple[str, str]]:
    for answer in answers:
        yield kind, rf"Hence the answer is $\boxed{{{answer}}}$."


# The shape of a gold answer


def value(gold: str) -> Fraction | None:
    """Return the exact value of a whole number, decimal, fraction, mixed number or sum of money; else None."""
    text = gold.strip()
    if match := MONEY.fullmatch(text):
        text = match["number"]
    if GROUPED.fullmatch(text):
        text = re.sub(r"[^0-9]", "", text)
    if INTEGER.fullmatch(text) or DECIMAL.fullmatch(text):
        return Fraction(text)
    if match := FRACTION.fullmatch(text):
        return Fraction(int(match["a"] or match["a1"]), int(match["b"] or match["b1"])) * (-1 if match["sign"] else 1)
    if match := MIXED.fullmatch(text):
        return int(match["whole"]) + Fraction(int(match["a"]), int(match["b"]))
    return None


def exact_decimal(number: Fraction) -> str | None:
    """Return the decimal digits of a number that terminates; else None."""
    denominator = number.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return f"{Decimal(number.numerator) / Decimal(number.denominator):f}" if denominator == 1 else None


def parts(gold: str) -> tuple[str, list[str], str] | None:
    """Return (opening bracket, elements, closing bracket) of a tuple, interval or set; a bare list has no brackets."""
    text = re.sub(r"\\left|\\right", "", gold).strip()
    opening, closing = "", ""
    for start, end in ((r"\{", r"\}"), ("(", ")"), ("(", "]"), ("[", ")"), ("[", "]")):
        if text.startswith(start) and text.endswith(end):
            opening, closing = start, end
            text = text[len(start) : -len(end)]
            break
    if GROUPED.fullmatch(gold) or MONEY.fullmatch(gold) or "matrix" in gold or r"\cup" in gold:
        return None
    elements, depth, at = [""], 0, 0
    while at < len(text):
        char = text[at]
        depth += char in "({["
        depth -= char in ")}]"
        if depth < 0:
            return None  # (a+5)(b+2)
        if char == "," and depth == 0:
            elements.append("")
        else:
            elements[-1] += char
        at += 1
    elements = [element.strip() for element in elements]
    return (opening, elements, closing) if len(elements) > 1 and all(elements) else None


def intervals(gold: str, question: str) -> list[tuple[str, str, str, str]] | None:
    """Return (bracket, start, end, bracket) of every interval of a gold answer that must be an interval."""
    text = IN_INTERVAL.sub("", gold, count=1)
    pieces = [parts(piece.strip()) for piece in text.split(r"\cup")]
    found = []
    for piece in pieces:
        if piece is None or len(piece[1]) != 2 or piece[0] not in ("(", "[") or piece[2] not in (")", "]"):
            return None
        found.append((piece[0], piece[1][0], piece[1][1], piece[2]))
    sure = text != gold or "[" in gold or "]" in gold or r"\infty" in gold or r"\cup" in gold
    return found if sure or "interval notation" in question else None


def gaps(found: list[tuple[str, str, str, str]]) -> list[str]:
    """Return what the line has between and beside intervals in ascending order, as intervals and sets of one number."""
    flipped = {"(": "]", "[": ")", ")": "[", "]": "("}
    before, start = "(", r"-\infty"
    between = []
    for opening, low, high, closing in found:
        if low == start and low != r"-\infty":
            between.append(rf"\{{{low}\}}")
        elif low != r"-\infty":
            between.append(f"{before}{start},{low}{flipped[opening]}")
        before, start = flipped[closing], high
    return between if start == r"\infty" else [*between, rf"{before}{start},\infty)"]


def terms(gold: str) -> list[str] | None:
    """Return the signed terms of a sum outside all brackets, if there are two or more."""
    if re.search(r"[,=_&]|\\pm|\\text|\\mbox|\\begin|\\cup|\\in\b|\\circ", gold):
        return None
    found, depth = [""], 0
    for char in gold:
        depth += char in "({["
        depth -= char in ")}]"
        if char in "+-" and depth == 0 and found[-1].strip():
            found.append("")
        found[-1] += char
    return [term.strip() for term in found] if len(found) > 1 else None


def asks_for_percent(question: str) -> bool:
    return re.search(r"percent|\\?%", question) is not None


# Forms with the same meaning


def _same(gold: str, question: str) -> Iterator[tuple[str, str]]:
    yield from _presented(gold)
    yield from _brackets(gold)
    if (number := value(gold)) is not None:
        yield from _number(gold, number, question)
    yield from _marked(gold)
    yield from _several(gold, question)
    if sum_terms := terms(gold):
        reordered = " ".join([*sum_terms[1:], sum_terms[0] if sum_terms[0][0] in "+-" else f"+ {sum_terms[0]}"])
        yield from _boxed("terms in another order", reordered.removeprefix("+").strip())
    if match := EQUATION.fullmatch(gold):
        yield from _boxed("x =", f"{match['name']}={match['value']}")
        if value(match["value"]) is not None:  # y = 2x + 3 is a line, 2x + 3 is not
            yield from _boxed("x =", match["value"])


def _presented(gold: str) -> Iterator[tuple[str, str]]:
    yield from _boxed("box", gold, rf"\displaystyle {gold}")
    yield from _boxed("trailing full stop", f"{gold}.")
    yield r"\fbox", rf"We get \fbox{{{gold}}}." if "$" in gold else rf"We get \fbox{{${gold}$}}."
    yield r"\boxed without braces", rf"We get $\boxed {gold}$."
    yield "Final Answer:", f"**Final Answer:** ${gold}$"
    yield "Final Answer: ... because", f"Final Answer: ${gold}$ because no other case is left."
    yield "the final answer is", rf"The final answer is \({gold}\). I hope it is correct."
    yield "the result equals", f"There are 3 cases. Therefore the result equals ${gold}$."


def _brackets(gold: str) -> Iterator[tuple[str, str]]:
    plain = re.sub(r"\\left|\\right", "", gold)
    if not re.search(r"[(\[]", plain) or LABEL.fullmatch(gold):
        return
    for left, right in ((r"\left", r"\right"), (r"\big", r"\big"), (r"\bigl", r"\bigr"), (r"\Big", r"\Big")):
        larger = re.sub(r"[(\[]", lambda found, left=left: left + found[0], plain)
        yield from _boxed(r"\left( and \big(", re.sub(r"[)\]]", lambda found, right=right: right + found[0], larger))
    yield from _boxed(r"\left( and \big(", plain)


def _number(gold: str, number: Fraction, question: str) -> Iterator[tuple[str, str]]:
    sign, a, b = "-" if number < 0 else "", abs(number.numerator), number.denominator
    bare = str(number.numerator) if b == 1 else None
    if MONEY.fullmatch(gold):
        amount = gold.removeprefix(r"\$")
        yield from _boxed("money", amount, rf"{amount} \text{{ dollars}}", rf"\text{{\$}}{amount}")
        yield "money", rf"The final answer is $\${amount}$."
        yield "money", f"The final answer is ${amount}."
        return
    yield from _boxed("x =", f"x={gold}", f"n = {gold}")
    yield from _boxed("unit", rf"{gold}\text{{ units}}", rf"{gold}\ \mathrm{{units}}")
    yield from _boxed("bold", rf"\mathbf{{{gold}}}", rf"\textbf{{{gold}}}")
    if b > 1 and (FRACTION.fullmatch(gold) or MIXED.fullmatch(gold)):
        yield from _boxed("fraction", *(rf"{sign}\{name}{{{a}}}{{{b}}}" for name in ("frac", "dfrac", "tfrac")))
        yield from _boxed("fraction", f"{sign}{a}/{b}", rf"\frac{{{sign}{a}}}{{{b}}}")
        if a > b and not sign:
            yield from _boxed("mixed number", rf"{a // b}\frac{{{a % b}}}{{{b}}}", f"{a // b} {a % b}/{b}")
        if digits := exact_decimal(number):
            yield from _boxed("exact decimal", digits, f"{digits}0")
    elif DECIMAL.fullmatch(gold):
        yield from _boxed("exact decimal", f"{gold}0", rf"{sign}\frac{{{a}}}{{{b}}}", f"{sign}{a}/{b}")
        exponent = len(gold.partition(".")[2])
        yield from _boxed("exact decimal", rf"{sign}{a * 10**exponent // b} \times 10^{{-{exponent}}}")
    if bare and a >= 1000:
        for separator in (",", " ", "{,}", r"\,", r",\!", r"\ "):
            yield from _boxed("thousands", f"{number.numerator:,}".replace(",", separator))
        if a % 1000 == 0:
            yield from _boxed("thousand in words", rf"{number.numerator // 1000} \text{{ thousand}}")
        if a % 100_000 == 0 and a >= 1_000_000:
            yield from _boxed("thousand in words", f"{Decimal(number.numerator) / 1_000_000:f} million")
    if bare:
        yield from _boxed("exact decimal", f"{bare}.0")
        yield from _boxed("choice with its text", rf"\textbf{{(C)}}\ {bare}", rf"\text{{(B) }} {bare}")
        yield "Final Answer: ... because", f"Final Answer: {bare} because no other case is left."
        yield "Final Answer:", f"Final Answer:\n\nThe correct value is **{bare}**."
        yield "the result equals", f"Therefore the result equals {bare}."
        if re.search(r"(?:what|as a) percent", question):
            yield from _boxed("percent where asked", rf"{bare}\%")


def _marked(gold: str) -> Iterator[tuple[str, str]]:
    """Yield forms of degrees, numbers in another base, units, words and letters."""
    if match := DEGREES.fullmatch(gold):
        n = match["number"]
        yield from _boxed("degrees", n, rf"{n}^{{\circ}}", f"{n}°", rf"{n} \text{{ degrees}}", rf"x = {n}^\circ")
        yield from _boxed("degrees", rf"{n}\degree", f"{n}^o")
    yield from _primed(gold)
    if match := BASED.fullmatch(gold):
        digits, base = match["digits"], match["base"]
        yield from _boxed("base", f"{digits}_{{{base}}}", f"{digits}_{base}", rf"({digits})_{{{base}}}")
        yield from _boxed("base", rf"{digits}_{{\text{{{BASE_NAMES[base]}}}}}")
    if match := WITH_UNIT.fullmatch(gold):
        n, unit, power = match["number"], match["unit"], match["power"] or ""
        yield from _boxed("unit", n, rf"{n}\text{{ {unit}}}{power}", rf"{n}\ \mathrm{{{unit}}}{power}")
    if match := WORD.fullmatch(gold):
        yield from _boxed("text", match["word"], rf"\textbf{{{match['word']}}}", rf"\mathrm{{{match['word']}}}")
        yield "text", f"The final answer is **{match['word']}**."
    if match := LABEL.fullmatch(gold):
        letter = match["letter"]
        yield from _boxed("choice", letter, f"({letter})", rf"\textbf{{({letter})}}", rf"\text{{{letter}}}")
        yield "choice", f"Final Answer: {letter} because the others fail."
        yield "choice", f"Final Answer:\nThe correct option is **{letter}**."
        yield "choice", f"Final Answer: ({letter})"


def _primed(gold: str) -> Iterator[tuple[str, str]]:
    """Yield forms of times of day, feet or minutes, and angles in degrees and minutes."""
    if match := TIME.fullmatch(gold):
        hour, minute, half = match["hour"], match["minute"], match["half"]
        clock = f"{hour}:{minute}"
        marks = (rf"\text{{ {half.upper()}M}}", rf"\text{{ {half}m}}", rf"\ \mathrm{{{half}.m.}}", f" {half}.m.")
        yield from _boxed("time of day", *(clock + mark for mark in marks), rf"\text{{{clock} {half.upper()}.M.}}")
        yield from _boxed("time of day", rf"{hour}\!:\!{minute}\text{{ {half}m}}", f"{int(hour):02}:{minute} {half}m")
        yield from _boxed("time of day", f"{int(hour) % 12 + 12 * (half == 'p'):02}:{minute}")
        yield "time of day", f"The final answer is {clock} {half}.m."
    if match := PRIMED.fullmatch(gold):
        n = match["number"]
        yield from _boxed("prime", n, rf"{n}^\prime", rf"{n}^{{\prime}}", rf"{n}\text{{ feet}}", f"{n}′")
    if match := ARC.fullmatch(gold):
        d, m = match["degrees"], match["minutes"]
        decimal = exact_decimal(int(d) + Fraction(int(m), 60))
        yield from _boxed("degrees and minutes", rf"{d}^{{\circ}}{m}^{{\prime}}", f"{d}°{m}′", rf"{decimal}^\circ")


def _several(gold: str, question: str) -> Iterator[tuple[str, str]]:
    """Yield forms of lists, sets, tuples, intervals and both signs."""
    if "\\pm" in gold and not gold.startswith(r"\{"):
        plus, minus = gold.replace(r"\pm", "+"), gold.replace(r"\pm", "-")
        yield from _boxed(
            "both signs", f"{plus}, {minus}", rf"\{{{minus}, {plus}\}}", rf"x = {plus} \text{{ or }} x = {minus}"
        )
    if found := intervals(gold, question):
        yield from _boxed("interval as inequality", r" \text{ or } ".join(_inequality(*piece) for piece in found))
        yield from _boxed("interval as inequality", r" \cup ".join(_as_interval(*piece) for piece in found))
        rest = gaps(found)
        together = rest[0] if len(rest) == 1 else "(" + r" \cup ".join(rest) + ")"
        for less in (r"\mathbb{R} \setminus ", r"\mathbb{R} - ", r"x \in \mathbb{R} \backslash ", r"x \notin "):
            yield from _boxed("interval as complement", less + together)
        if not together.startswith("\\"):
            yield from _boxed("interval as complement", f"{together}^c")
        yield from _boxed("interval with x in", rf"x \in {IN_INTERVAL.sub('', gold, count=1)}")
    elif found := parts(gold):
        opening, elements, closing = found
        if opening == "(":
            spaced = (",", r",\ ", " , ")
            yield from _boxed("blanks", *(opening + comma.join(elements) + closing for comma in spaced))
        elif opening == "" or opening == r"\{":
            backwards = elements[::-1]
            yield from _boxed("list in another order", f"{opening}{', '.join(backwards)}{closing}")
            if opening == "":
                yield from _boxed("list as set", rf"\{{{', '.join(elements)}\}}")
                yield from _boxed("list with and", rf"{', '.join(elements[:-1])} \text{{ and }} {elements[-1]}")


def _inequality(opening: str, start: str, end: str, closing: str) -> str:
    lower, upper = ("<" if opening == "(" else r"\le"), ("<" if closing == ")" else r"\le")
    if end in (r"\infty", r"+\infty"):
        above = ">" if opening == "(" else r"\ge"
        return f"x {above} {start}"
    return f"x {upper} {end}" if start == r"-\infty" else f"{start} {lower} x {upper} {end}"


def _as_interval(opening: str, start: str, end: str, closing: str) -> str:
    return f"{opening}{start},{end}{closing}"


# Forms with another meaning


def _other(gold: str, question: str) -> Iterator[tuple[str, str]]:
    yield from _digits(gold)
    yield from _signs(gold)
    if (number := value(gold)) is not None:
        yield from _other_number(gold, number, question)
    yield from _other_marked(gold)
    yield from _other_several(gold, question)


def _digits(gold: str) -> Iterator[tuple[str, str]]:
    """Yield forms with one digit changed that is not part of an index or exponent."""
    places = [at.start() for at in re.finditer(r"[0-9]", gold) if not re.search(r"[_^]\{?[0-9]*$", gold[: at.start()])]
    if not places:
        return
    for kind, place in (("last digit changed", places[-1]), ("first digit changed", places[0])):
        for step in (1, 4):
            digit = (int(gold[place]) + step) % 10
            if digit or len(places) == 1 or gold[place - 1 : place].isdigit():  # no denominator or factor of 0
                yield from _boxed(kind, f"{gold[:place]}{digit}{gold[place + 1 :]}")
    if (digit := (int(gold[places[-1]]) + 1) % 10) or len(places) == 1:
        changed = f"{gold[: places[-1]]}{digit}{gold[places[-1] + 1 :]}"
        yield "last digit changed", f"Final Answer: ${changed}$ because no other case is left."
        yield "last digit changed", f"Therefore the result equals ${changed}$."


def _signs(gold: str) -> Iterator[tuple[str, str]]:
    if value(gold) == 0 or re.search(r"\\text|\\mbox|_|\\cup|\\in\b|\\infty|\\begin|\\pm|=", gold):
        return
    if sum_terms := terms(gold):
        last = sum_terms[-1]
        flipped = ("-" if last[0] == "+" else "+") + last[1:]
        yield from _boxed("sign", " ".join([*sum_terms[:-1], flipped]))
    elif found := parts(gold):
        first = found[1][0]
        if first.strip("0") and not intervals(gold, ""):
            flipped = first[1:] if first.startswith("-") else f"-{first}"
            if found[0] or flipped not in found[1]:
                yield from _boxed("sign", f"{found[0]}{', '.join([flipped, *found[1][1:]])}{found[2]}")
    else:
        yield from _boxed("sign", gold[1:] if gold.startswith("-") else f"-{gold}")


def _other_number(gold: str, number: Fraction, question: str) -> Iterator[tuple[str, str]]:
    sign, a, b = "-" if number < 0 else "", abs(number.numerator), number.denominator
    if number and not asks_for_percent(question) and not MONEY.fullmatch(gold):
        yield from _boxed("percent against number", rf"{gold}\%")
    if number not in (0, 1) and not MONEY.fullmatch(gold):
        yield from _boxed("exponent changed", f"{gold}^2" if b == 1 and not sign else rf"\left({gold}\right)^2")
    if b > 1 and exact_decimal(number) is None:
        for digits in range(3, 9):
            cut = a * 10**digits // b
            for whole in {cut, cut + (2 * (a * 10**digits % b) >= b)}:
                written = f"{sign}{whole // 10**digits}.{whole % 10**digits:0{digits}d}"
                assert Fraction(written) != number
                yield from _boxed("truncated decimal", written)
    if b > 1 and a not in (0, b) and FRACTION.fullmatch(gold):
        yield from _boxed("fraction upside down", rf"{sign}\frac{{{b}}}{{{a}}}")
    if b == 1 and INTEGER.fullmatch(gold):
        yield from _boxed("almost equal", f"{gold}.0000001", rf"{gold}+10^{{-20}}")
        yield from _boxed("digit appended", f"{gold}7")
        if a >= 1000:
            yield from _boxed(
                "thousands", f"{number.numerator + 1000:,}", f"{number.numerator + 1:,}".replace(",", " ")
            )
        yield from _boxed("choice with its text", rf"\textbf{{(C)}}\ {number.numerator + 1}")
        yield from _boxed("thousand in words", rf"{gold} \text{{ thousand}}" if number else "1 thousand")


def _other_primed(gold: str) -> Iterator[tuple[str, str]]:
    if match := DEGREES.fullmatch(gold):
        n = match["number"]
        primes = (f"{n}'", f"{n}''", rf"{n}^{{\prime}}", rf"{n}^{{\prime\prime}}", f"{n}″")
        yield from _boxed("degrees against primes", *primes)
        yield from _boxed("other unit", rf"{n}\text{{ radians}}", rf"{n}\text{{ minutes}}")
    if match := PRIMED.fullmatch(gold):
        n = match["number"]
        yield from _boxed("degrees against primes", rf"{n}^\circ", f"{n}°", rf"{n}\text{{ degrees}}", f"{n}''")
    if match := ARC.fullmatch(gold):
        d, m = match["degrees"], match["minutes"]
        yield from _boxed("degrees and minutes", rf"{d}.{m}^\circ", f"{d}{m}", rf"{d}^\circ {m}''", f"{d}'{m}''")
    if match := TIME.fullmatch(gold):
        hour, minute, half = int(match["hour"]), match["minute"], match["half"]
        opposite = "a" if half == "p" else "p"
        late = hour % 12 + 12 * (half == "a")
        yield from _boxed("other time", rf"{hour}:{minute}\text{{ {opposite}.m.}}", f"{hour}:{minute} {opposite}m")
        yield from _boxed("other time", f"{late:02}:{minute}", rf"{hour % 12 + 1}:{minute}\text{{ {half}m}}")
        yield from _boxed("other time", rf"{hour}:{(int(minute) + 10) % 60:02}\text{{ {half}m}}", f"{hour}.{minute}")


def _other_marked(gold: str) -> Iterator[tuple[str, str]]:
    yield from _other_primed(gold)
    if match := BASED.fullmatch(gold):
        digits, base = match["digits"], int(match["base"])
        yield from _boxed("base index changed", *(f"{digits}_{{{other}}}" for other in (base - 1, base + 1, 10, 16)))
        yield from _boxed("base index changed", f"{digits}_{base + 1 if base < 9 else base - 1}")
    if match := WITH_UNIT.fullmatch(gold):
        yield from _boxed("other unit", rf"{match['number']} \text{{ kilograms}}")
    if match := WORD.fullmatch(gold):
        yield from _boxed("other text", rf"\text{{{match['word'][::-1]}}}", rf"\text{{not {match['word']}}}", "neither")
    if match := LABEL.fullmatch(gold):
        others = [letter for letter in "ABCDEF" if letter != match["letter"]]
        yield from _boxed("other choice", *(rf"\text{{({letter})}}" for letter in others))
        yield "other choice", f"Final Answer:\nThe correct option is **{others[0]}**, not {match['letter']}."
        yield "other choice", f"Final Answer: {others[1]} because {match['letter']} fails."
    for found in list(re.finditer(r"\^\{?([0-9]+)\}?", gold))[:2]:
        more = f"^{{{int(found[1]) + 1}}}"
        yield from _boxed("exponent changed", gold[: found.start()] + more + gold[found.end() :])
    if (found := LETTERS.search(gold)) and not re.search(r"\\in\b|\\text|\\mbox|\\begin", gold) and found[1] != "i":
        renamed = re.sub(LETTERS, lambda letter: "w" if letter[1] == found[1] else letter[1], gold)
        if not EQUATION.fullmatch(gold) or value(gold.partition("=")[2]) is None:
            yield from _boxed("variable changed", renamed)


def _other_several(gold: str, question: str) -> Iterator[tuple[str, str]]:
    if r"\pm" in gold:
        yield from _boxed("one sign dropped", gold.replace(r"\pm", "+"), gold.replace(r"\pm", "-"))
    if found := intervals(gold, question):
        toggled = {"(": "[", "[": "(", ")": "]", "]": ")"}
        for index, (opening, start, end, closing) in enumerate(found):
            changes = []
            if "infty" not in start:
                changes.append((toggled[opening], start, end, closing))
            if "infty" not in end:
                changes.append((opening, start, end, toggled[closing]))
            for change in changes:
                pieces = [*found[:index], change, *found[index + 1 :]]
                yield from _boxed("( against [", r" \cup ".join(_as_interval(*piece) for piece in pieces))
                yield from _boxed("( against [", r" \text{ or } ".join(_inequality(*piece) for piece in pieces))
        rest = gaps(found)
        yield from _boxed("complement", r" \cup ".join(rest))
        for index, gap in enumerate(rest):
            place = 0 if "infty" not in gap.partition(",")[0] else len(gap) - 1
            if gap.startswith("\\"):
                changed = [*rest[:index], *rest[index + 1 :]]
            else:
                changed = [*rest[:index], gap[:place] + toggled[gap[place]] + gap[place + 1 :], *rest[index + 1 :]]
            if changed:
                yield from _boxed("complement", r"\mathbb{R} \setminus (" + r" \cup ".join(changed) + ")")
        if len(found) == 1 and "infty" not in gold:
            yield from _boxed("set against tuple", rf"\{{{found[0][1]}, {found[0][2]}\}}")
    elif found := parts(gold):
        opening, elements, closing = found
        inside = ", ".join(elements)
        if opening == "(":
            yield from _boxed("set against tuple", rf"\{{{inside}\}}", rf"\left\{{{inside}\right\}}")
            yield from _boxed("tuple in another order", f"({', '.join(elements[::-1])})")
            yield from _boxed("( against [", f"[{inside}]" if len(elements) == 2 else f"[{inside})")
        elif opening == r"\{":
            yield from _boxed("set against tuple", f"({inside})")
        yield from _boxed(
            "element missing", f"{opening}{', '.join(elements[:-1])}{closing}" if len(elements) > 2 else elements[0]
        )
