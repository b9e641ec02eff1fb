"""Mathematics: GSM8K, MATH500 and contests, with whole numbers, numbers or formulas in LaTeX as answers."""

from functools import partial

from prunus.errors import PrunusError
from prunus.evaluation.tasks.problem import Problem, Task, gold_integer, hub_rows, row_field

# GSM8K (Cobbe et al. 2021, arXiv:2110.14168): grade-school word problems, whole-number answers. MIT licence.


def load_gsm8k(task: str, split: str, count: int) -> list[Problem]:
    """The problems of a split; the gold answer is the number after `####`, without thousands commas."""
    problems = []
    for index, row in enumerate(hub_rows(task, "openai/gsm8k", "main", split, count)):
        question = row_field(task, row, "question", "problem")
        answer = gold_integer(row_field(task, row, "answer").rpartition("####")[2].replace(",", "").strip())
        problems.append(Problem(f"{task}/{index:04d}", task, question, answer, "integer"))
    return problems


def _gsm8k(name: str, split: str, count: int, description: str) -> Task:
    source, loader = f"openai/gsm8k, main, {split}", partial(load_gsm8k, name, split, count)
    return Task(name, source, "integer", f"{count} grade-school word problems{description}", loader, count)


# MATH500 (Hendrycks et al. 2021, arXiv:2103.03874; subset of Lightman et al. 2023): LaTeX answers. MIT licence.


def load_math500() -> list[Problem]:
    """The 500 competition problems, from seven subjects."""
    problems = []
    for row in hub_rows("math500", "HuggingFaceH4/MATH-500", None, "test", 500):
        record = row_field("math500", row, "unique_id")
        question = row_field("math500", row, "problem", "question")
        problems.append(Problem(f"math500/{record}", "math500", question, row_field("math500", row, "answer"), "math"))
    return problems


# Contests: AIME 2024 to 2026 and AMC 12 of 2023 with whole-number answers, HMMT with numbers and formulas in LaTeX.
# Texts of AIME and AMC are the MAA's, and stay on the hub. HMMT, the Harvard-MIT tournament, is as MathArena publishes
# it (CC BY-NC-SA 4.0); those of the February contests are harder.


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
    _gsm8k("gsm8k", "test", 1319, ""),
    _gsm8k("gsm8k-train", "train", 7473, " outside gsm8k, for `prunus traces`"),
    Task(
        "math500",
        "HuggingFaceH4/MATH-500, test",
        "math",
        "500 competition problems, answers in LaTeX",
        load_math500,
        500,
    ),
    _whole_numbers("aime24", "HuggingFaceH4/aime_2024", "train", 30, "AIME 2024", highest=999),
    _whole_numbers("aime25", "math-ai/aime25", "test", 30, "AIME 2025", highest=999),
    _whole_numbers("aime26", "MathArena/aime_2026", "train", 30, "AIME 2026", highest=999),
    _whole_numbers("amc23", "math-ai/amc23", "test", 40, "AMC 12, 2023"),
    _hmmt("hmmt_feb25", "MathArena/hmmt_feb_2025", 30, "February 2025"),
    _hmmt("hmmt_nov25", "MathArena/hmmt_nov_2025", 30, "November 2025"),
    _hmmt("hmmt_feb26", "MathArena/hmmt_feb_2026", 33, "February 2026"),
)
