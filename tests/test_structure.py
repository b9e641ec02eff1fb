"""scripts/structure.py on a made package whose circle, counts and way are known by construction."""

import pytest
import structure

FILES = {
    "__init__.py": '"""Made."""\n\n_HOME = {"prune": "prunus.loop"}\n',
    "loop.py": '''"""The loop."""

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
    return _deeper(weight)


def _deeper(weight):
    from prunus.passed_on import far
    return far(weight)


def unused():
    from prunus.never import reached
    return reached()
""",
    "passed_on.py": "from prunus.deep.place import far\n",
    "deep/__init__.py": "",
    "deep/place.py": """\
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from prunus.loop import prune


def far(x):
    return x
""",
    "classes.py": "class Thing:\n    def run(self, x):\n        return x\n",
    "tables.py": "from prunus.method import magnitude\nMETHODS = {'magnitude': magnitude}\n",
    "method.py": "def magnitude(x):\n    return x\n",
    "never.py": "from prunus import round_a\ndef reached():\n    return 1\n",
    "round_a.py": "import prunus.round_b\n",
    "round_b.py": "def late():\n    from prunus.round_c import x\n",
    "round_c.py": "from prunus.round_a import y\nx = 1\n",
}


@pytest.fixture
def source(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "prunus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_one_circle_is_found_also_through_an_import_in_a_function(source):
    modules = structure.read_package(source)
    graph = {name: module.imports for name, module in modules.items()}
    assert structure.circles(graph) == [["prunus.round_a", "prunus.round_b", "prunus.round_c"]]
    graph["prunus.round_c"] = set()
    assert structure.circles(graph) == []


def test_code_lines_are_those_without_comments_docstrings_and_blank_lines(source):
    modules = structure.read_package(source)
    assert modules["prunus.loop"].code_lines == 3 + 1 + 3 + 1
    assert modules["prunus.deep"].code_lines == 0
    assert modules["prunus.helpers"].code_lines == 2 + 3 + 3


def test_the_way_follows_names_and_neither_tables_nor_what_is_not_called(source):
    modules = structure.read_package(source)
    entry = structure.find_entry(modules, "prune")
    assert entry == ("prunus.loop", "prune")
    way = {"prunus.loop", "prunus.helpers", "prunus.classes", "prunus.deep.place"}
    assert structure.reached(modules, entry) == way


def test_the_packages_add_up(source, monkeypatch):
    monkeypatch.setattr(structure, "WAYS", {"weight": "prune"})
    rows = structure.describe(source)
    assert rows["files"] == len(FILES) == rows["files in prunus/"] + rows["files in prunus/deep/"]
    assert rows["code lines"] == rows["code lines in prunus/"] + rows["code lines in prunus/deep/"]
    assert (rows["import circles"], rows["files on the way of a weight"]) == (1, 4)


def test_every_way_begins_at_a_function_of_the_api():
    root = structure.ROOT / "src" / "prunus"
    modules = {"prunus": structure.Module("prunus", root / "__init__.py")}
    for function in structure.WAYS.values():
        module, name = structure.find_entry(modules, function)
        text = (root.parent / module.replace(".", "/")).with_suffix(".py").read_text()
        assert f"\ndef {name}(" in text
