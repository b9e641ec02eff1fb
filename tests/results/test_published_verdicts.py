"""docs/measurements/verdicts.md has the numbers of the tables that benchmarks/verdicts.py kept; errors are nominal."""

from math import sqrt
from pathlib import Path

import verdicts
from finished import read_lines

TEXT = (Path(__file__).parents[2] / "docs/measurements/verdicts.md").read_text("utf-8")
PAGE = " ".join(TEXT.split())
KEPT = read_lines(verdicts.ROWS)
Cells = list[list[str]]


def kept(by: str, number: int = 0) -> Cells:
    """The cells of a table, its head first."""
    table = [table for table in KEPT if table["by"] == by][number]
    assert table["runs"] == 1000
    return [table["head"], *table["rows"]]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def most(cells: Cells, *columns: str) -> float:
    """The largest number of these columns."""
    return max(float(line[cells[0].index(column)]) for line in cells[1:] for column in columns)


def within(percent: float, nominal: float, runs: int) -> bool:
    """Whether the largest of many simulated rates may be nominal."""
    return percent <= nominal + 3.5 * 100 * sqrt(nominal / 100 * (1 - nominal / 100) / runs)


def test_what_is_chosen_after_seeing():
    first, again = kept("chosen", 0), kept("chosen", 1)
    names = {"14 variants": "14 variants", "20 seeds": "20 seeds", "26 budget lists": "26 lists of two to five budgets"}
    for name, words in names.items():
        assert row(words, first[1][first[0].index(name)], "").replace("|  |", "| |") in PAGE
    orders = first[1][first[0].index("20 orders of bets")]
    assert row("20 orders of the bets, of which Prunus has one", orders, "").replace("|  |", "| |") in PAGE
    for column, words in enumerate(
        (
            "20 groupings of the problems",
            "20 files with other ids",
            "20 files or caps with draws of their own",
            "30 bases of 3 to 32 draws from before the variant",
        ),
        1,
    ):
        assert row(words, *(line[column] for line in again[1:])) in PAGE
        corrected = [float(line[column].partition("(")[2].rstrip(")")) for line in again[1:]]
        assert all(within(percent, 5, 1000) for percent in corrected)


def test_noise_in_common():
    power, errors = kept("coupled_draws", 0), kept("coupled_draws", 1)
    of_500 = [line for line in power[1:] if line[0] == "500 x 3"]
    assert [line[1] for line in of_500] == ["0.0", "0.4", "0.7", "0.93"]
    alike, weighted = ([line[column] for line in of_500] for column in (2, 3))
    assert row("matched draws weighted", *weighted) in PAGE and row("all alike", *alike) in PAGE
    assert all(float(found) >= least for found, least in zip(weighted, (60, 67, 84, 98), strict=True))
    assert float(weighted[0]) > float(alike[0]) - 0.5
    largest = most(errors, "weighted", "certified")
    assert f"at most {largest} % of 4,000, in {len(errors) - 1} settings" in PAGE and within(largest, 5, 4000)


def test_draws_of_the_base():
    found, of_14, errors = kept("draws_of_the_base", 0), kept("draws_of_the_base", 1), kept("draws_of_the_base", 3)
    for line in found[1:]:
        if line[0] == "500" and line[1] in ("3", "16"):
            together = next(of for of in of_14[1:] if of[0] == "500")[of_14[0].index(line[1])]
            assert row(line[1], f"{line[2]} ({together})", line[4], line[5], line[6]) in PAGE
    largest = most(errors, "non-inferior", "certified")
    assert f"at most {largest} % of 20,000 comparisons" in PAGE and within(largest, 5, 20000)


def test_directions():
    found = kept("directions")
    sizes = [found[0].index(n) for n in ("30", "100", "500")]
    for line in found[1:]:
        if line[1] in ("1", "16") and line[0] != "few gain, the rest lose":
            name = line[0].removesuffix(", the rest gain")
            assert row(name, line[1], *(line[size].partition(" (")[0] for size in sizes)) in PAGE
    words = [float(part) for line in found[1:] for cell in line[2:] for part in cell.partition(" (")[0].split(" / ")]
    assert f"each wrong in at most {max(words)} % of comparisons" in PAGE and within(max(words), 2.5, 1000)


def test_looks_and_groups():
    looks = [line for line in kept("limits")[1:] if line[2] == "46"]
    together, alone = (sorted(float(line[column]) for line in looks) for column in (3, 4))
    assert f"in {together[0]} to {together[-1]} % of 4,000 comparisons, and in {alone[0]} to {alone[-1]} %" in PAGE
    assert within(together[-1], 5, 4000)
    for line in kept("groups")[1:]:
        assert line[1] != "4" or row(*line) in PAGE
