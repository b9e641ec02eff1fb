"""Make control characters in untrusted text visible, such as model names and model output; shares as text."""

import math
import re

# Characters that are invisible, reorder a line or break a parser: C0 and C1 (except tab and line feed), soft line ends,
# bidi marks, embeddings and isolates, invisible operators and tags, byte order mark, lone surrogates, noncharacters.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
)
MINUS, DASH, THIN, NBSP = "\u2212", "\u2013", "\u202f", "\u00a0"
LABEL_LIMIT = 80  # characters of a name, since manifests are untrusted text too


def visible(text: str) -> str:
    """text with every control character replaced by a visible symbol: ␀ for NUL, ⟦U+202E⟧ for a bidi override."""

    def show(match: re.Match[str]) -> str:
        code = ord(match.group())
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟦U+{code:04X}⟧"

    return _CONTROL.sub(show, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int = LABEL_LIMIT) -> str:
    """text made visible on one line, cut to limit characters."""
    text = re.sub(r"[ \t\n]+", " ", visible(text)).strip()
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def percent(share: float | None) -> str:
    """A share as percent with one decimal, signed only below zero: 0.9321 -> 93.2, -0.0312 -> −3.1."""
    return points(share).removeprefix("+")


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points, signed: -0.0312 -> −3.1."""
    if difference is None or not math.isfinite(difference):
        return DASH
    return signed(100 * difference)


def signed(value: float) -> str:
    """A number with one decimal and a typographic sign; no sign if it rounds to zero."""
    text = f"{abs(value):.1f}"
    return text if float(text) == 0 else f"{MINUS if value < 0 else '+'}{text}"
