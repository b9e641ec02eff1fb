"""Texts for display: untrusted names of manifests and stores on one line, and shares as percentages."""

import math
import re

from prunus.visible import visible as visible

MINUS, DASH, THIN, NBSP = "\u2212", "\u2013", "\u202f", "\u00a0"
LABEL_LIMIT = 80  # characters of a name, since manifests are untrusted text too


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
