"""Write src/prunus/data/held_out.txt, the hashes of evaluation questions that calibration must not contain.

python scripts/held_out.py [FOLDER with gsm8k_test.jsonl, math500.jsonl, aime24.jsonl, aime25.jsonl, amc23.jsonl]
python scripts/held_out.py --hub [TASK ...]

Only the lines of sets that are read are written again; the others stay. The tiny reasoner's are always written. --hub
fetches tasks with `datasets` (gpqa_diamond needs a login); without names, those that the file lacks.
"""

import argparse
import json
from pathlib import Path

from prunus.contamination import FILE, file_text, question_digest
from prunus.evaluation.tasks import TASKS, load_task
from prunus.evaluation.tasks.tiny import EVALUATION_SEED, FRESH_SEED, HELD_OUT_PER_CELL, VALIDATION_SEED, problem_set

HUB = {"gsm8k": "gsm8k_test", "math500": "math500", "aime24": "aime24", "aime25": "aime25", "amc23": "amc23"}
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


def missing(sets: dict[str, list[str]]) -> list[str]:
    """Return the evaluation sets from the hub that the file lacks."""
    from_hub = {name: task for name, task in TASKS.items() if not task.source.startswith("generated")}
    return [name for name, task in from_hub.items() if not task.trains and name not in sets]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--hub", nargs="*", metavar="TASK")
    given = parser.parse_args()
    seeds = (EVALUATION_SEED, FRESH_SEED, VALIDATION_SEED)
    sets = stored(FILE.read_text())
    read = {"tiny": [problem.question for seed in seeds for problem in problem_set(seed, HELD_OUT_PER_CELL)]}
    if given.folder is not None:
        for name, file in HUB.items():
            rows = map(json.loads, (given.folder / f"{file}.jsonl").read_text().splitlines())
            read[name] = [question_of(row) for row in rows]
    if given.hub is not None:
        for name in given.hub or missing(sets):
            read[name] = [problem.question for problem in load_task(name)]
    digests = {name: [question_digest(question) for question in questions] for name, questions in read.items()}
    FILE.write_text(file_text((sets | digests).items()))


if __name__ == "__main__":
    main()
