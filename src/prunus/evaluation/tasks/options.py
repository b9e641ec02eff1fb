"""Multiple-choice sets. Options keep the published order, which is random already, except for those of GPQA.

MMLU-Pro (Wang et al. 2024, arXiv:2406.01574; MIT licence): knowledge and reasoning, mostly ten options. SuperGPQA
(M-A-P 2025, arXiv:2502.14739; ODC-BY licence): 285 graduate disciplines, mostly ten options. ARC-Challenge (Clark et
al. 2018, arXiv:1803.05457; CC BY-SA licence): school science, three to five options. GPQA-Diamond (Rein et al. 2023,
arXiv:2311.12022): graduate science, four options; the set is gated and its authors ask not to publish questions, so
texts are marked private and appear in no message.
"""

import hashlib
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from prunus.errors import PrunusError
from prunus.evaluation.tasks.problem import MAX_CHOICES, Content, Problem, Row, hub_task

_COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def option_order(record_id: str) -> tuple[int, ...]:
    """The index of the option of GPQA shown at A, B, C and D: a permutation that depends only on the record.

    The hash, as a number, picks each option from those that remain. Unlike a shuffle in the data pipeline, it does
    not change with the order of tasks or with caches.
    """
    number = int.from_bytes(hashlib.sha256(f"0|{record_id}".encode()).digest())
    left, order = list(range(len(_COLUMNS))), []
    while left:
        number, pick = divmod(number, len(left))
        order.append(left.pop(pick))
    return tuple(order)


def gpqa(row: Row) -> Content:
    """A problem of GPQA; the gold answer is the letter at which the correct option is shown."""
    record = row.text("Record ID")
    order = option_order(record)
    choices = tuple(row.text(_COLUMNS[option]) for option in order)
    return Content(record, row.text("Question"), ascii_uppercase[order.index(0)], choices)


def with_options(row: Row, key: str, options: Sequence[Any], gold: int) -> Content:
    """The problem of a row with options. key: its column with an id. gold: index of the right option.

    Raises PrunusError for options that are no texts, too few or too many, and where gold is not among them.
    """
    record = row.text(key)
    if not 2 <= len(options) <= MAX_CHOICES or not all(isinstance(option, str) for option in options):
        raise PrunusError(
            f"task '{row.task}': the options of '{record}' are not 2 to {MAX_CHOICES} texts; it is damaged"
        )
    if not 0 <= gold < len(options):
        raise PrunusError(f"task '{row.task}': the answer of '{record}' is none of its options; the set is damaged")
    choices = tuple(option.strip() for option in options)
    return Content(record, row.text("question"), ascii_uppercase[gold], choices)


def letter_index(letter: str) -> int:
    """The index of the option with a letter, 0 for A; -1 for anything but one letter."""
    return ascii_uppercase.find(letter) if len(letter) == 1 else -1


def mixed(problems: Sequence[Problem]) -> list[Problem]:
    """The problems in the order of a hash of their ids, so that the first N of them are a sample of all.

    Large sets are published subject by subject, and are seldom evaluated as a whole.
    """
    return sorted(problems, key=lambda problem: hashlib.sha256(problem.id.encode()).digest())


def mmlu_pro(row: Row) -> Content:
    """A problem of MMLU-Pro without trailing options `N/A`, by which some copies fill up to ten."""
    options = list(row.columns.get("options") or [])
    while options and options[-1] == "N/A":
        options.pop()
    gold = letter_index(row.text("answer"))
    if row.columns.get("answer_index", gold) != gold:
        record = row.text("question_id")
        raise PrunusError(f"task '{row.task}': the two answers of '{record}' differ; the set is damaged")
    return with_options(row, "question_id", options, gold)


def supergpqa(row: Row) -> Content:
    """A problem of SuperGPQA, whose data set has only a split named train."""
    return with_options(row, "uuid", row.columns.get("options") or [], letter_index(row.text("answer_letter")))


def arc_challenge(row: Row) -> Content:
    """A problem of ARC-Challenge; some call their options 1 to 4, which become A to D."""
    labels, texts = (list((row.columns.get("choices") or {}).get(key) or []) for key in ("label", "text"))
    answer = row.text("answerKey")
    return with_options(row, "id", texts, labels.index(answer) if answer in labels else -1)


TASKS = (
    hub_task(
        "gpqa_diamond",
        "Idavidrein/gpqa, gpqa_diamond, train",
        "choice",
        198,
        "graduate science questions",
        gpqa,
        private=True,
    ),
    hub_task(
        "mmlu_pro",
        "TIGER-Lab/MMLU-Pro, test",
        "choice",
        12032,
        "questions of 14 subjects, up to 10 options",
        mmlu_pro,
        mixed,
    ),
    hub_task(
        "supergpqa", "m-a-p/SuperGPQA, train", "choice", 26529, "graduate questions, up to 10 options", supergpqa, mixed
    ),
    hub_task(
        "arc_challenge",
        "allenai/ai2_arc, ARC-Challenge, test",
        "choice",
        1172,
        "questions of school science",
        arc_challenge,
    ),
)
