"""Find the answer in a text: in the last box, else after "answer is", else (weakly) in its conclusion.

Every search is one pass over the last MAX_TEXT characters, so that a text of a megabyte takes only milliseconds.
"""

import re
from typing import Literal, NamedTuple

MAX_TEXT = 200_000
# A longer box counts as malformed, so that normalisation and math-verify never see a longer answer.
MAX_ANSWER = 1000

# A box with braces, or one without them before a number or command: \boxed 12. "Put it into \boxed and stop" has none.
_BOX = re.compile(
    r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*(?:(\{)"
    r"|(?=[0-9(\[]|[-+.]\s?[0-9\\.]|\\(?!boxed|fbox|framebox)[A-Za-z{$]|[A-Za-z]\s?(?:[-+=^_$]|\\in(?![A-Za-z]))))"
)
_UNBRACED_END = re.compile(r"(?<!\\)\$|\\[)\]]|\n")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(
    r"\b(?:answer|(?:correct|right|best|final)[ \t]{1,3}(?:option|choice|result|value))[*_]{0,2}"
    r"(?:[ \t]{1,3}(?:is|equals)\b|[ \t]{0,3}[:=])"
    r"|\bfinal[ \t]{1,3}answer[*_ \t]{0,6}(?=\r?\n)",  # a heading
    re.IGNORECASE,
)
_REASON = re.compile(r",?\s\(?(?:because|since|which|as)\s|[.;](?=\s)|,\s(?:as|so|not)\s", re.IGNORECASE)
# The conclusion of a text without a box and without "answer": "Therefore the result equals 12."
_CONCLUSION = re.compile(
    r"(?:\b(?:therefore|thus|hence|so|consequently|in conclusion)\b[^\n=]{0,80}?|^[*_ ]{0,4}the )"
    r"\b(?:result|value|total|sum|solution|number)\b[^\n=.]{0,40}?(?:\b(?:is|equals)\b|=)",
    re.IGNORECASE,
)
# The words before the value: "The number of ways is 12" is read as 12.
_SENTENCE = re.compile(r"(?:the|this|there|it|we)\s.{0,200}\s(?:is|are|equals|get|obtain|=)\s+(\S.*)", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9][0-9,]*(?:\.[0-9]+)?")
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
_MATHS = re.compile(r"(?<!\\)\$\$?((?:\\\$|[^$])+?)(?<!\\)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")


class Extracted(NamedTuple):
    """An answer and how it was found (in a box, a phrase or a conclusion), or why there is none."""

    how: Literal["box", "phrase", "conclusion", "malformed", "nothing"]
    text: str = ""


def find_answer(text: str) -> Extracted:
    """The last box, else what follows the last "answer is" or "answer:", else the last line's conclusion.

    A last box that never closes, or holds over MAX_ANSWER characters, is malformed; earlier boxes are not considered.
    An empty box is a box without an answer.
    """
    text = text[-MAX_TEXT:]
    opening = _last_match(_BOX, text)
    if opening is None:
        if phrase := _after(_last_match(_PHRASE, text), text):
            return Extracted("phrase", phrase)
        last_line = text.rstrip().rpartition("\n")[2][-MAX_ANSWER:]
        conclusion = _after(_last_match(_CONCLUSION, last_line), last_line)
        return Extracted("conclusion", conclusion) if conclusion else Extracted("nothing")
    if not opening[1]:
        end = _UNBRACED_END.search(text, opening.end())
        content = text[opening.end() : end.start() if end else len(text)]
        return Extracted("box", first_clause(content)) if len(content) <= MAX_ANSWER else Extracted("malformed")
    content = balanced_content(text, opening.end())
    if content is None or len(content) > MAX_ANSWER:
        return Extracted("malformed")
    return Extracted("box", content.strip())


def balanced_content(text: str, start: int) -> str | None:
    r"""The text from start, just after an opening brace, to its closing brace; None if it is never closed."""
    depth = 1
    for token in _BRACE.finditer(text, start):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                return text[start : token.start()]
    return None


def _after(phrase: re.Match[str] | None, text: str) -> str:
    """The text after a phrase, undecorated: the rest of its line, or the next line that is not blank."""
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
    """The answer in a phrase without the reason after it: its only formula, else its first clause.

    What leads to a number is dropped, too: `the number is 12` gives `12`.
    """
    formulas = _MATHS.findall(phrase)
    if len(formulas) == 1:
        return "".join(formulas[0]).strip()
    clause = _REASON.split(phrase, maxsplit=1)[0].strip(" \t*_`")
    sentence = _SENTENCE.fullmatch(clause)
    return sentence[1].strip(" \t*_`") if sentence else clause


def last_integer(text: str) -> str | None:
    """The last whole number of the text as digits with a sign; 18.00 and 1,234 count, 2.5 does not."""
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
