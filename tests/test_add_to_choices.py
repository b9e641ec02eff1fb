"""A limit of `choose` is added, as CONTRIBUTING says, to a copy of the package, where it decides what fits."""

import shutil
from pathlib import Path

import contributing
import pytest
import warm_processes

import prunus

SCRIPT = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent / "helpers")!r})
from pathlib import Path
from small_choice import Made, declared_of
from prunus.cli import main
from prunus.studies.choose.page import page
from prunus.studies.choose.records import Choice

data = Made(Path("rows.db"), declared_of(tail=5.0)).chosen()
assert Choice.of(data.to_json()) == data and data.to_json()["declared"]["tail"] == 5.0
states = {{row.form: row.state for row in data.shown.choices if row.budget == 256}}
assert states == {{"dense": "too slow at times", "gguf-q8_0": "chosen", "gguf-q4_0": "worse"}}, states
assert "at most 2.0 GB and 20 s and 5 s for 95 %" in page(data) and "Against the tail" in page(data)
# 0.1 s for the prompt, and (64 + 2 + 8) tokens of 0.01 s each
(note,) = Made(Path("none.db"), declared_of(tail=0.5)).chosen().shown.notes
assert note == "nothing answers in 0.5 s for 95 %: the least is 0.84 s for 95 %", note
main(["choose", "--help"])
"""


@pytest.mark.slow
def test_the_limit_of_the_page_decides_what_fits(tmp_path):
    package = tmp_path / "src" / "prunus"
    shutil.copytree(Path(prunus.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    contributing.apply("A limit of", package)
    status, printed = warm_processes.run_with(tmp_path / "src", SCRIPT, tmp_path)
    assert status == 0 and "--tail X" in printed and "Most seconds of 95 % of answers." in printed, printed
