"""How much of a chain's end goes round in circles, as pruned models do."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import islice

import numpy as np

TAIL = 200  # tokens at the end that are looked at
GRAM = 20
TIMES = 4
# A word, or eight letters of a longer one (Chinese has no spaces, and loops of letters have none either), or one sign.
PIECE = re.compile(r"\w{1,8}|[^\w\s]")
CHARACTERS = 20_000  # of the text's end; keeps the time bounded whatever the text is


def repetition_rate(text: str) -> float:
    """Share of the last 200 words and signs of a text that lie in a run of 20 which occurs there four times or more.

    0: no run does, so the chain does not loop; 1: it is all loop. Fewer than 23 words cannot loop. Time is bounded:
    only the last 20,000 characters are read.
    """
    pieces = PIECE.findall(text[-CHARACTERS:])
    return repeated_share(pieces[-TAIL:])


def repeated_share(tokens: Sequence[Hashable], gram: int = GRAM, times: int = TIMES) -> float:
    """Share of the tokens that lie in a run of `gram` which occurs at least `times` times; runs may overlap."""
    runs = list(zip(*(islice(tokens, start, None) for start in range(gram)), strict=False))
    counts = Counter(runs)
    covered = np.zeros(len(tokens), dtype=bool)
    for start, run in enumerate(runs):
        if counts[run] >= times:
            covered[start : start + gram] = True
    return float(covered.mean()) if len(tokens) else 0.0
