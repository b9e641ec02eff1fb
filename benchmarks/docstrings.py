"""Text that every Python installation has, for benchmarks and tests that need calibration and held-out text."""

import ast
import hashlib
import sysconfig
from pathlib import Path


def docstrings() -> list[str]:
    """Return long docstrings of the standard library (English and some code) in a fixed order."""
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
