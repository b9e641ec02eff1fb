"""Write src/prunus/data/held_out.txt, the hashes of evaluation questions that calibration must not contain.

python scripts/held_out.py [FOLDER with gsm8k_test.jsonl, math500.jsonl, aime24.jsonl, aime25.jsonl, amc23.jsonl]

Without a folder, only the lines of the tiny reasoner's sets are written again; the others stay.
"""

import argparse
import json
from pathlib import Path

from prunus.contamination import FILE, file_text
from prunus.evaluation.tasks.tiny import EVALUATION_SEED, FRESH_SEED, HELD_OUT_PER_CELL, VALIDATION_SEED, problem_set

HUB = {"gsm8k": "gsm8k_test", "math500": "math500", "aime24": "aime24", "aime25": "aime25", "amc23": "amc23"}
FIELDS = ("question", "problem")


def question_of(row: dict) -> str:
    """Return the question of a row, from whichever of FIELDS it has."""
    return next(row[field] for field in FIELDS if field in row)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    folder = parser.parse_args().folder
    seeds = (EVALUATION_SEED, FRESH_SEED, VALIDATION_SEED)
    tiny = [problem.question for seed in seeds for problem in problem_set(seed, HELD_OUT_PER_CELL)]
    if folder is None:
        others = FILE.read_text().partition("# gsm8k\n")
        FILE.write_text(file_text([("tiny", tiny)]) + others[1] + others[2])
        return
    sets = [("tiny", tiny)]
    for name, file in HUB.items():
        rows = map(json.loads, (folder / f"{file}.jsonl").read_text().splitlines())
        sets.append((name, [question_of(row) for row in rows]))
    FILE.write_text(file_text(sets))


if __name__ == "__main__":
    main()
