"""scripts/structure.py on a made package whose circle, counts and way are known by construction."""

import ast
from pathlib import Path

import pytest
import structure

FILES = {
    "__init__.py": '"""Made."""\n',
    "__init__.pyi": "from prunus.loop import prune as prune\n",
    "loop.py": '''"""The loop."""

import prunus
from prunus import helpers
from prunus.classes import Thing
from prunus.tables import METHODS


def prune(weight):
    """Not code:
    two lines of docstring."""
    # nor is this
    helpers.used(
        weight,
    )
    return Thing().run(METHODS)
''',
    "helpers.py": """\
def used(weight):
    unused = weight
    return _deeper(unused)


def _deeper(weight):
    from prunus.passed_on import far
    return far(weight)


def unused():
    from prunus.never import reached
    return reached()
""",
    "passed_on.py": "from prunus.deep.place import far\n",
    "deep/__init__.py": "",
    "deep/place.py": "def far(weight):\n    return weight\n",
    "classes.py": "class Thing:\n    def run(self, x):\n        return x\n",
    "tables.py": "from prunus.method import magnitude\nMETHODS = {'magnitude': magnitude}\n",
    "method.py": "def magnitude(x):\n    return x\n",
    "never.py": "from prunus import round_a\ndef reached(weight=1):\n    return weight\n",
    "round_a.py": "import prunus.round_b\n",
    "round_b.py": "def late():\n    from prunus.round_c import x\n",
    "round_c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from prunus.round_a import y\nx = 1\n",
}


@pytest.fixture
def source(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "prunus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_one_circle_is_found_also_through_imports_in_a_function_and_for_types(source):
    modules = structure.read_package(source)
    graph = {name: module.imports for name, module in modules.items()}
    assert structure.circles(graph) == [["prunus.round_a", "prunus.round_b", "prunus.round_c"]]
    graph["prunus.round_c"] = set()
    assert structure.circles(graph) == []


def test_code_lines_are_those_without_comments_docstrings_and_blank_lines(source):
    modules = structure.read_package(source)
    assert modules["prunus.loop"].code_lines == 4 + 1 + 3 + 1
    assert modules["prunus.deep"].code_lines == 0
    assert modules["prunus.helpers"].code_lines == 3 + 3 + 3


def test_the_way_follows_names_and_neither_tables_nor_what_is_not_called(source):
    modules = structure.read_package(source)
    entry = structure.find_entry(modules, "prune")
    assert entry == ("prunus.loop", "prune")
    assert structure.reached(modules, entry, {"weight"}) == {"prunus.loop", "prunus.helpers", "prunus.deep.place"}
    assert structure.reached(modules, entry, {"x"}) == {"prunus.classes"}


COMMANDS = """# Commands

## prunus prune

```
Usage: prunus prune [OPTIONS] MODEL OUT

Options:
  -q, --quiet             Print errors only.
  -v, --verbose           Show the traceback.
  --sparsity FLOAT        Share of zeros; leave out
                          --pattern then.
  --sparse / --no-sparse  With the kernel.
  -h, --help              Show this message and exit.
```

## prunus tasks

```
Options:
  --json  Print JSON.
  --help  Show this message and exit.
```
"""


def test_the_rows_of_a_tree(source, monkeypatch):
    monkeypatch.setattr(structure, "WAYS", {"weight": ("prune", {"weight"})})
    (source / "docs" / "more").mkdir(parents=True)
    (source / "docs" / "commands.md").write_text(COMMANDS)
    (source / "docs" / "more" / "page.md").write_text("Three more words.\n")
    (source / "prunus").rename(source / "package")
    (source / "src").mkdir()
    (source / "package").rename(source / "src" / "prunus")
    rows = structure.describe(source)
    assert (rows["commands"], rows["options"], rows["options of prune"]) == (2, 3, 2)
    assert rows["words of docs"] == len(COMMANDS.split()) + 3
    code = {name: text for name, text in FILES.items() if name.endswith(".py")}
    assert rows["files"] == len(code) == rows["files in prunus/"] + rows["files in prunus/deep/"]
    assert rows["non-blank lines"] == rows["lines in prunus/"] + rows["lines in prunus/deep/"]
    assert rows["non-blank lines"] == sum(len([*filter(str.strip, text.splitlines())]) for text in code.values())
    assert (rows["import circles"], rows["files on the way of a weight"]) == (1, 3)
    assert rows["public functions that return dicts"] == 1  # prune, whose type is not written


@pytest.mark.parametrize(
    ("written", "is_dict"),
    [("", True), (" -> dict[str, int]", True), (" -> list[Mapping[str, X]]", True), (" -> X | None", False)],
)
def test_functions_that_return_dicts(written, is_dict):
    assert structure.returns_dict(ast.parse(f"def f(x: dict){written}: ...").body[0]) == is_dict
    assert not structure.returns_dict(ast.parse("class Dict: ...").body[0])


@pytest.mark.slow
def test_what_tests_share_stands_in_helpers():
    """A test module that imports another is changed by whoever changes the other's cases."""
    names = {path.stem for path in Path(__file__).parent.rglob("test_*.py")}
    for path in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {module.rpartition(".")[2] for module in modules} & names, f"{path}: {ast.unparse(node)}"


def test_every_way_begins_at_a_function_of_the_api():
    root = structure.ROOT / "src" / "prunus"
    modules = {"prunus": structure.Module("prunus", root / "__init__.py")}
    for function, _ in structure.WAYS.values():
        module, name = structure.find_entry(modules, function)
        text = (root.parent / module.replace(".", "/")).with_suffix(".py").read_text()
        assert f"\ndef {name}(" in text


CORRIDORS = {
    "door.py": '''"""The same as window."""

from importlib import import_module


class Row:
    """Those of the store."""


def read(data: dict[str, Any], engine: str) -> object:
    """What a store of an older version has."""
    one = data.get("plan", data.get("model"))
    return import_module("prunus.window").f(one) if engine == "vllm" else None
''',
    "window.py": "class Row: ...\nclass Cell: ...\n",
    "evaluation/backends/vllm.py": 'def f(engine: str) -> bool:\n    """Whether it is."""\n    return engine == "hf"\n',
}
COUNTED = {
    "looked up by key": 2,
    "untyped mappings": 1,
    "engines by string": 1,
    "imports by string": 1,
    "class names used twice": 1,
    "earlier formats": 1,
    "leaning docstrings": 3,
    "the name `one`": 2,
}


def test_the_gauges_of_corridors_count_and_a_grown_one_is_named(tmp_path, monkeypatch):
    for name, text in CORRIDORS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert structure.corridors(tmp_path) == COUNTED
    monkeypatch.setattr(structure, "MOST", COUNTED)
    assert structure.grown(tmp_path) == []
    monkeypatch.setattr(structure, "MOST", COUNTED | {"leaning docstrings": 2})
    assert structure.grown(tmp_path) == ["leaning docstrings: 3, of at most 2"]
