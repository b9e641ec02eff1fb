"""Contests: AIME 2024 to 2026 and AMC 12 of 2023 with whole-number answers, HMMT with numbers and formulas in LaTeX.

Texts of AIME and AMC are the MAA's, and stay on the hub. HMMT, the Harvard-MIT tournament, is as MathArena publishes it
(CC BY-NC-SA 4.0); those of the February contests are harder.
"""

from functools import partial

from prunus.errors import PrunusError
from prunus.evaluation.tasks.local import gold_integer
from prunus.evaluation.tasks.problem import Problem, Task, hub_rows, row_field


def load_contest(task: str, repo: str, split: str, count: int, highest: int | None = None) -> list[Problem]:
    """The problems in the order of the data set, with ids task/00, task/01, ...

    Answers of copies that write 27.0 are read as 27. highest: largest possible answer (AIME: 999). Raises PrunusError
    for a gold answer outside 0..highest.
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


def load_hmmt(task: str, repo: str, count: int) -> list[Problem]:
    """The problems of one contest, with ids task/00, task/01, ...; answers in LaTeX."""
    return [
        Problem(f"{task}/{index:02d}", task, row_field(task, row, "problem"), row_field(task, row, "answer"), "math")
        for index, row in enumerate(hub_rows(task, repo, None, "train", count))
    ]


def _whole_numbers(name: str, repo: str, split: str, count: int, of: str, highest: int | None = None) -> Task:
    load = partial(load_contest, name, repo, split, count, highest)
    return Task(name, f"{repo}, {split}", "integer", f"{count} problems of {of}", load, count)


def _hmmt(name: str, repo: str, count: int, contest: str) -> Task:
    load = partial(load_hmmt, name, repo, count)
    return Task(name, f"{repo}, train", "math", f"{count} problems of HMMT {contest}", load, count)


TASKS = (
    _whole_numbers("aime24", "HuggingFaceH4/aime_2024", "train", 30, "AIME 2024", highest=999),
    _whole_numbers("aime25", "math-ai/aime25", "test", 30, "AIME 2025", highest=999),
    _whole_numbers("aime26", "MathArena/aime_2026", "train", 30, "AIME 2026", highest=999),
    _whole_numbers("amc23", "math-ai/amc23", "test", 40, "AMC 12, 2023"),
    _hmmt("hmmt_feb25", "MathArena/hmmt_feb_2025", 30, "February 2025"),
    _hmmt("hmmt_nov25", "MathArena/hmmt_nov_2025", 30, "November 2025"),
    _hmmt("hmmt_feb26", "MathArena/hmmt_feb_2026", 33, "February 2026"),
)
