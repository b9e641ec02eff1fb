"""The tables of the study of a 1.5B are those of the rows that stand in the repository, counted again in SQL."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import study_page

import prunus
from prunus.store.characters import MINUS

RUNS = ["dense", *(name for name, _ in study_page.VARIANTS.values())]
BUDGETS = 64, 128, 256, 512
ROWS = "SELECT problem_id, budget, correct, ended, thinking_tokens + answer_tokens FROM sample WHERE run_id = ?"


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
    page = study_page.PAGE.read_text("utf-8").partition(study_page.BEGIN)[2].partition(study_page.END)[0].strip()
    # The ends of the A/A control's interval are resampled, here less often than for the page.
    written, again = (re.sub(r"(points?|by \S+) \[.*?\]", r"\1", text) for text in (page, study_page.tables(study)))
    assert written == again
    assert study_page.PICTURE.read_text("utf-8") == study_page.picture(study)
