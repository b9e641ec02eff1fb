"""A file that cannot be read is told in one way, and a missing extra with the command that installs it."""

import os

import pytest

from prunus.cli import main
from prunus.errors import no_file, pip

MISSING = {
    "store": ("compare", "none.db"),
    "certificate": ("verify", "none.json"),
    "ladder": ("find", "tiny", "out", "--task", "tiny", "--ladder", "none.toml"),
    "study": ("study", "none.toml"),
    "profile": ("profiles", "none.toml"),
    "task file": ("eval", "tiny", "--task", "none.jsonl"),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_missing_file_is_told_in_one_way(what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*MISSING[what]])
    said = capsys.readouterr().err
    name = next(word for word in MISSING[what] if word.startswith("none."))
    assert said.startswith(f"error: the {what} '{name}' cannot be read: No such file or directory")
    assert ended.value.code == 2 and said.count("\n") == 1


def test_what_is_no_regular_file_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert no_file(tmp_path / "none") == "No such file or directory"
    assert no_file(tmp_path) == "it is a folder"
    assert no_file(tmp_path / "pipe") == "it is not a regular file"


def test_an_extra_is_installed_from_a_clone():
    assert pip("view") == "pip install '.[view]' in a clone of Prunus"
