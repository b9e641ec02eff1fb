"""Random windows of documents, as the Wanda family draws them, and how much they repeat."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

# A warning says so where fewer of the tokens are distinct. Random windows of WikiText-2 (128 x 2048) have some 95 %.
DISTINCT = 0.9


class Window(NamedTuple):
    """Some consecutive ids of a document: its number, and where they begin."""

    document: int
    start: int
    ids: list[int]


def random_window(document: int, ids: list[int], seqlen: int, rng: random.Random) -> Window:
    """seqlen consecutive ids. The last possible start is left out, as in the authors' code, unless it is the only."""
    start = rng.randint(0, max(0, len(ids) - seqlen - 1))
    return Window(document, start, ids[start : start + seqlen])


def distinct_share(windows: Sequence[Window]) -> float:
    """Of the tokens of all windows, how many are different places of their documents."""
    places: dict[int, list[Window]] = defaultdict(list)
    for window in windows:
        places[window.document].append(window)
    distinct = 0
    for row in places.values():
        end = 0
        for window in sorted(row, key=lambda window: window.start):
            distinct += max(0, window.start + len(window.ids) - max(end, window.start))
            end = max(end, window.start + len(window.ids))
    return distinct / max(1, sum(len(window.ids) for window in windows))


def overlap_warnings(name: str, windows: Sequence[Window]) -> list[str]:
    """A warning, if any, that windows show the same tokens again."""
    share = distinct_share(windows)
    if share >= DISTINCT:
        return []
    documents = len({window.document for window in windows})
    source = "one document" if documents == 1 else f"{documents} documents"
    return [
        f"{name}: {len(windows)} windows of {source} overlap, and only {share:.0%} of their tokens are distinct; "
        "give more text, or lower --samples"
    ]
