"""Random windows of documents, as sampled by Wanda's code and its successors, and how much the windows overlap."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

# Below this share of distinct tokens a warning is given. Random windows of WikiText-2 (128 x 2048) have about 95 %.
DISTINCT = 0.9


class Window(NamedTuple):
    """Consecutive token ids of a document: the document's number, the index of the first id, and the ids."""

    document: int
    start: int
    ids: list[int]


def random_window(document: int, ids: list[int], seqlen: int, rng: random.Random) -> Window:
    """seqlen consecutive ids from a random start. The last possible start is never sampled unless it is the only one.

    This is as in Wanda's code.
    """
    start = rng.randint(0, max(0, len(ids) - seqlen - 1))
    return Window(document, start, ids[start : start + seqlen])


def distinct_share(windows: Sequence[Window]) -> float:
    """The share of the windows' tokens that are distinct positions of their documents."""
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


def overlap_warnings(name: str, windows: Sequence[Window], short: tuple[int, int, int] | None = None) -> list[str]:
    """A warning if windows overlap so much that too few of their tokens are distinct.

    short: where some documents are too short for a window, the numbers of those that are not and of all, and the size
    of a window.
    """
    share = distinct_share(windows)
    if share >= DISTINCT:
        return []
    if short is not None:
        long, count, size = short
        return [
            f"{name}: only {long} of {count} documents are longer than {size} tokens, and only these are used; "
            f"{len(windows)} windows of them overlap, and only {share:.0%} of their tokens are distinct; lower "
            "--seqlen or --samples, or give longer documents"
        ]
    documents = len({window.document for window in windows})
    source = "one document" if documents == 1 else f"{documents} documents"
    return [
        f"{name}: {len(windows)} windows of {source} overlap, and only {share:.0%} of their tokens are distinct; "
        "give more text, or lower --samples"
    ]
