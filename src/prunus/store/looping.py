"""Whether a chain loops, as chains of compressed models often do: exactly, or with small differences."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import islice

import numpy as np

COPIES = 4  # how often in a row the end must be repeated
SHORTEST = 60  # characters of all copies together, so that a row of zeros or a short separator is no loop
LONGEST = 2_048  # characters of one copy: 256 tokens of eight characters
REPEATED = 0.5  # share of the end that makes an inexact loop
KEY = 16  # characters at the end that are searched for, to find candidates for the length of a copy
TAIL = 200  # number of pieces at the end that are examined
GRAM = 20
TIMES = 4
# A piece is a word, eight letters of a longer word (Chinese and loops of letters have no spaces), or one sign.
PIECE = re.compile(r"\w{1,8}|[^\w\s]")
CHARACTERS = 20_000  # number of characters at the end that are read, which bounds the time


def ends_in_loop(text: str) -> bool:
    """Whether the end of a text is at least four copies of one string of at most 2,048 characters, one after another.

    The copies must be equal to the letter and have 60 characters or more together: lines that count upwards, or lists
    of different equations, are not loops. The last copy may be incomplete, since a budget cuts anywhere.
    """
    return _period(text.rstrip("\ufffd")) > 0  # a cut within a character leaves a replacement character


def loop_start(text: str) -> int | None:
    """Where in a text that ends in a loop (ends_in_loop) the first of the equal copies begins; None without a loop."""
    kept = text.rstrip("\ufffd")
    if not (period := _period(kept)):
        return None
    start = len(kept) - period
    while start and kept[start - 1] == kept[start - 1 + period]:
        start -= 1
    return start


def _period(text: str) -> int:
    """The number of characters of one of the copies at the end of a text; 0 if it does not end in a loop."""
    tail = text[-COPIES * LONGEST :]
    if len(tail) < SHORTEST:
        return 0
    key, start = tail[-KEY:], len(tail) - KEY
    place = start
    # A string that repeats with a period recurs one period earlier, so only the places of the key need be tried.
    while (place := tail.rfind(key, 0, place + KEY - 1)) >= max(0, start - LONGEST):
        period = start - place
        copied = max(COPIES * period, SHORTEST)
        if copied <= len(tail) and tail[-copied:-period] == tail[period - copied :]:
            return period
    return 0


def loops(thinking: str, text: str, repetition: float | None) -> bool:
    """Whether a chain loops: its thinking or its answer ends in a loop, or at least half of its end is repetition.

    repetition: as stored in a row, which also counts copies with small differences; None if it is not known.
    """
    return ends_in_loop(thinking) or ends_in_loop(text) or (repetition or 0.0) >= REPEATED


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
