"""Write the problems of examples/study_1.5b.toml: 300 of the first 1,000 of GSM8K's test split, drawn by seed 0.

    python scripts/gsm8k_sample.py OUT.jsonl [TEST.jsonl]

TEST.jsonl: the split as rows with `problem` and `answer`, in its order; by default it is downloaded (openai/gsm8k).
"""

import json
import random
import sys
from pathlib import Path


def test_split() -> list[dict[str, str]]:
    from datasets import load_dataset

    rows = load_dataset("openai/gsm8k", "main", split="test")
    return [
        {
            "id": f"gsm8k/{number:04d}",
            "problem": row["question"],
            "answer": row["answer"].rpartition("####")[2].strip().replace(",", ""),
        }
        for number, row in enumerate(rows)
    ]


def main(out: str, test: str | None = None) -> None:
    rows = test_split() if test is None else [json.loads(line) for line in Path(test).read_text("utf-8").splitlines()]
    of_study = rows[:1000]
    random.Random(0).shuffle(of_study)
    kept = [{key: row[key] for key in ("id", "problem", "answer")} for row in of_study[:300]]
    Path(out).write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
