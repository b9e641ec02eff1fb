"""AIME 2026, both papers: whole-number answers from 0 to 999. Texts are the MAA's and stay on the hub."""

from prunus.evaluation.tasks.contest import load_contest
from prunus.evaluation.tasks.problem import Problem, Task


def load() -> list[Problem]:
    """The 30 problems."""
    return load_contest("aime26", "MathArena/aime_2026", "train", 30, highest=999)


TASKS = (Task("aime26", "MathArena/aime_2026, train", "integer", "30 problems of AIME 2026", load, 30),)
