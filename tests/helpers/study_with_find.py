"""A study with a grid and a search."""

from pathlib import Path

STUDY = """\
models = ["model"]
[eval]
tasks = ["sums.jsonl"]
budgets = [8, 16]
answer_tokens = 8
profile = "tiny"
batch_size = 20
[calibration]
calibration = "text.jsonl"
sequences = 8
seqlen = 16
"""

GRID = '[[prune]]\nmethod = "magnitude"\nsparsity = 0.2\n'

RULE = "margin = 0.1\nstop_margin = 0.1\n"

FIND = f'[[find]]\nmethod = "magnitude"\nladder = "0.1:0.4:0.1"\n{RULE}'


def write(text: str, study: str = STUDY) -> Path:
    path = Path("small.toml")
    path.write_text(study + text)
    return path
