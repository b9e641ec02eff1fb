"""Find the answer in a text: the last box, else what follows "answer is", else (weakly) the last whole number.

Every search is one pass over at most MAX_TEXT characters from the end of the text, where answers stand; a model that
rambles for a megabyte costs milliseconds.
"""

import re
from typing import Literal, NamedTuple

MAX_TEXT = 200_000
# A longer box is no answer; nothing that reads answers (normalising, math-verify) ever sees more than this.
MAX_ANSWER = 1000

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(r"\banswer[*_]{0,2}(?:[ \t]{1,3}is\b|[ \t]{0,3}:)", re.IGNORECASE)
_REASON = re.compile(r"\s(?:because|since|which)\s|[.;](?=\s)", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9][0-9,]*(?:\.[0-9]+)?")
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
_MATHS = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")


class Found(NamedTuple):
    """How an answer was found: its text in a `box` or `phrase`, or why there is none."""

    how: Literal["box", "phrase", "malformed", "nothing"]
    text: str = ""


def find_answer(text: str) -> Found:
    """The last box of the text, else the rest of the line after the last "answer is" or "answer:".

    A last box that never closes, or holds over MAX_ANSWER characters, is malformed; earlier boxes are not considered.
    An empty box is a box without an answer.
    """
    text = text[-MAX_TEXT:]
    opening = _last_match(_BOX, text)
    if opening is None:
        phrase = _after_phrase(text)
        return Found("phrase", phrase) if phrase else Found("nothing")
    content = balanced_content(text, opening.end())
    if content is None or len(content) > MAX_ANSWER:
        return Found("malformed")
    return Found("box", content.strip())


def balanced_content(text: str, start: int) -> str | None:
    r"""From start, just behind an opening brace, to its closing one; None if it never comes. `\{`, `\}` are text."""
    depth = 1
    for token in _BRACE.finditer(text, start):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                return text[start : token.start()]
    return None


def _after_phrase(text: str) -> str:
    """Behind the last phrase: the rest of its line, or the next lines where that is blank, without decoration."""
    phrase = _last_match(_PHRASE, text)
    if phrase is None:
        return ""
    for line in text[phrase.end() :][: 4 * MAX_ANSWER].split("\n")[:5]:
        answer = line.strip(" \t\r:*_`").removesuffix(".").strip(" \t*_`")
        if answer.strip("$[]\\"):  # more than the opening of a displayed formula
            return answer[:MAX_ANSWER]
    return ""


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for match in pattern.finditer(text):
        last = match
    return last


def first_clause(phrase: str) -> str:
    """What a phrase says before it gives a reason: its formula if it has exactly one, else up to the clause's end."""
    formulas = _MATHS.findall(phrase)
    if len(formulas) == 1:
        return "".join(formulas[0]).strip()
    return _REASON.split(phrase, maxsplit=1)[0].strip()


def last_integer(text: str) -> str | None:
    """The last whole number of the text as plain digits with sign; 18.00 and 1,234 count, 2.5 does not."""
    text = text[-MAX_TEXT:]
    for number in reversed(list(_NUMBER.finditer(text))):
        whole, _, decimals = number[0].rstrip(",").partition(".")
        if decimals.strip("0") or len(whole) > MAX_ANSWER:
            continue
        is_list = "," in whole and not _THOUSANDS.fullmatch(whole)
        digits = whole.rpartition(",")[2] if is_list else whole.replace(",", "")
        before = "" if is_list else text[max(0, number.start() - 2) : number.start()]
        negative = before[-1:] in ("-", "−") and not (before[:-1].isalnum() or before[:-1] == ")")
        digits = digits.lstrip("0") or "0"
        return f"-{digits}" if negative and digits != "0" else digits
    return None
