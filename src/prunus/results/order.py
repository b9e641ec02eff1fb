"""The order in which `find` takes problems: random, but it follows from a seed and from each problem's id alone.

So any part of the problems can be put in order without knowing the others, and bounds that are valid at any time can be
computed again from the rows of a store.
"""

import hashlib
from collections.abc import Iterable, Mapping


def seeded_order(problems: Iterable[str], seed: int) -> list[str]:
    """The problem ids in the order of hashes of seed and id."""
    return sorted(problems, key=lambda problem: hashlib.sha256(f"{seed}\t{problem}".encode()).digest())


def interleaved(tasks: Mapping[str, Iterable[str]], seed: int) -> list[tuple[str, str]]:
    """(task, problem id) in the order in which problems are taken, of which every part has the same share of each task.

    tasks: the problem ids of each.
    """
    placed = []
    for number, (task, problems) in enumerate(tasks.items()):
        order = seeded_order(problems, seed)
        placed += [((place + 0.5) / len(order), number, task, problem) for place, problem in enumerate(order)]
    return [(task, problem) for _, _, task, problem in sorted(placed)]
