"""Text of others, such as names of models, their output and a server's messages, made safe to look at."""

import json
import re

# Characters that are invisible, reorder a line, break a parser or are commands to a terminal: C0 and C1 (except tab and
# line feed), soft line ends, bidi marks, embeddings and isolates, invisible operators and tags, byte order mark, lone
# surrogates, noncharacters.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
)
LONGEST = 2000  # characters of a message


def visible(text: str) -> str:
    """text with every control character replaced by a visible symbol: ␀ for NUL, ⟦U+202E⟧ for a bidi override."""

    def show(match: re.Match[str]) -> str:
        code = ord(match.group())
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟦U+{code:04X}⟧"

    return _CONTROL.sub(show, text.replace("\r\n", "\n"))


def visible_json(text: str) -> str:
    """The text of a JSON value with every control character escaped, which leaves the value as it is."""
    return _CONTROL.sub(lambda match: json.dumps(match.group())[1:-1], text)


def shortened(text: str) -> str:
    """text made visible; if it is longer than LONGEST, only its start and its end, where messages say what to do."""
    head = LONGEST * 2 // 3
    cut = text if len(text) <= LONGEST else f"{text[:head]} … {text[head - LONGEST :]}"
    return visible(cut)
