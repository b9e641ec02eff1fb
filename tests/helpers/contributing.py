"""The examples of CONTRIBUTING.md: files and lines that a page adds to the package, and the commands that use them.

A block of code belongs to the file that the line above it names, which it extends as `with_additions` says, or which is
new.
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
            path.write_text(with_additions(path.read_text("utf-8"), code), "utf-8")
        else:
            path.write_text(code, "utf-8")


def commands(heading: str) -> list[list[str]]:
    """The words after `prunus` of each command below a heading."""
    lines = "".join(COMMANDS.findall(section(heading))).splitlines()
    return [shlex.split(line)[1:] for line in lines]


def with_additions(text: str, code: str) -> str:
    """The text of a module with what the code says: members of a class, elements of a tuple, functions.

    A class or a tuple whose first part is `...` gets the others. A function takes the place of that of its name; a new
    one stands before the tuple or class that follows it in the code.
    """
    new: list[str] = []
    for node in ast.parse(code).body:
        lines, source = text.splitlines(keepends=True), ast.get_source_segment(code, node) or ""
        if isinstance(node, ast.FunctionDef):
            if (there := defined(text, node.name)) is None:
                new.append(f"{source}\n\n\n")
            else:
                lines[there.lineno - 1 : there.end_lineno] = [f"{source}\n"]
        elif isinstance(node, ast.ClassDef):
            there = defined(text, node.name)
            assert isinstance(there, ast.ClassDef) and ast.unparse(node.body[0]) == "..."
            last = [member for member in there.body if isinstance(member, ast.Assign | ast.AnnAssign)][-1]
            lines[last.end_lineno or 0 : last.end_lineno] = [f"    {ast.unparse(member)}\n" for member in node.body[1:]]
        else:
            lines = with_elements(text, node, new)
        text = "".join(lines)
    return text


def defined(text: str, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    """The function or class of this name in a module."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return next((node for node in ast.parse(text).body if isinstance(node, kinds) and node.name == name), None)


def with_elements(text: str, added: ast.stmt, before: list[str]) -> list[str]:
    """The lines of a module with further elements of one of its tuples. before: lines that are put before it."""
    lines = text.splitlines(keepends=True)
    assert isinstance(added, ast.Assign) and isinstance(added.value, ast.Tuple)
    first, *rest = added.value.elts
    assert isinstance(first, ast.Constant) and first.value is ...
    named = ast.unparse(added.targets[0])
    (whole,) = (
        node for node in ast.parse(text).body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == named
    )
    there = whole.value
    assert isinstance(there, ast.Tuple) and there.elts[-1].end_lineno and there.elts[-1].end_col_offset
    row, column = there.elts[-1].end_lineno - 1, there.elts[-1].end_col_offset
    more = "".join(f", {ast.unparse(one)}" for one in rest)
    lines[row] = lines[row][:column] + more + lines[row][column:]
    return [*lines[: whole.lineno - 1], *before, *lines[whole.lineno - 1 :]]
