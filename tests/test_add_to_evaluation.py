"""What CONTRIBUTING promises: a task, a backend and a profile are one file and at most one line each.

The package is copied to a temporary folder, the files and lines are added there, and its command runs them.
"""

import shutil
import sqlite3
from pathlib import Path

import pytest
import warm_processes

import prunus

pytestmark = warm_processes.in_one_worker  # fixtures of the module are made once

TASK = """
from prunus.evaluation.tasks.problem import Problem, Task


def load():
    return [Problem(f"toy/{n}", "toy", f"Say {n}.", str(n), "integer") for n in range(3)]


TASKS = (Task("toy", "written here", "integer", "say a number", load),)
"""
BACKEND = '''
from prunus.checkpoint.resolve import load_tokenizer
from prunus.evaluation.engine import Backend
from prunus.evaluation.requests import Completion, follow_ups


class Toy(Backend):
    """Answers every prompt with the digits of its question."""

    def __init__(self, folder):
        self.tokenizer = load_tokenizer(folder)

    def generate(self, requests, sampling):
        found = []
        for request in requests:
            said = self.tokenizer.decode(request.prompt).split("Say ")[1][0]
            ids = self.tokenizer.encode(said, add_special_tokens=False)[: request.max_new_tokens - 1]
            found.append(Completion(ids, min(request.stops)))
            self.generate(follow_ups(request, found[-1]), sampling)
        return found


def load(folder, device, vocabulary, engine):
    return Toy(folder)
'''
PROFILE = """
format = 1
name = "toy"
extends = "tiny"

[answer]
tokens = 5
"""
LINES = {
    "evaluation/tasks/__init__.py": ("FILES = (\n", '    "toy_task",\n'),
    "settings/engines.py": (
        "BACKENDS: dict[str, BackendEntry] = {\n",
        '    "toy": BackendEntry("prunus.evaluation.backends.toy:load", 2),\n',
    ),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder with the extended package."""
    folder = tmp_path_factory.mktemp("toy")
    source, copy = Path(prunus.__file__).parent, folder / "prunus"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "data"))
    (copy / "data").symlink_to(source / "data")
    (copy / "evaluation/tasks/toy_task.py").write_text(TASK)
    (copy / "evaluation/backends/toy.py").write_text(BACKEND)
    (copy / "evaluation/profiles/toy.toml").write_text(PROFILE)
    for name, (before, line) in LINES.items():
        text = (copy / name).read_text()
        assert text.count(before) == 1
        (copy / name).write_text(text.replace(before, before + line))
    return folder


def run(package: Path, *arguments: str) -> str:
    """What the extended package's command prints."""
    status, printed = warm_processes.run_with(package, f"from prunus.cli import main; main({[*arguments]})", package)
    assert status == 0, printed
    return printed


@pytest.mark.slow
def test_a_task_a_backend_and_a_profile_of_ones_own(package):
    run(package, "eval", "tiny", "--task", "toy", "--backend", "toy", "--profile", "toy", "--budgets", "0,4")
    with sqlite3.connect(package / "results.db") as connection:
        rows = connection.execute("SELECT problem_id, budget, correct, answer_cap FROM sample ORDER BY 1, 2").fetchall()
    connection.close()
    assert rows == [(f"toy/{n}", budget, 1, 5) for n in range(3) for budget in (0, 4)]


def test_they_are_named_in_help(package):
    told = " ".join(run(package, "eval", "--help").split())
    for words in ("[toy|hf|vllm|openai]", "2 on toy, 64 on hf"):
        assert words in told
    assert "toy " in run(package, "profiles")
    assert "toy say a number (written here)" in " ".join(run(package, "tasks").split())
