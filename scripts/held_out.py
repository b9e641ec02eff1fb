"""Write src/prunus/data/held_out.txt, the hashes of evaluation questions that calibration must not contain.

python scripts/held_out.py [FOLDER with TASK.jsonl, one or more; each line has a `question` or a `problem`]
python scripts/held_out.py --hub [TASK ...]

Only the lines of sets that are read are written again; the others stay. The tiny reasoner's are always written. --hub
fetches tasks with `datasets` (gpqa_diamond needs a login); without names, those that the file lacks.

Of questions with choices, those of fewer than 8 words are left out: without its choices, such a question
("Business cycles") can be a line of any text, which calibration would then refuse.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from prunus.evaluation.tasks import TASKS, load_task
from prunus.evaluation.tasks.tiny import EVALUATION_SEED, FRESH_SEED, HELD_OUT_PER_CELL, VALIDATION_SEED, problem_set
from prunus.questions import FILE, question_digest

WORDS = 8
FIELDS = ("question", "problem")


def question_of(row: dict) -> str:
    """Return the question of a row, from whichever of FIELDS it has."""
    return next(row[field] for field in FIELDS if field in row)


def stored(text: str) -> dict[str, list[str]]:
    """Return the digests of each set in the content of the file."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            found[line[2:]] = []
        else:
            found[next(reversed(found))].append(line)
    return found


def from_hub() -> list[str]:
    """Return the names of the evaluation sets from the hub."""
    return [name for name, task in TASKS.items() if not task.source.startswith("generated") and not task.trains]


def missing(sets: dict[str, list[str]]) -> list[str]:
    """Return the evaluation sets from the hub that the file lacks."""
    return [name for name in from_hub() if name not in sets]


def digests(name: str, questions: Sequence[str]) -> list[str]:
    """Return the digests of a set's questions, without those that could be a line of any text."""
    least = WORDS if TASKS[name].kind == "choice" else 0
    return [question_digest(question) for question in questions if len(question.split()) >= least]


def file_text(sets: Iterable[tuple[str, Iterable[str]]]) -> str:
    """The content of data/held_out.txt. sets: (name, digests) of each evaluation set."""
    lines = []
    for name, digests in sets:
        lines += [f"# {name}", *sorted(set(digests))]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--hub", nargs="*", metavar="TASK")
    given = parser.parse_args()
    seeds = (EVALUATION_SEED, FRESH_SEED, VALIDATION_SEED)
    sets = stored(FILE.read_text())
    read = {"tiny": [problem.question for seed in seeds for problem in problem_set(seed, HELD_OUT_PER_CELL)]}
    if given.folder is not None:
        for name in from_hub():
            if (file := given.folder / f"{name}.jsonl").exists():
                read[name] = [question_of(json.loads(line)) for line in file.read_text().splitlines()]
    if given.hub is not None:
        for name in given.hub or missing(sets):
            read[name] = [problem.question for problem in load_task(name)]
    known = sets | {name: digests(name, questions) for name, questions in read.items()}
    FILE.write_text(file_text(known.items()))


if __name__ == "__main__":
    main()
