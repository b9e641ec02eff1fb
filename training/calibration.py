"""Write the tiny reasoner's calibration sequences: prompt, reference trace and answer of problems outside evaluation.

python training/calibration.py
"""

import itertools
import json
from pathlib import Path

from train import Writer
from transformers import AutoTokenizer

from prunus.evaluation.tasks import tiny

FOLDER = Path(__file__).parents[1] / "src" / "prunus" / "data" / "tiny"
SEQUENCES = 256


def main() -> None:
    writer = Writer(AutoTokenizer.from_pretrained(FOLDER), seed=0)
    problems = itertools.islice(tiny.stream("calibration"), SEQUENCES)
    lines = [json.dumps({"token_ids": writer.full(problem).ids}) for problem in problems]
    (FOLDER / "calibration.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
