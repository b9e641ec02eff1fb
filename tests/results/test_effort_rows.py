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


def in_words(share: float, percent: str = "", tables: int = benchmark.TABLES) -> str:
    error = sqrt(share * (1 - share) / tables)
    return f"{100 * share:.1f}{percent} ± {100 * error:.1f}"


@pytest.mark.parametrize("problems", [40, 100, 200, 400, 1000])
def test_no_level_is_false_more_often_than_the_page_says(problems):
    level, uncorrected, estimate = (max(errors(way, problems)) for way in ("level", "uncorrected", "estimate"))
    assert f"| {problems:,} | {in_words(level, ' %')} | {in_words(uncorrected)} | {in_words(estimate)} |" in PAGE
    chance = 2 * sqrt(0.05 * 0.95 / benchmark.TABLES)
    assert level <= 0.05 + chance and 0.05 < uncorrected < estimate


def test_the_largest_error_is_chance():
    (row,) = (row for row in ROWS if row["part"] == "errors again")
    share = benchmark.false_tables(row) / sum(number for *_, number in row["passed"])
    assert share <= 0.05 and f"chance: of 4,000 other such tables {100 * share:.1f} %" in PAGE


def test_of_four_draws():
    assert (
        f"With four draws it is at most {in_words(max(errors('level', 100, 4) + errors('level', 200, 4)), ' %')}"
        in PAGE
    )


def test_what_levels_find():
    for row in ROWS:
        if row["part"] == "power":
            octaves = ", ".join(f"{octaves:.2f}" for octaves in benchmark.octaves_above(row))
            assert f"{octaves} with {row['problems']:,}{' of four draws' if row['draws'] == 4 else ''}" in PAGE


def test_levels_against_the_original_and_of_groups():
    """By plain loops over the budgets that a variant names."""
    lost, gained = benchmark.TRUTHS["stairs, 2 points either way"]
    shares = dict[int, float]()
    for row in ROWS:
        if row["part"] == "against the base":
            false = 0
            for *passed, number in row["passed"]:
                pairs = zip(passed, benchmark.MARGINS, strict=True)
                false += number * any(
                    lost[k] - gained[k] >= 100 * margin for named, margin in pairs for k in range(named)
                )
            shares[row["group"]] = max(shares.get(row["group"], 0.0), false / benchmark.EXCHANGED)
    assert shares.keys() == {1, 4, 10} and max(shares.values()) <= 0.05
    alone, *grouped = (in_words(shares[size], " %", benchmark.EXCHANGED) for size in (1, 4, 10))
    assert f"some level of a variant against the original is false in at most {alone}" in PAGE
    assert f"in groups of 4 and 10 that share their fate, in {' and '.join(grouped)}" in PAGE


def test_the_budget_at_which_a_variant_is_as_right_is_seldom_left_out():
    steps = [16 - place for place in range(17)]  # quarters of an octave below the largest budget, the smallest first
    rows, left_out = [row for row in ROWS if row["part"] == "crossing"], list[float]()
    for row in rows:
        place = steps.index(round(4 * row["octaves"]))
        wrong = sum(n for worse, better, n in row["apart"] if place < worse or place >= 17 - better)
        left_out.append(wrong / benchmark.EXCHANGED)
    assert max(left_out) <= 0.05 and len(rows) == len(benchmark.CROSSINGS) * len(benchmark.EXCHANGES)
    assert f"as right is left out in at most {in_words(max(left_out), ' %', benchmark.EXCHANGED)}" in PAGE
    no_end = {
        row["octaves"]: sum(n for _, better, n in row["apart"] if not better) / benchmark.EXCHANGED
        for row in rows
        if (row["problems"], row["draws"]) == (200, 1)
    }
    assert f"has no upper end in {100 * no_end[0.5]:.0f} % and {100 * no_end[1.5]:.0f} % of tables" in PAGE


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
    assert Counter(row["part"] for row in ROWS) == {
        "errors": len(benchmark.TRUTHS) * (3 * 5 + 2),
        "errors again": 1,
        "power": len(benchmark.POWER_SIZES),
        "halves": 21,
        "against the base": 6,
        "crossing": 8,
    }
