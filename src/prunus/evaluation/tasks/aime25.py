"""AIME 2025, both papers: whole-number answers from 0 to 999. Texts are the MAA's and stay on the hub."""

from prunus.evaluation.tasks.contest import load_contest
from prunus.evaluation.tasks.problem import Problem, Task


def load() -> list[Problem]:
    """The 30 problems."""
    return load_contest("aime25", "math-ai/aime25", "test", 30, highest=999)


TASKS = (Task("aime25", "math-ai/aime25, test", "integer", "30 problems of AIME 2025", load, 30),)
