"""MATH500 (Hendrycks et al. 2021, arXiv:2103.03874; subset of Lightman et al. 2023): LaTeX answers. MIT licence."""

from prunus.evaluation.tasks.problem import Problem, Task, hub_rows, row_field


def load() -> list[Problem]:
    """The 500 competition problems, from seven subjects."""
    problems = []
    for row in hub_rows("math500", "HuggingFaceH4/MATH-500", None, "test", 500):
        record = row_field("math500", row, "unique_id")
        question = row_field("math500", row, "problem", "question")
        problems.append(Problem(f"math500/{record}", "math500", question, row_field("math500", row, "answer"), "math"))
    return problems


TASKS = (
    Task("math500", "HuggingFaceH4/MATH-500, test", "math", "500 competition problems, answers in LaTeX", load, 500),
)
