"""HMMT, the Harvard-MIT tournament, as MathArena publishes it (CC BY-NC-SA 4.0): answers are numbers and formulas.

Those of the February contests are harder; AIME's have whole numbers only.
"""

from functools import partial

from prunus.evaluation.tasks.hub import hub_rows, row_field
from prunus.evaluation.tasks.problem import Problem, Task

# (task, data set, problems, contest)
CONTESTS = (
    ("hmmt_feb25", "MathArena/hmmt_feb_2025", 30, "February 2025"),
    ("hmmt_nov25", "MathArena/hmmt_nov_2025", 30, "November 2025"),
    ("hmmt_feb26", "MathArena/hmmt_feb_2026", 33, "February 2026"),
)


def load(task: str, repo: str, count: int) -> list[Problem]:
    """The problems of one contest, with ids task/00, task/01, ...; answers in LaTeX."""
    return [
        Problem(f"{task}/{index:02d}", task, row_field(task, row, "problem"), row_field(task, row, "answer"), "math")
        for index, row in enumerate(hub_rows(task, repo, None, "train", count))
    ]


TASKS = tuple(
    Task(task, f"{repo}, train", "math", f"{count} problems of HMMT {contest}", partial(load, task, repo, count), count)
    for task, repo, count, contest in CONTESTS
)
