"""SuperGPQA (M-A-P 2025, arXiv:2502.14739): 285 graduate disciplines, mostly ten options. ODC-BY licence."""

from prunus.evaluation.tasks.hub import hub_rows, row_field
from prunus.evaluation.tasks.options import choice_problem, letter_index, mixed
from prunus.evaluation.tasks.problem import Problem, Task

COUNT = 26529


def load() -> list[Problem]:
    """All questions, mixed; the data set has only a split named train."""
    problems = []
    for row in hub_rows("supergpqa", "m-a-p/SuperGPQA", None, "train", COUNT):
        gold = letter_index(row_field("supergpqa", row, "answer_letter"))
        problems.append(choice_problem("supergpqa", row, "uuid", row.get("options") or [], gold))
    return mixed(problems)


TASKS = (
    Task("supergpqa", "m-a-p/SuperGPQA, train", "choice", f"{COUNT} graduate questions, up to 10 options", load, COUNT),
)
