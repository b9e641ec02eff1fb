"""Make control characters in untrusted text visible, such as model names and model output."""

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
