"""The rule for a loop, on made texts whose loops are known."""

import random

import pytest

from prunus.store.looping import ends_in_loop, loops

RNG = random.Random(0)
WORDS = ["".join(RNG.choice("abcdefgh") for _ in range(RNG.randint(1, 7))) + " " for _ in range(500)]


def period(tokens: int) -> str:
    """A text of this many tokens, which begins with a capital, so that no shorter one repeats in it."""
    return "X" + "".join(RNG.choice(WORDS) for _ in range(tokens))


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 17, 64, 200, 255, 256])
def test_four_copies_of_any_period_are_a_loop_wherever_the_budget_cuts(tokens):
    unit = period(tokens)
    text = "First we add the numbers. " + unit * max(4, -(-60 // len(unit)))
    assert ends_in_loop(text) and ends_in_loop(text + "\ufffd") and ends_in_loop(text + unit[: len(unit) // 2])


def test_three_copies_and_short_rows_of_signs_are_no_loop():
    assert not ends_in_loop("We start here. " + "".join(WORDS[:30]) * 3)
    assert not ends_in_loop("1/3 = 0." + "3" * 50) and not ends_in_loop("=" * 59) and not ends_in_loop("")
    assert ends_in_loop("=" * 60)


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{i}, " for i in range(1, 800)),
        "".join(f"Attempt {i}: the answer is still 7.\n" for i in range(200)),
        "".join(f"x_{i} + {2 * i} = {3 * i}\n" for i in range(100)),
        "".join(f"{a} * {b} = {a * b}\n" for a in range(2, 10) for b in range(2, 10)),
        " ".join(WORDS),
    ],
    ids=["numbers", "a counter in a sentence", "equations", "a multiplication table", "words"],
)
def test_counters_and_lists_of_equations_are_no_loop(text):
    assert not ends_in_loop(text)


def test_inexact_copies_are_a_loop_if_half_of_the_end_is_repetition():
    assert loops("", "", 0.5) and not loops("", "", 0.49) and not loops("", "", None)
    assert loops(period(3) * 20, "so 7", 0.0) and loops("a short thought", period(3) * 20, None)
