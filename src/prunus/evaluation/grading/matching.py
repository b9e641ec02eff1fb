r"""Decide whether two parsed answers mean the same: their structure by rules, their formulas by math-verify.

Sets and lists match in any order, tuples only in the same order; a set is not a tuple; the brackets of intervals count.
A decimal equals a fraction only if it terminates, or if it is marked as rounded and correctly rounded to at least
MIN_DIGITS digits. 35 % equals 0.35, and equals 35 only if the question asks for percent. The base of a number is part
of it, and may be omitted only if the question names it.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from prunus.evaluation.grading.intervals import Node, cuts
from prunus.evaluation.grading.reading import BASES, seconds

MAX_UNORDERED = 16
MIN_DIGITS = 3
Equal = Callable[[str, str], bool]
_PERCENT_OF = re.compile(r"[0-9}$][ ~\\-]*$")
_PERCENT = re.compile(r"\bper[- ]?cent(?:age)?\b|(?<=what )\\?%|(?<=as a )\\?%", re.IGNORECASE)
_BASE = re.compile(r"\bbase[\s$~{-]{0,4}([0-9]{1,2}|[a-z]+)", re.IGNORECASE)
_DIGITS = re.compile(r"-?[0-9]*\.[0-9]+")
_CLOCK = re.compile(r"(?P<hour>[01]?[0-9]|2[0-3]):(?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9]))?")
_INFORMAL = re.compile(r"[^a-z]")


def answer_formats(question: str) -> tuple[str, ...]:
    """The forms of answer that a question asks for ("percent", "base 8"). "15 percent of" asks for none."""
    forms = ["percent" for at in _PERCENT.finditer(question) if not _PERCENT_OF.search(question[: at.start()][-8:])]
    for name in _BASE.findall(question):
        base = int(name) if name.isdigit() else BASES.get(name.lower())
        forms += [f"base {base}"] if base else []
    return tuple(sorted(set(forms)))


def same(gold: Node, answer: Node, equal: Equal, formats: Sequence[str] | None) -> bool:
    """Whether answer means the same as gold.

    equal: called with two formulas, returns whether they are equal. formats: what `answer_formats` found in the
    question, None where the question is not known. No comparison is skipped because another failed, so that a caller
    can collect them all.
    """
    if answer.rounded or gold.rounded:
        return _rounded(gold, answer, equal, formats)
    if gold.percent != answer.percent:
        return _one_percent(gold, answer, equal, formats)
    if gold.units and answer.units and not gold.units & answer.units:
        return False
    if "equation" in (gold.kind, answer.kind):
        return _equations(gold, answer, equal, formats)
    if "based" in (gold.kind, answer.kind):
        return _based(gold, answer, formats)
    if "words" in (gold.kind, answer.kind):
        return _INFORMAL.sub("", gold.text.lower()) == _INFORMAL.sub("", answer.text.lower()) != ""
    if "time" in (gold.kind, answer.kind):
        return _times(gold, answer, equal)
    if not gold.parts and not answer.parts:
        return _leaves(gold, answer, equal)
    return _structures(gold, answer, equal, formats)


def _structures(gold: Node, answer: Node, equal: Equal, formats: Sequence[str] | None) -> bool:
    kinds = (gold.kind, answer.kind)
    if "interval" in kinds or "union" in kinds:
        gold_cuts, answer_cuts = cuts(gold), cuts(answer)
        if gold_cuts is not None and answer_cuts is not None:
            return gold_cuts == answer_cuts
    if "set" in kinds and not (gold.parts and answer.parts):
        group, other = (gold, answer) if gold.kind == "set" else (answer, gold)
        if len(group.parts) != 1:
            return False
        return (
            same(group.parts[0], other, equal, formats)
            if group is gold
            else same(other, group.parts[0], equal, formats)
        )
    if len(gold.parts) != len(answer.parts):
        return False
    unordered = kinds[0] in ("list", "set") and kinds[1] in ("list", "set")
    unions = kinds[0] in ("union", "list") and kinds[1] in ("union", "list")
    if unions and not unordered:
        unordered = all(part.kind in ("interval", "tuple", "set") for part in gold.parts + answer.parts)
    if unordered:
        return _matched(gold.parts, answer.parts, equal, formats)
    ordered = (
        kinds in (("tuple", "tuple"), ("tuple", "list"))
        or (gold.kind == answer.kind in ("interval", "matrix") and gold.text == answer.text)
        or (set(kinds) == {"interval", "tuple"} and "()" in (gold.text, answer.text))
    )
    return ordered and _in_order(gold.parts, answer.parts, equal, formats)


def _in_order(gold: Sequence[Node], answer: Sequence[Node], equal: Equal, formats: Sequence[str] | None) -> bool:
    matches = [same(expected, given, equal, formats) for expected, given in zip(gold, answer, strict=True)]
    return all(matches)


def _matched(gold: Sequence[Node], answer: Sequence[Node], equal: Equal, formats: Sequence[str] | None) -> bool:
    """Whether the elements match in some order. Equality is transitive, so the first match can be taken.

    Plain numbers are sorted instead. More than MAX_UNORDERED formulas are compared in their written order only.
    """
    gold_values, answer_values = _plain_values(gold), _plain_values(answer)
    if len(gold_values) == len(gold) and len(answer_values) == len(answer):
        return sorted(gold_values) == sorted(answer_values)
    if len(gold) > MAX_UNORDERED:
        return _in_order(gold, answer, equal, formats)
    fits = [[same(expected, given, equal, formats) for given in answer] for expected in gold]
    free = set(range(len(answer)))
    for row in fits:
        partner = next((index for index in sorted(free) if row[index]), None)
        if partner is None:
            return False
        free.discard(partner)
    return True


def _plain_values(parts: Sequence[Node]) -> list[Fraction]:
    """The values of those parts that are plain numbers."""
    plain = (part for part in parts if not (part.percent or part.rounded or part.units))
    return [part.value for part in plain if part.value is not None]


def _leaves(gold: Node, answer: Node, equal: Equal) -> bool:
    if gold.value is not None and answer.value is not None:
        return gold.value == answer.value
    if gold.text == answer.text:
        return gold.text != ""
    return bool(gold.text and answer.text) and _equal_formulas(gold, answer, equal)


def _equal_formulas(gold: Node, answer: Node, equal: Equal) -> bool:
    """Whether two formulas or equations have equally many primes and `equal` holds; math-verify reads x' as x."""
    return gold.text.count("'") == answer.text.count("'") and equal(gold.text, answer.text)


def _times(gold: Node, answer: Node, equal: Equal) -> bool:
    """Whether times of day are the same. Without a.m. and p.m. an answer is read on a 24-hour clock.

    A gold answer without them may stand for both halves of the day, if its hour can.
    """
    if gold.kind == answer.kind:
        return gold.text == answer.text
    timed, bare = (gold, answer) if gold.kind == "time" else (answer, gold)
    if clock := _CLOCK.fullmatch(bare.text):
        hour, minute, second = clock.groups()
        hours = [int(hour)]
        if bare is gold and 1 <= hours[0] <= 12 and not hour.startswith("0"):
            hours = [hours[0] % 12, hours[0] % 12 + 12]
        return timed.text in [str(seconds(hour, minute, second)) for hour in hours]
    if ":" in timed.name or bare.kind != "formula":
        return False
    return equal(timed.name, bare.text) if timed is gold else equal(bare.text, timed.name)  # 2am may be a product


def _equations(gold: Node, answer: Node, equal: Equal, formats: Sequence[str] | None) -> bool:
    if answer.kind != "equation":  # x = 5 matches 5, but x + y = 0 does not match 0
        return bool(gold.name) and same(gold.parts[0], answer, equal, formats)
    if gold.kind != "equation":
        return bool(answer.parts) and same(gold, answer.parts[0], equal, formats)
    if gold.name and gold.name == answer.name:
        return same(gold.parts[0], answer.parts[0], equal, formats)
    return gold.text == answer.text or _equal_formulas(gold, answer, equal)


def _based(gold: Node, answer: Node, formats: Sequence[str] | None) -> bool:
    if gold.kind == answer.kind:
        return (gold.text, gold.name) == (answer.text, answer.name)
    based, bare = (gold, answer) if gold.kind == "based" else (answer, gold)
    if bare.kind != "number" or bare.text != based.text:
        return False
    return based.name == "10" or (based is gold and (formats is None or f"base {gold.name}" in formats))


def _one_percent(gold: Node, answer: Node, equal: Equal, formats: Sequence[str] | None) -> bool:
    """Whether the values are equal where exactly one of them is in percent."""
    share, bare = (gold, answer) if gold.percent else (answer, gold)
    if share.kind not in ("number", "formula") or bare.kind not in ("number", "formula"):
        return False
    if share.value is not None and bare.value is not None:
        matches = share.value / 100 == bare.value
        wished = share.value == bare.value
    else:
        matches = equal(bare.text, rf"\frac{{{share.text}}}{{100}}")
        wished = bare.text == share.text or equal(bare.text, share.text)
    return matches or (wished and (formats is None or "percent" in formats))


def _rounded(gold: Node, answer: Node, equal: Equal, formats: Sequence[str] | None) -> bool:
    """Whether a rounded answer matches: "about 0.333" is 1/3, "about 0.3" and "about 0.334" are not.

    Two rounded answers must be the same number.
    """
    if gold.rounded and answer.rounded:
        return gold.value is not None and gold.value == answer.value
    rounded, exact = (gold, answer) if gold.rounded else (answer, gold)
    if rounded.value is None or rounded.percent != exact.percent:
        return False
    if exact.value == rounded.value:
        return True
    written = rounded.text
    if not _DIGITS.fullmatch(written) or len(written.replace(".", "").lstrip("-0")) < MIN_DIGITS:
        return False
    places = len(written.partition(".")[2])
    if exact.value is not None:
        return abs(exact.value - rounded.value) * 2 * 10**places <= 1
    return exact.kind == "formula" and equal(exact.text, rf"\approx {written}")
