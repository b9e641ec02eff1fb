"""Tell whether a text is an evaluation problem, so that nobody calibrates on what is measured."""

import hashlib
import unicodedata
from collections.abc import Iterable

from prunus.evaluation.tasks.problem import Problem


def question_digest(question: str) -> str:
    """16 hex digits of the question without regard to case, blanks, line ends and Unicode forms."""
    plain = " ".join(unicodedata.normalize("NFKC", question).casefold().split())
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def overlap(questions: Iterable[str], problems: Iterable[Problem]) -> list[str]:
    """Ids of the problems whose question is among the given ones, in the order of problems."""
    asked = {question_digest(question) for question in questions}
    return [problem.id for problem in problems if question_digest(problem.question) in asked]
