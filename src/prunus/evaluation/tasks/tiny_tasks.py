"""The tiny reasoner's tasks: `tiny` (630 problems), `tiny/FAMILY` (105 each), and `tiny-train` for traces."""

from dataclasses import replace
from functools import cache, partial

from prunus.evaluation.tasks.problem import Problem, Task
from prunus.evaluation.tasks.tiny import (
    DEFAULT_PER_CELL,
    EVALUATION_SEED,
    FAMILIES,
    LEVELS,
    TinyProblem,
    problem_set,
    question_hash,
    stream,
)

TRAIN_PROBLEMS = 2000

_DESCRIPTIONS = {
    "chain": "running sums such as 97-3-33",
    "twosum": "which two of the numbers add up to a goal",
    "hops": "follow letter pointers for n steps",
    "mult": "a long number times one digit",
    "listops": "reverse, rotate and swap a list of letters",
    "clock": "add and subtract times of one day",
}


def problem_id(problem: TinyProblem) -> str:
    """tiny/FAMILY/LEVEL/ and 8 hex digits of the question's hash: the same id in every task."""
    return f"tiny/{problem.family}/{problem.level}/{question_hash(problem.question).hex()[:8]}"


def balanced(problems: list[TinyProblem], families: tuple[str, ...]) -> list[TinyProblem]:
    """The problems reordered: the counts of families, and of levels, in the first N differ by at most one.

    Problem n is of family n mod 6 and level n mod 7. Since 6 (or 1) and 7 have no common divisor, 42 (or 7) consecutive
    problems contain every pair of family and level once.
    """
    cells: dict[tuple[str, int], list[TinyProblem]] = {}
    for problem in problems:
        cells.setdefault((problem.family, problem.level), []).append(problem)
    order = [(families[n % len(families)], LEVELS[n % len(LEVELS)]) for n in range(len(families) * len(LEVELS))]
    rounds = len(problems) // len(order)
    return [cells[cell][index] for index in range(rounds) for cell in order]


def load(name: str, families: tuple[str, ...]) -> list[Problem]:
    """The fixed evaluation problems of the families, under the name of the task.

    Each is a group by itself: families and levels are all that there is of them, not a sample (docs/verdicts.md).
    """
    found = [Problem(problem_id(p), name, p.question, p.answer, "exact") for p in generated(families)]
    return [replace(problem, group=problem.id) for problem in found]


@cache
def generated(families: tuple[str, ...]) -> tuple[TinyProblem, ...]:
    """The evaluation problems of the families, which are generated once."""
    return tuple(balanced(problem_set(EVALUATION_SEED, DEFAULT_PER_CELL, families), families))


def load_train() -> list[Problem]:
    """Distinct problems for traces and calibration, none of them in a held-out set."""
    return [
        Problem(f"tiny-train/{problem_id(p).removeprefix('tiny/')}", "tiny-train", p.question, p.answer, "exact")
        for p in generated_for_training()
    ]


@cache
def generated_for_training() -> tuple[TinyProblem, ...]:
    """Distinct problems, which are generated once."""
    problems: dict[str, TinyProblem] = {}
    for problem in stream("traces"):
        problems.setdefault(problem.question, problem)
        if len(problems) == TRAIN_PROBLEMS:
            break
    return tuple(problems.values())


def _task(name: str, families: tuple[str, ...], description: str) -> Task:
    return Task(name, f"generated, seed {EVALUATION_SEED}", "exact", description, partial(load, name, families))


TASKS = (
    _task("tiny", FAMILIES, "630 step-by-step problems, six families, levels 1 to 7, for the tiny reasoner"),
    *(_task(f"tiny/{family}", (family,), f"105 problems: {_DESCRIPTIONS[family]}") for family in FAMILIES),
    Task(
        "tiny-train",
        "generated",
        "exact",
        f"{TRAIN_PROBLEMS} problems outside these sets, for `prunus traces`",
        load_train,
    ),
)
