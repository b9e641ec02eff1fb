"""Sets of questions with options, which keep the published order, since it is random already.

MMLU-Pro (Wang et al. 2024, arXiv:2406.01574; MIT licence): knowledge and reasoning, mostly ten options. SuperGPQA
(M-A-P 2025, arXiv:2502.14739; ODC-BY licence): 285 graduate disciplines, mostly ten options. ARC-Challenge (Clark et
al. 2018, arXiv:1803.05457; CC BY-SA licence): school science, three to five options.
"""

import hashlib
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from prunus.errors import PrunusError
from prunus.evaluation.tasks.problem import MAX_CHOICES, Problem, Task, hub_rows, row_field

# GPQA-Diamond (Rein et al. 2023, arXiv:2311.12022): graduate science, four choices.
# The set is gated and its authors ask not to publish questions, so texts are marked private and appear in no message.

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


def load_gpqa() -> list[Problem]:
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


MMLU_PRO, SUPERGPQA = 12032, 26529  # numbers of questions


def choice_problem(task: str, row: Mapping[str, Any], key: str, options: Sequence[Any], gold: int) -> Problem:
    """The problem of a row, with the id task/KEY. key: its column with an id. gold: index of the right option.

    Raises PrunusError for options that are no texts, too few or too many, and where gold is not among them.
    """
    record = row_field(task, row, key)
    if not 2 <= len(options) <= MAX_CHOICES or not all(isinstance(option, str) for option in options):
        raise PrunusError(f"task '{task}': the options of '{record}' are not 2 to {MAX_CHOICES} texts; it is damaged")
    if not 0 <= gold < len(options):
        raise PrunusError(f"task '{task}': the answer of '{record}' is none of its options; the set is damaged")
    choices = tuple(option.strip() for option in options)
    question = row_field(task, row, "question")
    return Problem(f"{task}/{record}", task, question, ascii_uppercase[gold], "choice", choices)


def letter_index(letter: str) -> int:
    """The index of the option with a letter, 0 for A; -1 for anything but one letter."""
    return ascii_uppercase.find(letter) if len(letter) == 1 else -1


def mixed(problems: Sequence[Problem]) -> list[Problem]:
    """The problems in the order of a hash of their ids, so that the first N of them are a sample of all.

    Large sets are published subject by subject, and nobody thinks long about all of their questions.
    """
    return sorted(problems, key=lambda problem: hashlib.sha256(problem.id.encode()).digest())


def load_mmlu_pro() -> list[Problem]:
    """The 12032 test questions, mixed. Options that only fill up to ten (`N/A`, in copies) are left out."""
    problems = []
    for row in hub_rows("mmlu_pro", "TIGER-Lab/MMLU-Pro", None, "test", MMLU_PRO):
        options = list(row.get("options") or [])
        while options and options[-1] == "N/A":
            options.pop()
        gold = letter_index(row_field("mmlu_pro", row, "answer"))
        if row.get("answer_index", gold) != gold:
            record = row_field("mmlu_pro", row, "question_id")
            raise PrunusError(f"task 'mmlu_pro': the two answers of '{record}' differ; the set is damaged")
        problems.append(choice_problem("mmlu_pro", row, "question_id", options, gold))
    return mixed(problems)


def load_supergpqa() -> list[Problem]:
    """All questions, mixed; the data set has only a split named train."""
    problems = []
    for row in hub_rows("supergpqa", "m-a-p/SuperGPQA", None, "train", SUPERGPQA):
        gold = letter_index(row_field("supergpqa", row, "answer_letter"))
        problems.append(choice_problem("supergpqa", row, "uuid", row.get("options") or [], gold))
    return mixed(problems)


def load_arc_challenge() -> list[Problem]:
    """The 1172 test questions; some call their options 1 to 4, which become A to D."""
    problems = []
    for row in hub_rows("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", 1172):
        labels, texts = (list((row.get("choices") or {}).get(key) or []) for key in ("label", "text"))
        answer = row_field("arc_challenge", row, "answerKey")
        gold = labels.index(answer) if answer in labels else -1
        problems.append(choice_problem("arc_challenge", row, "id", texts, gold))
    return problems


TASKS = (
    Task(
        "gpqa_diamond",
        "Idavidrein/gpqa, gpqa_diamond, train (gated)",
        "choice",
        "198 graduate science questions",
        load_gpqa,
        198,
    ),
    Task(
        "mmlu_pro",
        "TIGER-Lab/MMLU-Pro, test",
        "choice",
        f"{MMLU_PRO} questions of 14 subjects, up to 10 options",
        load_mmlu_pro,
        MMLU_PRO,
    ),
    Task(
        "supergpqa",
        "m-a-p/SuperGPQA, train",
        "choice",
        f"{SUPERGPQA} graduate questions, up to 10 options",
        load_supergpqa,
        SUPERGPQA,
    ),
    Task(
        "arc_challenge",
        "allenai/ai2_arc, ARC-Challenge, test",
        "choice",
        "1172 questions of school science",
        load_arc_challenge,
        1172,
    ),
)
