"""Text that every Python installation has, for benchmarks and tests that need calibration and held-out text."""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def docstrings() -> list[str]:
    """Return long docstrings of the standard library (English and some code) in a fixed order."""
    texts = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in statements(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 400:
                    texts.add(text)
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and the statements within it; expressions hold no docstrings and are most of a tree."""
    yield node
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        found = getattr(node, name, None)
        for child in found if isinstance(found, list) else ():
            yield from statements(child)
