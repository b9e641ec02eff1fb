"""What CONTRIBUTING promises of a task, a backend, a profile (one file, at most a line each) and an engine (two files).

Task, profile and engine are those of the page itself. The package is copied to a temporary folder, the files and
lines are added there, and its command runs them.
"""

import ast
import json
import re
import shutil
import sqlite3
import textwrap
from pathlib import Path

import contributing
import pytest
import warm_processes

import prunus
from prunus.evaluation.tasks import maths

pytestmark = warm_processes.in_one_worker  # fixtures of the module are made once

BACKEND = r'''
import re

from prunus.checkpoint.resolve import load_tokenizer
from prunus.evaluation.engine import Backend
from prunus.evaluation.requests import Completion, follow_ups


class Toy(Backend):
    """Answers every prompt with the sum in its question."""

    def __init__(self, folder):
        self.tokenizer = load_tokenizer(folder)

    def generate(self, requests, sampling):
        found = []
        for request in requests:
            said = str(eval(re.search(r"\d\+\d", self.tokenizer.decode(request.prompt))[0]))
            ids = self.tokenizer.encode(said, add_special_tokens=False)[: request.max_new_tokens - 1]
            found.append(Completion(ids, min(request.stops)))
            self.generate(follow_ups(request, found[-1]), sampling)
        return found


def load(folder, device, vocabulary, engine):
    return Toy(folder)
'''
LINES = (  # after which line, the new one
    (
        "BACKENDS: dict[str, BackendEntry] = {\n",
        '    "toy": BackendEntry("prunus.evaluation.backends.toy:load", 2),\n',
    ),
    ("        LLAMA_CPP,\n", "        ABACUS,\n"),
    ("from prunus.plain_data import parse_json\n", "from prunus.settings.engines.abacus import ABACUS\n"),
)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder with the extended package."""
    folder = tmp_path_factory.mktemp("toy")
    source, copy = Path(prunus.__file__).parent, folder / "prunus"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "data"))
    (copy / "data").symlink_to(source / "data")
    contributing.apply("A task", copy)
    contributing.apply("A profile", copy)
    contributing.apply("An engine", copy)
    (copy / "evaluation/backends/toy.py").write_text(BACKEND)
    engines = copy / "settings/engines/__init__.py"
    for before, line in LINES:
        text = engines.read_text()
        assert text.count(before) == 1
        engines.write_text(text.replace(before, before + line))
    return folder


def run(package: Path, *arguments: str) -> str:
    """What the extended package's command prints."""
    status, printed = warm_processes.run_with(package, f"from prunus.cli import main; main({[*arguments]})", package)
    assert status == 0, printed
    return printed


@pytest.mark.slow
def test_a_task_a_backend_and_a_profile_of_ones_own(package):
    run(
        package,
        "eval",
        "tiny",
        "--task",
        "sums",
        "--engine",
        "toy",
        "--profile",
        "brief",
        "--budgets",
        "0,4",
        "--limit",
        "3",
    )
    with sqlite3.connect(package / "results.db") as connection:
        rows = connection.execute("SELECT problem_id, budget, correct, answer_cap FROM sample ORDER BY 1, 2").fetchall()
    connection.close()
    assert len(rows) == 6 and {row[1:] for row in rows} == {(0, 1, 5), (4, 1, 5)}
    assert all(name.startswith("sums/") for name, *_ in rows)


@pytest.mark.slow
def test_an_engine_in_eval_choose_and_find(package):
    """Its forms are tried, its options that only cost speed are none of a run's id, and its variables are."""
    evaluated, choice, search = contributing.commands("An engine")
    run(package, *evaluated, "--budgets", "4", "--store", "engine.db")
    chosen = json.loads(run(package, *choice, "--json"))
    assert chosen["forms"] == 5 and chosen["to_make"][0] == "tiny w8a8"
    assert "5 rungs (abacus: w8a8 to " in run(package, *search)
    code = """
        from prunus.settings.engines import EngineOptions
        from prunus.settings.serving import Serving
        engine = EngineOptions(args={"beads": 10, "wires": 2})
        print(Serving.of("abacus", engine, {"ABACUS_ROUNDS_DOWN": "1", "ROWS": "2"}).to_json())
    """
    status, printed = warm_processes.run_with(package, textwrap.dedent(code), package)
    assert status == 0, printed
    assert ast.literal_eval(printed) == {"args": {"wires": 2}, "environment": {"ABACUS_ROUNDS_DOWN": "1"}}


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("heading", ["A task", "A profile"])
def test_the_commands_of_the_page_run(package, heading):
    for n, words in enumerate(contributing.commands(heading)):
        store = f"{heading.split()[-1]}-{n}.db"
        run(package, *words, "--store", store)
        with sqlite3.connect(package / store) as connection:
            assert connection.execute("SELECT count(*) FROM sample").fetchone() == (8,)
        connection.close()


def test_what_the_page_shows_of_the_package_is_there():
    (shown,) = re.findall(
        r"```python\n(def gsm8k.*?)\n\n\nTASKS = \((.*?),\)\n```", contributing.section("A task"), re.DOTALL
    )
    there = Path(maths.__file__).read_text()
    assert all(part in there for part in shown)


@pytest.mark.slow
def test_they_are_named_in_help(package):
    told = " ".join(run(package, "eval", "--help-all").split())
    for words in ("[hf|vllm|llama.cpp|abacus|toy|openai]", "2 on toy, 64 on hf"):
        assert words in told
    assert "brief The built-in tiny reasoner, with short answers." in " ".join(run(package, "profiles").split())
    assert "sums 81 sums of two digits (written here)" in " ".join(run(package, "tasks").split())
