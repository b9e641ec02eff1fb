"""docs/measurements/choose.md shows what benchmarks/choose.json and choose.csv say, and these agree with each other."""

from math import comb
from pathlib import Path

import pytest
from choose_page import CHOICE, PICTURE, Published, forms_table, limits_table, measured, picture
from pytest import approx

from prunus.studies.choose.files import read_choice
from prunus.studies.choose.outcome import Outcome
from prunus.studies.choose.records import Choice
from prunus.studies.choose.rows import Rows

PROBLEMS = 40  # that every form has
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
    looked = solved(data, rows)
    for one in measured(data, rows):
        assert len(looked[one.run, one.budget]) == one.problems == PROBLEMS
        assert one.accuracy == approx(sum(looked[one.run, one.budget].values()) / PROBLEMS)


def test_the_page_says_how_the_fastest_form_of_the_large_model_differs(data, rows):
    looked = solved(data, rows)
    others = {form.form: looked[form.run, 256] for form in data.declared.forms if form.model == "qwen-1.5b"}
    fastest = others.pop("gguf-q4_0")
    totals = [sum(other.values()) for other in others.values()]
    p = []
    for other in others.values():
        won, lost = (sum(fastest[name] - other[name] == sign for name in fastest) for sign in (1, -1))
        p.append(min(1.0, 2 * sum(comb(won + lost, few) for few in range(min(won, lost) + 1)) / 2 ** (won + lost)))
    words = " ".join(PAGE.read_text("utf-8").split())
    assert (
        f"solves {sum(fastest.values())} of {PROBLEMS} problems within 256 tokens where they solve {min(totals)} to"
        f" {max(totals)} (exact sign tests: p = {min(p):.1g} to {max(p):.1g}, not corrected); no other two forms of a"
        " model differ as much" in words
    )
    for model in ("qwen-0.5b", "qwen-1.5b"):
        rest = [form for form in data.declared.forms if form.model == model and form.name != "qwen-1.5b gguf-q4_0"]
        for budget in (128, 256, 512):
            counts = [sum(looked[form.run, budget].values()) for form in rest]
            assert max(counts) - min(counts) < max(totals) - sum(fastest.values())


def solved(data: Choice, rows: Published) -> dict[tuple[str, int], dict[str, bool]]:
    """Of each run and budget, by problem that all forms have in the order of the seed, whether it was solved."""
    looked = {problem for each in data.declared.order[:PROBLEMS] for _, problem in each}
    found: dict[tuple[str, int], dict[str, bool]] = {}
    for run in data.rows:
        for row in rows.samples(run):
            if row.problem_id in looked:
                found.setdefault((run, row.budget), {})[row.problem_id] = row.correct
    return found


def test_the_picture_is_drawn_from_them(data, rows):
    assert PICTURE.read_text("utf-8") == picture(data, rows)
