"""A study that takes seconds: a random model of three blocks, six problems, short budgets."""

from pathlib import Path
from typing import Any

from tiny_models import make_model, random_rows

from prunus.pruning.calibration.data import Calibration

STUDY = """\
models = ["model"]
{top}
[eval]
tasks = ["tiny"]
limit = 6
budgets = [0, 8, 20]
answer_tokens = 8
batch_size = 2
{eval}
[calibration]
calibration = "text.jsonl"
sequences = 8
seqlen = 16
{recipes}
"""
# Its closing has 5 ids in the built-in tokenizer; that of qwen3, the model's own profile, has 84.
SHORT = 'profile = "tiny"'
RECIPES = """\
[[prune]]
method = ["magnitude", "wanda", "sparsegpt"]
sparsity = 0.5
[[prune]]
method = "wanda"
sparsity = 0.3
allocation = "owl"
[[drop]]
blocks = 1
[[drop]]
blocks = "0,2"
[[drop]]
method = "laco"
threshold = -1
"""
NAMES = ["dense", "magnitude-50", "wanda-50", "sparsegpt-50", "wanda-owl-30", "shortgpt-1", "without-0-2", "laco-1"]


def write_study(folder: Path, recipes: str = RECIPES, eval_: str = SHORT, top: str = "", **model: Any) -> Path:
    """Write model, calibration and study to a folder and return the path of the study."""
    if not (folder / "model").exists():
        settings: dict[str, Any] = {"family": "qwen2"} | model
        make_model(folder / "model", **settings)
        (folder / "text.jsonl").write_text(Calibration(random_rows(8, 16), "random", []).to_jsonl())
    path = folder / "small.toml"
    path.write_text(STUDY.format(recipes=recipes, eval=eval_, top=top))
    return path
