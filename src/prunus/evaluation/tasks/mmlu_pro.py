"""MMLU-Pro (Wang et al. 2024, arXiv:2406.01574): knowledge and reasoning, mostly ten options. MIT licence."""

from prunus.errors import PrunusError
from prunus.evaluation.tasks.hub import hub_rows, row_field
from prunus.evaluation.tasks.options import choice_problem, letter_index, mixed
from prunus.evaluation.tasks.problem import Problem, Task

COUNT = 12032


def load() -> list[Problem]:
    """The 12032 test questions, mixed. Options that only fill up to ten (`N/A`, in copies) are left out."""
    problems = []
    for row in hub_rows("mmlu_pro", "TIGER-Lab/MMLU-Pro", None, "test", COUNT):
        options = list(row.get("options") or [])
        while options and options[-1] == "N/A":
            options.pop()
        gold = letter_index(row_field("mmlu_pro", row, "answer"))
        if row.get("answer_index", gold) != gold:
            record = row_field("mmlu_pro", row, "question_id")
            raise PrunusError(f"task 'mmlu_pro': the two answers of '{record}' differ; the set is damaged")
        problems.append(choice_problem("mmlu_pro", row, "question_id", options, gold))
    return mixed(problems)


TASKS = (
    Task(
        "mmlu_pro",
        "TIGER-Lab/MMLU-Pro, test",
        "choice",
        f"{COUNT} questions of 14 subjects, up to 10 options",
        load,
        COUNT,
    ),
)
