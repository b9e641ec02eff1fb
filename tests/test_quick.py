"""The times that tests took choose what make quick runs, and the order in which all start."""

import sys
from pathlib import Path

import pytest
from quick import fastest, longest_first

pytest_plugins = ["pytester"]


def test_the_fastest_that_fit_and_those_never_timed():
    seconds = {"a": 3.0, "b": 1.0, "new": None, "c": 2.0, "d": 1.5}
    assert fastest(seconds, 4.5) == {"new", "b", "d", "c"}
    assert fastest(seconds, 4.4) == {"new", "b", "d"}
    assert fastest(seconds, 0.5) == {"new"}


def test_long_groups_and_tests_start_first_and_the_rest_keep_their_order():
    units = {"a": "a", "b": "group", "c": "c", "d": "d", "e": "group", "f": "f"}
    seconds = {"a": 0.1, "b": 2.0, "c": 4.0, "d": 0.3, "e": 2.5, "f": 0.2}
    assert longest_first(units, seconds, 3.0) == ["b", "e", "c", "a", "d", "f"]
    assert longest_first(units, seconds, 9.0) == list(units)


MODULE = """
import time
import pytest

@pytest.fixture(scope="module")
def made():
    time.sleep(0.8)

@pytest.mark.slow
def test_marked():
    pass

def test_first_to_use_it(made):
    pass

def test_second_to_use_it(made):
    pass

def test_fast():
    pass

def test_takes_long():
    time.sleep(0.8)
"""


@pytest.mark.slow
def test_what_took_long_or_needs_what_takes_long_is_left_out(pytester: pytest.Pytester, monkeypatch):
    here = Path(__file__).parent
    source = (here / "conftest.py").read_text().replace("QUICK_SECONDS = 60", "QUICK_SECONDS = 0.5")
    assert "QUICK_SECONDS = 0.5" in source
    pytester.makeconftest(source)
    pytester.makeini("[pytest]\nmarkers =\n    slow\n    real_llm\n    browser\n    gpu\n")
    pytester.makepyfile(test_it=MODULE)
    monkeypatch.setenv("PYTHONPATH", str(here / "helpers"))
    for workers, options, passed in ((0, ["--quick"], 4), (2, [], 5), (2, ["--quick"], 1)):
        command = [sys.executable, "-m", "pytest", "-n", str(workers), "--dist", "loadgroup", *options]
        pytester.run(*command).assert_outcomes(passed=passed)
