"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): grade-school word problems, whole-number answers. MIT licence."""

from functools import partial

from prunus.evaluation.tasks.local import gold_integer
from prunus.evaluation.tasks.problem import Problem, Task, hub_rows, row_field


def load(task: str, split: str, count: int) -> list[Problem]:
    """The problems of a split; the gold answer is the number after `####`, without thousands commas."""
    problems = []
    for index, row in enumerate(hub_rows(task, "openai/gsm8k", "main", split, count)):
        question = row_field(task, row, "question", "problem")
        answer = gold_integer(row_field(task, row, "answer").rpartition("####")[2].replace(",", "").strip())
        problems.append(Problem(f"{task}/{index:04d}", task, question, answer, "integer"))
    return problems


def _task(name: str, split: str, count: int, description: str) -> Task:
    source, loader = f"openai/gsm8k, main, {split}", partial(load, name, split, count)
    return Task(name, source, "integer", f"{count} grade-school word problems{description}", loader, count)


TASKS = (
    _task("gsm8k", "test", 1319, ""),
    _task("gsm8k-train", "train", 7473, " outside gsm8k, for `prunus traces`"),
)
