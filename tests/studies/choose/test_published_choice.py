"""docs/measurements/choose.md shows what benchmarks/choose.json and choose.csv say, and these agree with each other."""

from pathlib import Path

import pytest
from choose_page import CHOICE, PICTURE, Published, forms_table, limits_table, measured, picture
from pytest import approx

from prunus.studies.choose.files import read_choice
from prunus.studies.choose.outcome import Outcome
from prunus.studies.choose.records import Choice
from prunus.studies.choose.rows import Rows

PAGE = Path(__file__).parents[3] / "docs/measurements/choose.md"


@pytest.fixture(scope="module")
def data() -> Choice:
    return read_choice(CHOICE)


@pytest.fixture(scope="module")
def rows() -> Published:
    return Published()


def test_the_page_has_the_tables(data, rows):
    lines = PAGE.read_text("utf-8").splitlines()
    for line in (*forms_table(data, rows), *limits_table(data, rows)):
        assert line in lines


def test_what_is_claimed_follows_from_the_rows(data, rows):
    read = Rows(rows, data.declared)
    outcome = Outcome(data.declared, data.costs, read, None, most=data.shown.rounds)
    shown = outcome.shown()
    assert shown.chosen is not None and data.shown.chosen is not None
    assert shown.chosen.name == data.shown.chosen.name
    assert (shown.low, shown.high, shown.excess) == approx((data.shown.low, data.shown.high, data.shown.excess))
    assert list(shown.claims) == list(data.shown.claims)
    for run, digest in data.rows.items():
        assert read.digest(run, outcome.looked[run]) == digest


def test_accuracy_is_the_share_of_right_rows(data, rows):
    """Counted without the code of a choice."""
    looked = {problem for each in data.declared.order[:26] for _, problem in each}
    for one in measured(data, rows):
        mine = [row for row in rows.samples(one.run) if row.budget == one.budget and row.problem_id in looked]
        assert len(mine) == one.problems == 26
        assert one.accuracy == approx(sum(row.correct for row in mine) / 26)


def test_the_picture_is_drawn_from_them(data, rows):
    assert PICTURE.read_text("utf-8") == picture(data, rows)
