"""What `compare` writes for machines that build, and the action that calls it, as a shell script."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from fake_store import HOSTILE, make_store

import prunus
from prunus.cli import main
from prunus.reporting import gates
from prunus.results.words import verdict_in_words

ACTION = yaml.safe_load((Path(__file__).parents[2] / "action.yml").read_text())


@pytest.mark.slow
def test_a_summary_and_junit_say_what_the_comparison_says(tmp_path, capsys):
    store = make_store(tmp_path / "results.db")
    prunus.runs(store, rename=("drop-2", f"a|b {HOSTILE[0]}"))
    page, tests = tmp_path / "summary.md", tmp_path / "junit.xml"
    page.write_text("before\n")
    words = ["compare", str(store), "--margin", "0.2", "--require", "non-inferior", "--summary", str(page)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--junit", str(tests)])
    assert ended.value.code == 3 and page.read_text().startswith("before\n### Prunus: not passed\n")
    comparison = prunus.compare(store, margin=0.2)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    assert [len(row.split("|")) for row in rows] == [6] * len(comparison.others) and "<script>" not in page.read_text()
    for row, entry in zip(rows, comparison, strict=True):
        assert verdict_in_words(entry) in row
    cases = ElementTree.fromstring(tests.read_text()).findall("testcase")  # noqa: S314  of our own
    failed = [case.find("failure") is not None for case in cases]
    assert failed == [not entry.within_margin for entry in comparison] and {True, False} <= {*failed}
    assert "### Prunus: compared" in gates.summary(comparison, ())
    with pytest.raises(SystemExit):
        main(["compare", str(store), "--junit", str(tests)])
    assert "add --require" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("margin", "other", "code"), [("60%", "wanda-20,magnitude-20", 0), ("0.05", "", 3)])
def test_the_action_is_a_shell_script_that_ends_as_the_gate(tmp_path, margin, other, code):
    make_store(tmp_path / "a store.db")
    (step,) = ACTION["runs"]["steps"]
    given = {name: each["default"] for name, each in ACTION["inputs"].items()}
    given |= {"store": "a store.db", "margin": margin, "other": other, "require": "non-inferior", "install": ""}
    filled = {name: given[text.split("inputs.")[1].split(" ")[0]] for name, text in step["env"].items()}
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **filled, "PATH": paths, "GITHUB_STEP_SUMMARY": str(tmp_path / "s.md")}
    done = subprocess.run(
        ["bash", "-c", step["run"]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("Prunus: passed" if code == 0 else "Prunus: not passed") in (tmp_path / "s.md").read_text()
    ElementTree.parse(tmp_path / given["junit"])  # noqa: S314  of our own
