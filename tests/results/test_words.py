"""What is said of bounds: rounded to the safe side, and always on the side of the margin on which they lie."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from prunus.reporting import prose
from prunus.reporting.report_data import most_ruled_out
from prunus.results.cells import Cell, Entry, Needed, Stopping
from prunus.results.words import beside, bound_in_words, loss_in_words, rounded
from prunus.settings.margins import Margin

MARGINS = (0.0, 0.01, 0.02, 0.0225, 0.03, 0.05, 0.06, 0.07, 0.145)


def blank(kind: Any, **values: Any) -> Any:
    return kind(**{field.name: None for field in fields(kind)} | values)


def entry(word: str, low: float, high: float = 1.0, margin: float = 0.03, **values: Any) -> Entry:
    cell = blank(
        Cell, n=200, difference=(low + high) / 2, lower_bound_adjusted=low, upper_bound_adjusted=high,
        base_accuracy=0.5, settle=Needed(effect=0.03, draws=None, problems=450, note=None),
    )  # fmt: skip
    stopping = Stopping(tokens_ratio=1.0, per_correct_ratio=1.0, budget=64, endings={})
    given = {"verdict": word, "primary": cell, "margin": Margin(margin), "contradicted_at": [], "tasks": {}} | values
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
        shown = float(bound_in_words(entry(word, -loss, margin=margin)).split()[3])
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


def test_of_a_run_that_is_worse_the_loss_that_is_shown_is_said():
    assert loss_in_words(entry("worse", -0.07, -0.0129)) == "loses at least 1.2 points, and less than 7.0 points"
    assert loss_in_words(entry("worse", -0.07, 0.001)) == "loses more than 0 points, and less than 7.0 points"
    assert loss_in_words(entry("worse", -0.07, -0.0004)) == "loses at least 0.04 points, and less than 7.0 points"
    assert loss_in_words(entry("cannot tell", -0.07, 0.01)) == "loses less than 7.0 points"
    within = entry("worse, within the margin", -0.0295, -0.004)
    assert loss_in_words(within) == "loses at least 0.4 points, and less than 2.95 points"


def lead(entries: list[Entry], names: str, margin: float = 0.03) -> str:
    sizes = [(float(size), 1.0) for size in range(len(entries), 0, -1)]  # later ones are smaller
    words = [f"{name} is small" for name in names]
    return prose.lead(entries, list(names), "dense", Margin(margin), most_ruled_out(entries, sizes), words)


def test_the_lead_names_its_variant_and_rests_on_bounds():
    both = "each with 95 % confidence for all comparisons together"
    said = lead([entry("worse", -0.07, -0.012)], "W")
    assert said.startswith(
        f"W loses at least 1.2 points, and less than 7.0 points over the curve, {both}; it is worse."
    )
    said = lead([entry("cannot tell", -0.0701), entry("cannot tell", -0.0709), entry("worse", -0.04, -0.01)], "ABC")
    start = "Most is ruled out for B: it loses less than 7.1 points over the curve, with 95 % confidence"
    assert said.startswith(start), "undecided before worse, and of equal bounds the smallest"
    assert "a loss of 3 points or more cannot be ruled out, as there are 200 problems, where it takes about 450" in said
    assert "to detect 3.0 points. B is small." in said
    good = [entry("non-inferior", -0.0131)]
    assert lead(good, "W").startswith("W loses less than 1.4 points over the curve, with 95 % confidence")
    unfinished = replace(good[0], verdict="unfinished")
    assert lead([unfinished, unfinished], "AB") == "Without a verdict: A and B."
