"""Write the problems of examples/study_1.5b.toml: 300 of the first 1,000 of GSM8K's test split, drawn by seed 0.

    python scripts/gsm8k_sample.py OUT.jsonl [TASK]

TASK: a file with the split's problems, in its order; by default it is downloaded.
"""

import json
import random
import sys
from pathlib import Path

from prunus.evaluation.tasks import load_task


def main(out: str, task: str = "gsm8k") -> None:
    problems = load_task(task)[:1000]
    random.Random(0).shuffle(problems)
    rows = [{"id": problem.id, "problem": problem.question, "answer": problem.answer} for problem in problems[:300]]
    Path(out).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
