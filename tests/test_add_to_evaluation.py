"""What CONTRIBUTING promises: a task, a backend and a profile are one file and at most one line each.

The package is copied to a temporary folder, the files and lines are added there, and its command runs them.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import prunus

TASK = """
from prunus.evaluation.tasks.problem import Problem, Task


def load():
    return [Problem(f"toy/{n}", "toy", f"Say {n}.", str(n), "integer") for n in range(3)]


TASKS = (Task("toy", "written here", "integer", "say a number", load),)
"""
BACKEND = '''
from prunus.checkpoint.resolve import load_tokenizer
from prunus.evaluation.requests import Backend, Completion, follow_ups


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
    "engines.py": (
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


def run(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prunus", *arguments]
    environment = os.environ | {"PYTHONPATH": str(package)}
    return subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)


def test_a_task_a_backend_and_a_profile_of_ones_own(package):
    done = run(package, "eval", "tiny", "--task", "toy", "--backend", "toy", "--profile", "toy", "--budgets", "0,4")
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(package / "results.db") as connection:
        rows = connection.execute("SELECT problem_id, budget, correct, answer_cap FROM sample ORDER BY 1, 2").fetchall()
    connection.close()
    assert rows == [(f"toy/{n}", budget, 1, 5) for n in range(3) for budget in (0, 4)]


def test_they_are_named_in_help(package):
    told = " ".join(run(package, "eval", "--help").stdout.split())
    for words in ("[toy|hf|vllm|openai]", "2 on toy, 64 on hf"):
        assert words in told
    assert "toy " in run(package, "profiles").stdout
    assert "toy say a number (written here)" in " ".join(run(package, "tasks").stdout.split())
