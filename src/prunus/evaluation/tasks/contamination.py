"""Tell whether a text is an evaluation problem, so that nobody calibrates on what is measured."""

from collections.abc import Iterable

from prunus.contamination import question_digest
from prunus.evaluation.tasks.problem import Problem

__all__ = ["overlap", "question_digest"]


def overlap(questions: Iterable[str], problems: Iterable[Problem]) -> list[str]:
    """Ids of the problems whose question is among the given ones, in the order of problems."""
    asked = {question_digest(question) for question in questions}
    return [problem.id for problem in problems if question_digest(problem.question) in asked]
