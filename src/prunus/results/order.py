"""The order in which `find` takes problems: random, but it follows from a seed and from each problem's id alone.

So any part of the problems can be put in order without knowing the others, and bounds that are valid at any time can be
computed again from the rows of a store. Problems that belong together count as one, by the id of the first of them.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

Round = tuple[tuple[str, str], ...]  # (task, problem id) of the problems that are taken together
First = Mapping[str, str]  # {problem id: first problem of its group} of problems that are neither first nor alone


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


def whole_groups(tasks: Mapping[str, Iterable[str]], seed: int, first_of: First) -> list[Round]:
    """The rounds of these tasks: groups of problems are taken in the order of `interleaved`, each as a whole.

    Without groups of several problems, the rounds are those of the problems.
    """
    members: dict[tuple[str, str], list[str]] = {}
    for task, problems in tasks.items():
        for problem in sorted(problems):
            members.setdefault((task, first_of.get(problem, problem)), []).append(problem)
    groups = {task: [group for of, group in members if of == task] for task in tasks}
    return [
        tuple((task, problem) for task, group in one for problem in members[task, group])
        for one in rounds(interleaved(groups, seed))
    ]


def rounds(order: Sequence[tuple[str, str]]) -> list[Round]:
    """The problems in this order (of `interleaved`) as rounds, which hold the next problems of every task.

    There are as many rounds as the smallest task has problems; those of larger tasks are spread evenly over them.
    """
    by_task: dict[str, list[str]] = {}
    for task, problem in order:
        by_task.setdefault(task, []).append(problem)
    total = min(map(len, by_task.values()), default=0)
    return [
        tuple(
            (task, problem)
            for task, problems in by_task.items()
            for problem in problems[r * len(problems) // total : (r + 1) * len(problems) // total]
        )
        for r in range(total)
    ]
