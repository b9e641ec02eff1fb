"""The examples of CONTRIBUTING.md: files and lines that a page adds to the package, and the commands that use them.

A block of code belongs to the file that the line above it names. One that assigns a tuple which begins with `...` adds
its other elements to the tuple of that name in the file; any other is a new file.
"""

import ast
import re
import shlex
from pathlib import Path

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
BLOCK = re.compile(r"`src/prunus/([^`\n]+)`[^`\n]*:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def section(heading: str) -> str:
    """The text below the heading that begins so."""
    (found,) = re.findall(rf"^## {heading}.*?$(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return found


def files(heading: str) -> dict[str, str]:
    """{path in the package: code} of the examples below a heading."""
    found = dict(BLOCK.findall(section(heading)))
    assert found, f"no example below '{heading}'"
    return found


def apply(heading: str, package: Path) -> None:
    """Add to a copy of the package what the examples below a heading add."""
    for name, code in files(heading).items():
        path = package / name
        if path.exists():
            path.write_text(with_elements(path.read_text("utf-8"), code), "utf-8")
        else:
            path.write_text(code, "utf-8")


def commands(heading: str) -> list[list[str]]:
    """The words after `prunus` of each command below a heading."""
    lines = "".join(COMMANDS.findall(section(heading))).splitlines()
    return [shlex.split(line)[1:] for line in lines]


def with_elements(text: str, code: str) -> str:
    """The text of a module with further elements of one of its tuples, as the code says."""
    (added,), lines = ast.parse(code).body, text.splitlines(keepends=True)
    assert isinstance(added, ast.Assign) and isinstance(added.value, ast.Tuple)
    first, *rest = added.value.elts
    assert isinstance(first, ast.Constant) and first.value is ...
    named = ast.unparse(added.targets[0])
    (there,) = (
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == named
    )
    assert isinstance(there, ast.Tuple) and there.elts[-1].end_lineno and there.elts[-1].end_col_offset
    row, column = there.elts[-1].end_lineno - 1, there.elts[-1].end_col_offset
    more = "".join(f", {ast.unparse(one)}" for one in rest)
    lines[row] = lines[row][:column] + more + lines[row][column:]
    return "".join(lines)
