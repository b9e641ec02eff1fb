"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): grade-school word problems, whole-number answers. MIT licence."""

from prunus.evaluation.tasks.hub import hub_rows, row_field
from prunus.evaluation.tasks.local import gold_integer
from prunus.evaluation.tasks.problem import Problem, Task


def load() -> list[Problem]:
    """Return the 1319 test problems; the gold answer is the number after `####`, without thousands commas."""
    problems = []
    for index, row in enumerate(hub_rows("gsm8k", "openai/gsm8k", "main", "test", 1319)):
        question = row_field("gsm8k", row, "question", "problem")
        answer = gold_integer(row_field("gsm8k", row, "answer").rpartition("####")[2].replace(",", "").strip())
        problems.append(Problem(f"gsm8k/{index:04d}", "gsm8k", question, answer, "integer"))
    return problems


TASKS = (Task("gsm8k", "openai/gsm8k, main, test", "integer", "1319 grade-school word problems", load),)
