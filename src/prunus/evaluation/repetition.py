"""Measure how much of a chain's end repeats itself, as chains of pruned models often do."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import islice

import numpy as np

TAIL = 200  # number of pieces at the end that are examined
GRAM = 20
TIMES = 4
# A piece is a word, eight letters of a longer word (Chinese and loops of letters have no spaces), or one sign.
PIECE = re.compile(r"\w{1,8}|[^\w\s]")
CHARACTERS = 20_000  # number of characters at the end that are read, which bounds the time


def repetition_rate(text: str) -> float:
    """Share of the last 200 words and signs of a text that belong to a run of 20 that occurs there at least four times.

    0 means that the chain does not loop, 1 that its whole end is a loop. A text of fewer than 23 words cannot loop.
    Only the last 20,000 characters are read, which bounds the time.
    """
    pieces = PIECE.findall(text[-CHARACTERS:])
    return repeated_share(pieces[-TAIL:])


def repeated_share(tokens: Sequence[Hashable], gram: int = GRAM, times: int = TIMES) -> float:
    """Share of the tokens that belong to a run of `gram` that occurs at least `times` times; runs may overlap."""
    runs = list(zip(*(islice(tokens, start, None) for start in range(gram)), strict=False))
    counts = Counter(runs)
    covered = np.zeros(len(tokens), dtype=bool)
    for start, run in enumerate(runs):
        if counts[run] >= times:
            covered[start : start + gram] = True
    return float(covered.mean()) if len(tokens) else 0.0
