"""The loader that the contests with whole-number answers share: AIME 2024 to 2026, AMC 2023."""

from prunus.errors import PrunusError
from prunus.evaluation.tasks.hub import hub_rows, row_field
from prunus.evaluation.tasks.local import gold_integer
from prunus.evaluation.tasks.problem import Problem


def load_contest(task: str, repo: str, split: str, count: int, highest: int | None = None) -> list[Problem]:
    """The problems in the order of the data set, with ids task/00, task/01, ...

    highest: largest possible answer (AIME: 999). Raises PrunusError for a gold answer outside 0..highest.
    """
    problems = []
    for index, row in enumerate(hub_rows(task, repo, None, split, count)):
        answer = gold_integer(row_field(task, row, "answer", "Answer"))
        if highest is not None and not 0 <= int(answer) <= highest:
            raise PrunusError(
                f"task '{task}': answer {answer} of row {index} is outside 0 to {highest}; the set is damaged"
            )
        question = row_field(task, row, "problem", "question", "Problem")
        problems.append(Problem(f"{task}/{index:02d}", task, question, answer, "integer"))
    return problems
