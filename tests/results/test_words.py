"""What is said of bounds: rounded to the safe side, and always on the side of the margin on which they lie."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from said import page_of

from prunus.reporting import prose
from prunus.results.cells import Cell, Entry, Needed, Stopping
from prunus.results.vocabulary import Verdict
from prunus.results.words import beside, bounds_in_points, interval_in_words, loss_in_words, rounded
from prunus.settings.margins import Margin
from prunus.statistics import anytime

MARGINS = (0.0, 0.01, 0.02, 0.0225, 0.03, 0.05, 0.06, 0.07, 0.145)


def blank(kind: Any, **values: Any) -> Any:
    return kind(**{field.name: None for field in fields(kind)} | values)


def entry(word: str, low: float, high: float = 1.0, margin: float = 0.03, **values: Any) -> Entry:
    cell = blank(
        Cell, n=200, difference=(low + high) / 2, base_accuracy=0.5, accuracy=0.5 + (low + high) / 2,
        settle=Needed(effect=0.03, draws=None, problems=450, note=None),
    )  # fmt: skip
    stopping = Stopping(tokens_ratio=1.0, per_correct=1.0, base_per_correct=1.0, budget=64, endings={})
    given = {
        "verdict": Verdict(word),
        "primary": cell,
        "margin": Margin(margin),
        "contradicted_at": [],
        "tasks": {},
    } | values
    given = {"low": low, "high": high} | given
    return blank(Entry, stopping=stopping, within_margin=word in ("non-inferior", "worse, within the margin"), **given)


def number(text: str) -> float:
    return float(text.replace("−", "-"))


@pytest.mark.parametrize("margin", MARGINS)
def test_a_printed_bound_lies_on_its_side_of_the_margin_and_says_no_more_than_holds(margin):
    rng = np.random.default_rng(0)
    near = margin + np.array([-3e-5, -1e-4, -4e-4, -6e-4, 3e-5, 1e-4, 4e-4, 6e-4])
    for loss in [*near, *rng.uniform(0.0001, 0.5, 300)]:
        if loss <= 0:
            continue
        word = "non-inferior" if loss < margin else "cannot tell"
        shown = float(loss_in_words(entry(word, -loss, margin=margin)).split()[-2])
        assert (shown < 100 * margin) == (loss < margin) and shown != 100 * margin
        assert 100 * loss - 1e-9 <= shown <= 100 * loss + 0.1
        for value in (loss, -loss):
            printed = number(beside(Margin(margin))(value))
            assert np.sign(printed - 100 * np.copysign(margin, value)) == np.sign(value - np.copysign(margin, value))
            assert abs(printed - 100 * value) <= 0.05 + 1e-9


def test_bounds_are_rounded_to_the_safe_side():
    assert rounded(1.21, 9, up=True) == "1.3" and rounded(1.29, 9, up=False) == "1.2"
    assert rounded(100 * 0.029, 9, up=True) == "2.9"  # not 3.0 for the rounding of 100 * 0.029
    assert rounded(2.97, 3, up=True) == "2.97" and rounded(0.04, 0, up=False) == "0.04"
    assert beside(Margin(0.06))(-0.0596) == "−5.96" and beside(Margin(0.06))(-0.0604) == "−6.04"
    assert beside(Margin(0.06))(0.103) == "+10.3" and beside(Margin(0.05, True))(-0.0499) == "−5.0"


def test_a_bound_at_the_margin_that_is_ruled_out_does_not_look_like_a_miss():
    """Where zeros rule out 5 points, the bound is the margin itself at first: no loss as large is left open."""
    seen = anytime.path(np.zeros(80), 0.05)
    first = int(np.flatnonzero(seen.lower >= -0.05 - 1e-9)[0])
    before, at, after = (bounds_in_points(seen.lower[first + t], 0.1, Margin(0.05)) for t in (-1, 0, 1))
    assert before.startswith("[−5.1, ") and at.startswith("(−5.0, ") and after.startswith("[−4.9, ")
    assert bounds_in_points(-0.2, -0.06, Margin(0.06)) == "[−20.0, −6.0)"
    assert bounds_in_points(-0.0597, 0.06, Margin(0.06)) == "[−5.97, +6.0]"
    assert bounds_in_points(0.0, 0.2, Margin(0.06, relative=True)) == "(0.0, +20.0]"


def test_of_a_run_that_is_worse_the_loss_that_is_shown_is_said():
    assert loss_in_words(entry("worse", -0.07, -0.0129)) == "loses 1.2 to 7.0 points"
    assert loss_in_words(entry("worse", -0.07, 0.0)) == "loses more than 0, up to 7.0 points"
    assert loss_in_words(entry("worse", -0.07, -0.0004)) == "loses 0.04 to 7.0 points"
    assert loss_in_words(entry("cannot tell", -0.07, 0.01)) == "could lose up to 7.0 points"
    assert loss_in_words(entry("better", 0.004, 0.05)) == "gains at least 0.4 points"
    assert loss_in_words(entry("non-inferior", 0.0, 0.05)) == "loses nothing"
    assert loss_in_words(entry("non-inferior", -0.03, 0.05)) == "loses less than 3 points"  # the end touches the limit
    within = entry("worse, within the margin", -0.0295, -0.004)
    assert loss_in_words(within) == "loses 0.4 to 2.95 points"
    assert (
        interval_in_words(within) == "−2.95 to −0.4" and interval_in_words(entry("worse", -0.07, 0.0)) == "−7.0 to 0.0"
    )


def lead(entries: list[Entry], names: str, chosen: int | None = None) -> str:
    sizes = range(len(entries), 0, -1)  # later ones are smaller
    return prose.lead(page_of(entries, list(names), chosen, sizes=list(sizes)))


def test_the_lead_names_its_variant_and_rests_on_bounds():
    said = lead([entry("worse", -0.07, -0.012)], "W")
    assert said.startswith("It solves 45.9 % of the problems and the original 50.0 %. ")
    assert "It loses 1.2 to 7.0 points, each end with 95 % confidence; your limit is 3 points." in said
    said = lead([entry("cannot tell", -0.0701), entry("cannot tell", -0.0709), entry("worse", -0.04, -0.01)], "ABC")
    assert said.startswith("Most is ruled out for B."), "undecided before worse, and of equal bounds the smallest"
    assert "It could lose up to 7.1 points, with 95 % confidence for all 3 variants together; your limit is 3" in said
    assert said.endswith("about 450 problems probably would decide.")
    good = [entry("non-inferior", -0.0131)]
    assert "It loses less than 1.4 points, with 95 % confidence; your limit is 3 points." in lead(good, "W", 0)
    unfinished = replace(good[0], verdict=Verdict.UNFINISHED)
    assert lead([unfinished, unfinished], "AB") == "Without a verdict: A and B."
