"""GPQA-Diamond (Rein et al. 2023, arXiv:2311.12022): graduate science, four choices.

The set is gated and its authors ask not to publish questions, so texts are marked private and appear in no message.
"""

import hashlib
from string import ascii_uppercase

from prunus.evaluation.tasks.problem import Problem, Task, hub_rows, row_field

SHUFFLE_SEED = 0
_COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def option_order(record_id: str, shuffle_seed: int = SHUFFLE_SEED, options: int = 4) -> tuple[int, ...]:
    """The index of the option shown at A, B, ...: a permutation that depends only on seed and record.

    The hash, as one number, picks each option from those that remain. Unlike a shuffle in the data pipeline, it does
    not change with the order of tasks or with caches.
    """
    number = int.from_bytes(hashlib.sha256(f"{shuffle_seed}|{record_id}".encode()).digest())
    left, order = list(range(options)), []
    while left:
        number, pick = divmod(number, len(left))
        order.append(left.pop(pick))
    return tuple(order)


def load() -> list[Problem]:
    """The 198 problems; the gold answer is the letter at which the correct option is shown."""
    problems = []
    for row in hub_rows("gpqa_diamond", "Idavidrein/gpqa", "gpqa_diamond", "train", 198):
        record = row_field("gpqa_diamond", row, "Record ID")
        order = option_order(record)
        choices = tuple(row_field("gpqa_diamond", row, _COLUMNS[option]) for option in order)
        question, gold = row_field("gpqa_diamond", row, "Question"), ascii_uppercase[order.index(0)]
        problem_id = f"gpqa_diamond/{record}"
        problems.append(Problem(problem_id, "gpqa_diamond", question, gold, "choice", choices, private=True))
    return problems


TASKS = (
    Task(
        "gpqa_diamond",
        "Idavidrein/gpqa, gpqa_diamond, train (gated)",
        "choice",
        "198 graduate science questions",
        load,
        198,
    ),
)
