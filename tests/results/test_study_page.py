"""The tables of the study of a 1.5B are those of the rows that stand in the repository.

All is counted again: accuracies in SQL, verdicts and intervals by a gambler written out for one difference at a time,
and the share of the scaling that is kept by resampling problems.
"""

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from math import log, log1p, sqrt

import numpy as np
import pytest
import study_page
from pages import written

import prunus
from prunus.store.characters import MINUS

RUNS = ["dense", *(name for name, _ in study_page.VARIANTS.values())]
BUDGETS = 64, 128, 256, 512
ROWS = "SELECT problem_id, budget, correct, ended, thinking_tokens + answer_tokens FROM sample WHERE run_id = ?"


AREA = np.array([1, 2, 2, 1]) / 6  # trapezoids over the logarithm of the budget
SLOPE = np.array([-3, -1, 1, 3]) / 10  # the least-squares slope on it
LEVELS = [0.05 / s / k for s in (1, 2) for k in range(1, 17)] + [1.5**-k for k in range(36)]


@pytest.fixture(scope="module")
def study() -> study_page.Study:
    return study_page.read()


@pytest.fixture(scope="module")
def store() -> Iterator[sqlite3.Connection]:
    with study_page.unpacked() as path, closing(sqlite3.connect(path)) as opened:
        yield opened


def cells(study: study_page.Study) -> dict[str, list[str]]:
    """The cells of the table of accuracies, by what the page calls the run."""
    lines = [line.strip("| ").split(" | ") for line in study_page.accuracies(study)[2:]]
    return {name: [cell.strip() for cell in rest] for name, *rest in lines}


def run_ids(study: study_page.Study) -> dict[str, str]:
    everything = [study.comparison.base, *study.comparison.others]
    return {study_page.name_of(run): run.run for run in everything}


def test_all_runs_have_the_same_problems_at_all_budgets_and_no_texts(study, store):
    counts = {
        run: store.execute("SELECT DISTINCT problem_id, budget FROM sample WHERE run_id = ?", (run,)).fetchall()
        for (run,) in store.execute("SELECT DISTINCT run_id FROM sample").fetchall()
    }
    assert len(counts) == len(cells(study)) + 1, "and an A/A control"
    problems = {problem for problem, _ in next(iter(counts.values()))}
    for rows in counts.values():
        assert {problem for problem, _ in rows} == problems and len(rows) == len(problems) * len(BUDGETS)
    assert len(problems) % 100 == 0 and problems
    assert all(int(problem.removeprefix("gsm8k/")) < 1000 for problem in problems), "the rest is held out"
    assert store.execute("SELECT count(*) FROM sample WHERE thinking != '' OR text != ''").fetchone() == (0,)
    assert store.execute("SELECT count(*) FROM asked").fetchone() == (0,)


def test_accuracies_ends_and_tokens_are_counted_again(study, store):
    shown, ids = cells(study), run_ids(study)
    assert [*shown] == [name for name in RUNS if name in shown] and len(shown) > 1
    right = dict[str, np.ndarray]()
    for name, row in shown.items():
        rows = store.execute(ROWS, (ids[name],)).fetchall()
        problems = sorted({row[0] for row in rows})
        place = {problem: number for number, problem in enumerate(problems)}
        right[name] = np.zeros((len(problems), len(BUDGETS)))
        for problem, budget, correct, _, _ in rows:
            right[name][place[problem], BUDGETS.index(budget)] = correct
        assert [float(cell) for cell in row[:4]] == pytest.approx(100 * right[name].mean(axis=0), abs=0.0501)
        last = [row for row in rows if row[1] == BUDGETS[-1]]
        assert float(row[7]) == pytest.approx(100 * np.mean([row[3] == "natural" for row in last]), abs=0.501)
        solved = sum(row[2] for row in last)
        assert float(row[8].replace(",", "")) == pytest.approx(sum(row[4] for row in last) / solved, abs=0.501)
        if name != "dense":
            each = right[name] - right["dense"]
            area = 100 * (each[:, 0] / 2 + each[:, 1] + each[:, 2] + each[:, 3] / 2) / 3
            assert float(row[4].split(" ")[0].replace(MINUS, "-")) == pytest.approx(area.mean(), abs=0.0501)


@pytest.fixture(scope="module")
def right(study, store) -> dict[str, np.ndarray]:
    """(P, B) whether each answer is right, by what the page calls the run; problems in the order of the bets."""
    keys = dict(store.execute("SELECT problem_id, digest FROM question").fetchall())
    order = sorted(keys, key=lambda problem: hashlib.sha256(f"bets|{keys[problem]}".encode()).digest())
    place = {problem: number for number, problem in enumerate(order)}
    found = dict[str, np.ndarray]()
    for name, run in run_ids(study).items():
        found[name] = np.zeros((len(order), len(BUDGETS)))
        for problem, budget, correct, *_ in store.execute(ROWS, (run,)):
            found[name][place[problem], BUDGETS.index(budget)] = correct
    return found


def succeeds(differences: Sequence[float], null: float, level: float) -> bool:
    """Whether the gambler who bets that the mean is above a null multiplies the money by 1 / level."""
    goal, wealth, squares = log(1 / level), 0.0, 0.25
    for t, difference in enumerate(differences):
        if wealth >= goal:
            return True
        mean_square, left = squares / (t + 1), len(differences) - t
        bet = min(sqrt(2 * (goal - wealth) / (mean_square * left)), 0.99 / (1 + null))
        wealth += log1p(bet * (difference - null))
        squares += (difference - null) ** 2
    return wealth >= goal


def p_value(differences: Sequence[float], null: float) -> float:
    """The smallest level at which, and at all larger ones, the gambler succeeds."""
    smallest = 1.0
    for level in sorted(LEVELS, reverse=True):
        if level < 1 and not succeeds(differences, null, level):
            break
        smallest = level
    return smallest


def lower_end(differences: Sequence[float], level: float) -> float:
    """The mean up to which all means of a fine grid are rejected."""
    grid = np.arange(-0.5, 0.5, 5e-4)
    rejected = [succeeds(differences, null, level) for null in grid]
    return float(grid[rejected.index(False) - 1])


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """The p-values, corrected for the number of tests."""
    largest, corrected = 0.0, dict[str, float]()
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = largest
    return corrected


def test_verdicts_and_intervals_are_computed_again(study, right):
    gains = {name: (rows - right["dense"]) @ AREA for name, rows in right.items() if name != "dense"}
    within = holm({name: p_value(each, -study_page.MARGIN) for name, each in gains.items()})
    worse = holm({name: p_value(-each, 0.0) for name, each in gains.items()})
    better = holm({name: p_value(each, 0.0) for name, each in gains.items()})
    words = set[str]()
    for name, each in gains.items():
        area, word, *_ = cells(study)[name][4:]
        direction = "better" if better[name] <= 0.025 else "worse" if worse[name] <= 0.025 else ""
        ruled_out = "loss ruled out" if within[name] <= 0.05 else "not decided"
        words.add(word)
        assert word.partition(",")[0] == direction or word == ruled_out, (name, word)
        low, high = (float(end.replace(MINUS, "-")) for end in re.findall(r"[−+][\d.]+", area)[1:])
        # Prunus tries means on a coarser grid, up to 0.6 points apart, and takes the outer one.
        ends = lower_end(each, 0.05 / len(gains)), -lower_end(-each, 0.025 / len(gains))
        assert 100 * ends[0] - 0.6 < low < 100 * ends[0] + 0.06 and 100 * ends[1] - 0.06 < high < 100 * ends[1] + 0.6
        assert (low > -100 * study_page.MARGIN) == (within[name] <= 0.05) and (high < 0) == (direction == "worse")
    assert {"worse", "loss ruled out"} <= words


def test_the_share_of_the_scaling_that_is_kept_is_resampled(study, right):
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(right["dense"]), size=(4000, len(right["dense"])))
    base = right["dense"] @ SLOPE
    for name, row in cells(study).items():
        if name != "dense":
            shown = [float(number.replace(MINUS, "-")) for number in re.findall(r"−?\d+", row[6])]
            each = right[name] @ SLOPE
            ends = np.quantile(each[drawn].mean(axis=1) / base[drawn].mean(axis=1), [0.025, 0.975])
            assert shown[0] == pytest.approx(100 * each.mean() / base.mean(), abs=0.51)
            assert shown[1:] == pytest.approx(100 * ends, abs=3), name


def test_budgets_that_suffice_are_those_of_the_rows(study, right):
    sentence, exchange = study_page.levels(study.efforts)
    levels = {
        name: [int(budget) for budget in re.findall(r"\d+", tokens)]
        for tokens, names in re.findall(r"(\d+, \d+ and \d+) for (.*?)[;.]", sentence)
        for name in names.split(", ")
    }
    others = levels.pop("all others")
    assert levels.keys() < right.keys() and exchange.endswith(" for all others.")
    said = re.findall(r"([^:;]+) for (.*?)[;.]", exchange)
    groups = {name: words for words, names in said for name in names.split(", ")}
    as_right = {name: groups.get(name, groups["all others"]).strip() for name in right if name != "dense"}
    assert as_right["Wanda 20 %"] == as_right["Wanda 20 % by LayerIF"] == "256 to more than 512"
    assert as_right["without 1 of 28 blocks"] == as_right["without 2 of 28 blocks"] == "no budget up to 512"
    for name, named in {**dict.fromkeys(right, others), **levels}.items():
        for lost, budget in zip((0.02, 0.05, 0.1), named, strict=True):
            place = BUDGETS.index(budget)
            below = right[name][:, :place] - right[name][:, -1:]
            assert right[name][:, place].mean() > right[name][:, -1].mean() - lost
            if place:  # the next smaller budget loses so much, or nobody could say that it does not
                assert p_value(below[:, -1], -lost) > 0.05 / 3


def test_verdicts_wait_for_all_problems(study):
    complete = {entry.primary.all_problems for entry in study.comparison.others}
    assert len(complete) == 1
    words = {row[5] for name, row in cells(study).items() if name != "dense"}
    assert (words == {"unfinished"}) == (complete != {300})


def test_the_table_names_the_papers_mean(study):
    found = {name: row[9] for name, row in cells(study).items() if name != "dense"}
    assert all(re.fullmatch(r"[−+]\d+\.\d \(40\)", text) for text in found.values()), found
    assert found["without 1 of 28 blocks"].startswith(MINUS)


def test_the_store_is_read_by_the_commands(study):
    with study_page.unpacked() as path:
        runs = prunus.runs(path)
    with_rows = [run for run in runs if run.rows]
    assert {run.rows for run in with_rows} == {4 * study.comparison.others[0].primary.all_problems}


def test_page_and_picture_are_written_from_the_rows(study):
    page = written(study_page.PAGE, "study_page")
    # The ends of the A/A control's interval are resampled, here less often than for the page.
    shown, again = (re.sub(r"(points?|by \S+) \[.*?\]", r"\1", text) for text in (page, study_page.tables(study)))
    assert shown == again
    assert study_page.PICTURE.read_text("utf-8") == study_page.picture(study)
