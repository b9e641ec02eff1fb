"""docs/efforts.md says what the rows of benchmarks/efforts.py say, and these are what the package computes."""

import json
from collections import Counter
from math import sqrt
from pathlib import Path

import efforts as benchmark
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

PAGE = " ".join((ROOT / "docs/efforts.md").read_text("utf-8").split())
ROWS = [json.loads(line) for line in benchmark.ROWS.read_text("utf-8").splitlines()]


def errors(way: str, problems: int, draws: int = 1) -> list[float]:
    """The share of tables with a false level, of each truth, by plain loops."""
    shares = []
    for row in ROWS:
        if row["part"] != "errors" or (row["way"], row["problems"], row["draws"]) != (way, problems, draws):
            continue
        lost, gained = benchmark.TRUTHS[row["truth"]]
        false = 0
        for *passed, number in row["passed"]:
            named = [range(k) for k in passed]
            broken = (
                lost[k] - gained[k] >= 100 * margin
                for of, margin in zip(named, benchmark.MARGINS, strict=True)
                for k in of
            )
            false += number * any(broken)
        assert sum(number for *_, number in row["passed"]) == benchmark.TABLES
        shares.append(false / benchmark.TABLES)
    assert len(shares) == len(benchmark.TRUTHS)
    return shares


def in_words(share: float, percent: str = "") -> str:
    error = sqrt(share * (1 - share) / benchmark.TABLES)
    return f"{100 * share:.1f}{percent} ± {100 * error:.1f}"


@pytest.mark.parametrize("problems", [100, 200, 400])
def test_no_level_is_false_more_often_than_the_page_says(problems):
    level, uncorrected, estimate = (max(errors(way, problems)) for way in ("level", "uncorrected", "estimate"))
    assert f"| {problems} | {in_words(level, ' %')} | {in_words(uncorrected)} | {in_words(estimate)} |" in PAGE
    assert level <= 0.05 < uncorrected < estimate


def test_of_four_draws():
    assert (
        f"With four draws it is at most {in_words(max(errors('level', 100, 4) + errors('level', 200, 4)), ' %')}"
        in PAGE
    )


def test_what_levels_find():
    found = {row["problems"]: benchmark.octaves_above(row) for row in ROWS if row["part"] == "power"}
    for problems, octaves in found.items():
        assert f"{', '.join(f'{one:.2f}' for one in octaves)} with {problems:,}" in PAGE


def test_what_is_held_out():
    rows = [row for row in ROWS if row["part"] == "halves"]
    named, above, of_all = (sum(row[key] for row in rows) for key in ("named", "above", "above_of_all"))
    assert f"of {named:,} budgets that random halves" in PAGE and (above, of_all) == (1, 0)
    assert len({row["variant"] for row in rows}) == 7


@pytest.mark.slow
def test_rows_are_those_of_the_package():
    rng = np.random.default_rng([benchmark.SEED, 100, 1])
    made = benchmark.drawn(rng, *benchmark.TRUTHS["stairs"], 100, 1, benchmark.TABLES)
    assert made.mean() == pytest.approx(-np.mean(benchmark.STAIRS) / 100, abs=0.002)
    row = next(row for row in ROWS if (row["truth"], row["problems"], row["draws"]) == ("stairs", 100, 1))
    assert benchmark.counted(benchmark.passed(made)) == row["passed"] and row["way"] == "level"
    assert Counter(row["part"] for row in ROWS) == {"errors": 44, "power": 3, "halves": 21}
