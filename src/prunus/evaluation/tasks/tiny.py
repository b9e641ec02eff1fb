"""Six families of verifiable problems with step-by-step reference traces, generated from a seed.

The built-in tiny reasoner was trained on them. Every problem has one answer, every step is one short line, and the
number of steps grows with the level, so the accuracy of a model that needs its thinking rises with the budget.

    chain    Compute 97-3-33.              97-3=94 / 94-33=61                       running sum within 0..99
    twosum   Which two of 21, 40, 14 ...   21+40=61 no / 21+14=35 yes               search for the only pair
    hops     Map c g, g s. From c take 2.  c g 1 / g s 2                            follow pointers on a cycle
    mult     Compute 348*3.                348 8*3+0=24 4 / 34 4*3+2=14 44 / ...    long multiplication by a digit
    listops  List: a b c. Apply 1 left.    1 left: b c a                            edit a list of letters
    clock    Clock 09:10 +01:05.           09:10+01:05=10:15                        times of one day

The design and the lengths follow our own measurements; `chain` and the idea of generated sets are from reasoning_gym.

The tasks are `tiny` (630 problems), `tiny/FAMILY` (105 each), and `tiny-train` for traces.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import NamedTuple

from prunus.evaluation.tasks.problem import Problem, Task

LEVELS = range(1, 8)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Training and calibration contain no problem of these seeds' sets (HELD_OUT_PER_CELL of each family and level).
EVALUATION_SEED, FRESH_SEED, VALIDATION_SEED = 10007, 4242, 555
HELD_OUT_PER_CELL = 40
DEFAULT_PER_CELL = 15  # 6 families x 7 levels x 15 = 630 problems

# Smallest and largest number of steps (twosum: of numbers; mult: of digits) at levels 1 to 7.
STEPS: dict[str, tuple[tuple[int, int], ...]] = {
    "chain": ((2, 3), (4, 6), (7, 10), (11, 15), (16, 22), (23, 32), (33, 45)),
    "twosum": ((4, 4), (5, 5), (6, 6), (7, 7), (8, 8), (9, 9), (10, 11)),
    "hops": ((2, 3), (4, 6), (7, 11), (12, 17), (18, 26), (27, 40), (41, 60)),
    "mult": ((3, 3), (4, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 15)),
    "listops": ((2, 3), (4, 5), (6, 8), (9, 12), (13, 18), (19, 25), (26, 34)),
    "clock": ((1, 2), (3, 4), (5, 6), (7, 9), (10, 13), (14, 18), (19, 24)),
}


class TinyProblem(NamedTuple):
    """One problem with the trace that solves it. trace: a line per step, without newlines."""

    family: str
    level: int
    question: str
    answer: str
    trace: tuple[str, ...]


def question_hash(question: str) -> bytes:
    """The hash (16 bytes) of a question, for exclusion lists."""
    return hashlib.sha256(question.encode()).digest()[:16]


def _chain(steps: int, rng: random.Random) -> tuple[str, str, list[str]]:
    value = start = rng.randint(0, 99)
    operations: list[str] = []
    trace = []
    while len(operations) < steps:
        sign, operand = rng.choice("+-"), rng.randint(1, 40)
        result = value + operand if sign == "+" else value - operand
        # If an operation occurred twice, the model could lose its place in the question.
        if f"{sign}{operand}" in operations or not 0 <= result <= 99:
            continue
        operations.append(f"{sign}{operand}")
        trace.append(f"{value}{sign}{operand}={result}")
        value = result
    return f"Compute {start}{''.join(operations)}.", str(value), trace


def _twosum(count: int, rng: random.Random) -> tuple[str, str, list[str]]:
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    while True:
        numbers = rng.sample(range(1, 50), count)
        first, second = rng.choice(pairs)
        goal = numbers[first] + numbers[second]
        if sum(numbers[i] + numbers[j] == goal for i, j in pairs) == 1:
            break
    trace = []
    for i, j in pairs:
        total = numbers[i] + numbers[j]
        trace.append(f"{numbers[i]}+{numbers[j]}={total} {'yes' if total == goal else 'no'}")
        if total == goal:
            break
    question = f"Which two of {', '.join(map(str, numbers))} add up to {goal}?"
    return question, f"{numbers[first]}+{numbers[second]}", trace


def _hops(steps: int, rng: random.Random) -> tuple[str, str, list[str]]:
    size = rng.randint(8, 12) if steps < 8 else rng.randint(12, 18)
    cycle = rng.sample(LETTERS, size)
    follows = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    listed = list(cycle)
    rng.shuffle(listed)
    at = start = rng.choice(cycle)
    trace = []
    for step in range(1, steps + 1):
        # With the leading blank, every key is the same token wherever it occurs.
        trace.append(f" {at} {follows[at]} {step}")
        at = follows[at]
    question = "Map" + ",".join(f" {key} {follows[key]}" for key in listed) + f". From {start} take {steps} steps."
    return question, at, trace


def _mult(digits: int, rng: random.Random) -> tuple[str, str, list[str]]:
    number = str(rng.randint(10 ** (digits - 1), 10**digits - 1))
    factor, carry, done = rng.randint(3, 9), 0, ""
    trace = []
    for end in range(digits, 0, -1):
        rest = number[:end]
        product = int(rest[-1]) * factor + carry
        done = (str(product) if end == 1 else str(product % 10)) + done
        trace.append(f"{rest} {rest[-1]}*{factor}+{carry}={product:02d} {done}")
        carry = product // 10
    return f"Compute {number}*{factor}.", done, trace


_LIST_OPERATIONS: dict[str, Callable[[list[str]], list[str]]] = {
    "reverse": lambda items: items[::-1],
    "left": lambda items: items[1:] + items[:1],
    "right": lambda items: items[-1:] + items[:-1],
    "swap": lambda items: [items[1], items[0], *items[2:]],
}
_UNDO = ({"reverse"}, {"swap"}, {"left", "right"})


def _listops(steps: int, rng: random.Random) -> tuple[str, str, list[str]]:
    items = start = rng.sample(LETTERS, rng.randint(4, 6))
    operations: list[str] = []
    trace = []
    while len(operations) < steps:
        name = rng.choice(list(_LIST_OPERATIONS))
        if operations and {name, operations[-1]} in _UNDO:
            continue
        operations.append(name)
        items = _LIST_OPERATIONS[name](items)
        trace.append(f"{len(operations)} {name}: {' '.join(items)}")
    numbered = ", ".join(f"{i} {name}" for i, name in enumerate(operations, 1))
    return f"List: {' '.join(start)}. Apply {numbered}.", " ".join(items), trace


def _clock(steps: int, rng: random.Random) -> tuple[str, str, list[str]]:
    def shown(minutes: int) -> str:
        return f"{minutes // 60:02d}:{minutes % 60:02d}"

    time = start = rng.randrange(1440)
    shifts: list[str] = []
    used: set[int] = set()
    trace = []
    while len(shifts) < steps:
        sign, minutes = rng.choice("+-"), rng.randint(5, 300)
        result = time + minutes if sign == "+" else time - minutes
        if minutes in used or not 0 <= result < 1440:
            continue
        used.add(minutes)
        shifts.append(f"{sign}{shown(minutes)}")
        trace.append(f"{shown(time)}{shifts[-1]}={shown(result)}")
        time = result
    return f"Clock {shown(start)} {' '.join(shifts)}.", shown(time), trace


# family -> (function that makes question, answer and trace from a number of steps, description of the task)
_GENERATORS: dict[str, tuple[Callable[[int, random.Random], tuple[str, str, list[str]]], str]] = {
    "chain": (_chain, "running sums such as 97-3-33"),
    "twosum": (_twosum, "which two of the numbers add up to a goal"),
    "hops": (_hops, "follow letter pointers for n steps"),
    "mult": (_mult, "a long number times one digit"),
    "listops": (_listops, "reverse, rotate and swap a list of letters"),
    "clock": (_clock, "add and subtract times of one day"),
}
FAMILIES = tuple(_GENERATORS)


def sample(family: str, level: int, rng: random.Random) -> TinyProblem:
    """A random problem of a family and level (1 to 7)."""
    low, high = STEPS[family][level - 1]
    question, answer, trace = _GENERATORS[family][0](rng.randint(low, high), rng)
    return TinyProblem(family, level, question, answer, tuple(trace))


def problem_set(seed: int, per_cell: int, families: Iterable[str] = FAMILIES) -> list[TinyProblem]:
    """Distinct problems, `per_cell` of each family and level.

    Every family and level has its own random stream, so a set does not depend on which families are requested, and a
    smaller per_cell gives a prefix of the problems of a larger value.
    """
    problems = []
    for family in families:
        for level in LEVELS:
            rng = random.Random(f"{seed}/{family}/{level}")
            seen: dict[str, TinyProblem] = {}
            while len(seen) < per_cell:
                problem = sample(family, level, rng)
                seen.setdefault(problem.question, problem)
            problems += seen.values()
    return problems


@cache
def held_out() -> frozenset[bytes]:
    """The hashes of all questions that training and calibration must not contain."""
    seeds = (EVALUATION_SEED, FRESH_SEED, VALIDATION_SEED)
    return frozenset(question_hash(p.question) for seed in seeds for p in problem_set(seed, HELD_OUT_PER_CELL))


def stream(seed: int | str, families: Iterable[str] = FAMILIES) -> Iterator[TinyProblem]:
    """Yield random problems outside the held-out sets without end, families and levels with equal probability."""
    rng = random.Random(f"stream/{seed}")
    names, excluded = list(families), held_out()
    while True:
        problem = sample(rng.choice(names), rng.choice(LEVELS), rng)
        if question_hash(problem.question) not in excluded:
            yield problem


TRAIN_PROBLEMS = 2000


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


@cache
def load(name: str, families: tuple[str, ...]) -> list[Problem]:
    """The fixed evaluation problems of the families, under the name of the task.

    Each is a group by itself, since families and levels are complete, not a sample of more (docs/verdicts.md).
    """
    problems = balanced(problem_set(EVALUATION_SEED, DEFAULT_PER_CELL, families), families)
    return [Problem(problem_id(p), name, p.question, p.answer, "exact", group=problem_id(p)) for p in problems]


@cache
def load_train() -> list[Problem]:
    """Distinct problems for traces and calibration, none of them in a held-out set."""
    problems, source = dict[str, TinyProblem](), stream("traces")
    while len(problems) < TRAIN_PROBLEMS:
        problem = next(source)
        problems.setdefault(problem.question, problem)
    return [
        Problem(f"tiny-train/{problem_id(p).removeprefix('tiny/')}", "tiny-train", p.question, p.answer, "exact")
        for p in problems.values()
    ]


def _task(name: str, families: tuple[str, ...], description: str) -> Task:
    made, loader = f"generated, seed {EVALUATION_SEED}", partial(load, name, families)
    return Task(name, made, "exact", description, loader, mixed=True)


TASKS = (
    _task("tiny", FAMILIES, "630 step-by-step problems, six families, levels 1 to 7, for the tiny reasoner"),
    *(_task(f"tiny/{family}", (family,), f"105 problems: {about}") for family, (_, about) in _GENERATORS.items()),
    Task(
        "tiny-train",
        "generated",
        "exact",
        f"{TRAIN_PROBLEMS} problems outside these sets, for `prunus traces`",
        load_train,
        mixed=True,
    ),
)
