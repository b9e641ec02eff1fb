"""How long chains of two runs have the same ids."""

from parting import parting


def test_chains_of_equal_problem_and_draw_are_compared():
    base = {("a", 0): [1, 2, 3, 4], ("b", 0): [5, 6], ("c", 1): [7]}
    other = {("a", 0): [1, 2, 9, 4], ("b", 0): [5, 6], ("c", 0): [7]}
    assert parting(base, other) == (
        "2.0 of 3.0 ids before they part, 1 of 2 chains the same; chains of different problems: 0.0"
    )
