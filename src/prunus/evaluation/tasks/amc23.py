"""AMC 12 of 2023, the problems with whole-number answers. Texts are the MAA's and stay on the hub."""

from prunus.evaluation.tasks.contest import load_contest
from prunus.evaluation.tasks.problem import Problem, Task


def load() -> list[Problem]:
    """The 40 problems; the answers of copies that write 27.0 are read as 27."""
    return load_contest("amc23", "math-ai/amc23", "test", 40)


TASKS = (Task("amc23", "math-ai/amc23, test", "integer", "40 problems of AMC 12, 2023", load, 40),)
