"""Mathematics: GSM8K, MATH500 and contests, with whole numbers, numbers or formulas in LaTeX as answers.

GSM8K (Cobbe et al. 2021, arXiv:2110.14168; MIT licence): grade-school word problems. MATH500 (Hendrycks et al. 2021,
arXiv:2103.03874; subset of Lightman et al. 2023; MIT licence): competition problems of seven subjects. Contests: AIME
2024 to 2026 and AMC 12 of 2023, whose texts are the MAA's, and stay on the hub. HMMT, the Harvard-MIT tournament, is as
MathArena publishes it (CC BY-NC-SA 4.0); the problems of its February contests are harder.
"""

from functools import partial

from prunus.errors import PrunusError
from prunus.evaluation.tasks.problem import Content, Row, gold_integer, hub_task


def gsm8k(row: Row) -> Content:
    """A problem of GSM8K; the gold answer is the number after `####`, without thousands commas."""
    question, solution = row.text("question", "problem"), row.text("answer")
    return Content(f"{row.number:04d}", question, gold_integer(solution.rpartition("####")[2].replace(",", "").strip()))


def math500(row: Row) -> Content:
    """A problem of MATH500."""
    return Content(row.text("unique_id"), row.text("problem", "question"), row.text("answer"))


def contest(row: Row, highest: int | None = None) -> Content:
    """A problem of a contest; the answer 27.0 of some copies becomes 27. PrunusError unless it is in 0 to highest."""
    answer = gold_integer(row.text("answer", "Answer"))
    if highest is not None and not 0 <= int(answer) <= highest:
        raise PrunusError(
            f"task '{row.task}': answer {answer} of row {row.number} is outside 0 to {highest}; the set is damaged"
        )
    return Content(f"{row.number:02d}", row.text("problem", "question", "Problem"), answer)


def hmmt(row: Row) -> Content:
    """A problem of HMMT."""
    return Content(f"{row.number:02d}", row.text("problem"), row.text("answer"))


aime = partial(contest, highest=999)
TASKS = (
    hub_task("gsm8k", "openai/gsm8k, main, test", "integer", 1319, "grade-school word problems", gsm8k),
    hub_task(
        "gsm8k-train",
        "openai/gsm8k, main, train",
        "integer",
        7473,
        "grade-school word problems outside gsm8k, for `prunus traces`",
        gsm8k,
    ),
    hub_task("math500", "HuggingFaceH4/MATH-500, test", "math", 500, "competition problems, answers in LaTeX", math500),
    hub_task("aime24", "HuggingFaceH4/aime_2024, train", "integer", 30, "problems of AIME 2024", aime),
    hub_task("aime25", "math-ai/aime25, test", "integer", 30, "problems of AIME 2025", aime),
    hub_task("aime26", "MathArena/aime_2026, train", "integer", 30, "problems of AIME 2026", aime),
    hub_task("amc23", "math-ai/amc23, test", "integer", 40, "problems of AMC 12, 2023", contest),
    hub_task("hmmt_feb25", "MathArena/hmmt_feb_2025, train", "math", 30, "problems of HMMT February 2025", hmmt),
    hub_task("hmmt_nov25", "MathArena/hmmt_nov_2025, train", "math", 30, "problems of HMMT November 2025", hmmt),
    hub_task("hmmt_feb26", "MathArena/hmmt_feb_2026, train", "math", 33, "problems of HMMT February 2026", hmmt),
)
