"""docs/measurements/choose.md shows what benchmarks/choose.json and choose.csv say, and these agree with each other."""

import csv
import re
from itertools import combinations
from math import comb
from pathlib import Path

import pytest
from choose_page import CHOICE, PICTURE, Published, forms_table, limits_table, measured, picture
from pytest import approx
from scipy.stats import binomtest

from prunus.studies.choose.files import read_choice
from prunus.studies.choose.outcome import Outcome
from prunus.studies.choose.page import page
from prunus.studies.choose.records import Choice
from prunus.studies.choose.rows import FormRows

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


def test_its_page_begins_with_the_choice_and_the_best_of_what_costs_no_more(data):
    first = page(data).partition('aria-label="The choice and its cheaper equals"><thead>')[2].partition("</table>")[0]
    first = re.sub(' data-title="[^"]*"', "", first)
    names = re.findall(r'<th scope="row">.*?<bdi>(.*?)</bdi>', first)
    (chosen,) = [row for row in data.shown.choices if row.state == "chosen"]
    cheaper = [
        row.accuracy for row in data.shown.choices
        if row.state == "fits" and row.bytes <= chosen.bytes and row.seconds and row.seconds <= chosen.seconds
    ]  # fmt: skip
    assert len(names) == 8 < 1 + len(cheaper) and chosen.name.startswith(names[0])
    best = sorted(cheaper, reverse=True)[:7]
    shown = re.findall(r">(\d+\.\d)<small>(\d+\.\d) to (\d+\.\d)</small></td><td>\d+\.\d</td><td><bdi>fits", first)
    assert [float(share) for share, _, _ in shown] == approx([round(100 * share, 1) for share in best])


def test_every_accuracy_has_bounds_that_the_exact_ones_of_so_many_choices_do_not_beat_by_much(data, rows):
    """Clopper and Pearson's at the level of each, which may look at once only, against those that hold at any time."""
    fit = [row for row in data.shown.choices if row.accuracy is not None]
    level = 1 - data.declared.alpha / len(fit)
    for row in fit:
        exact = binomtest(round(row.accuracy * data.shown.rounds), data.shown.rounds).proportion_ci(level)
        assert 0 <= row.low < row.accuracy < row.high <= 1
        assert row.high - row.low == approx(exact.high - exact.low, abs=0.2)


def test_what_is_claimed_follows_from_the_rows(data, rows):
    read = FormRows(rows, data.declared)
    outcome = Outcome(data.declared, data.costs, read, None, most=data.shown.rounds)
    shown = outcome.shown()
    assert shown.chosen is not None and data.shown.chosen is not None
    assert shown.chosen.name == data.shown.chosen.name
    assert (shown.low, shown.high, shown.excess) == approx((data.shown.low, data.shown.high, data.shown.excess))
    assert list(shown.claims) == list(data.shown.claims)
    bounds = [[(row.low, row.high) for row in of.choices] for of in (shown, data.shown)]
    assert [approx(pair) for pair in bounds[0]] == bounds[1]
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
    p = [sign_test(fastest, other) for other in others.values()]
    pairs = [
        (abs(sum(first.values()) - sum(second.values())), sign_test(first, second))
        for first, second in combinations(others.values(), 2)
    ]
    right = {
        form.form: sum(looked[form.run, 128].values()) for form in data.declared.forms if form.model == "qwen-1.5b"
    }
    most = right.pop("gguf-q4_0")
    assert most > max(right.values())
    assert (
        f"solves {sum(fastest.values())} of {PROBLEMS} problems within 256 tokens where they solve {min(totals)} to"
        f" {max(totals)} (exact sign tests: p = {min(p):.1g} to {max(p):.1g}, not corrected); other forms of it differ"
        f" by at most {max(pairs)[0]} (p = {min(each for _, each in pairs):.1g}). Within 128 tokens it solves the most,"
        f" {most} where they solve {min(right.values())} to {max(right.values())}"
    ) in words(PAGE)


def test_the_howto_quotes_what_the_published_choice_claims(data):
    howto = words(PAGE.parents[1] / "choose.md").replace(" > ", " ").replace(" no other choice", " > no other choice")
    (claim,) = [claim for claim in data.shown.claims if claim.startswith("no other choice")]
    assert f"> {claim} " in howto
    assert f"--margin {data.declared.margin:g} " in PAGE.read_text("utf-8")


def test_the_page_says_what_the_same_file_solves_twice(data, rows):
    """Q8_0 in llama.cpp under the cache in f16: for the choice, and for the page of servings."""
    looked, found = solved(data, rows), list[str]()
    for model in ("0.5B", "1.5B"):
        with (PAGE.parents[2] / "benchmarks/serving.csv").open(newline="") as file:
            served = {
                row["problem_id"]: row["correct"] == "1"
                for row in csv.DictReader(file)
                if (row["engine"], row["model"], row["serving"], row["budget"]) == ("llama.cpp", model, "KV f16", "512")
            }
        (run,) = [form.run for form in data.declared.forms if form.name == f"qwen-{model.lower()} gguf-q8_0"]
        found += [f"{sum(looked[run, 512][name] for name in served)}", f"{sum(served.values())} of {len(served)}"]
    chosen, once, again, twice = found
    few, fewer = once.split()[0], twice.split()[0]
    assert (
        f"Q8_0 solves {chosen} of these at 512 tokens (0.5B) and {again} of the first {twice.split()[-1]} (1.5B), and"
        f" {few} and {fewer} of the same problems"
    ) in words(PAGE)


def words(page: Path) -> str:
    """The text of a page in one line."""
    return " ".join(page.read_text("utf-8").split())


def sign_test(first: dict[str, bool], second: dict[str, bool]) -> float:
    """Of problems that only one of two forms solved: the p-value of an exact sign test."""
    won, lost = (sum(first[name] - second[name] == sign for name in first) for sign in (1, -1))
    return min(1.0, 2 * sum(comb(won + lost, few) for few in range(min(won, lost) + 1)) / 2 ** (won + lost))


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
