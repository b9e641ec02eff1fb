"""Pairs of rows that were computed alike, and those that were not."""

from dataclasses import replace
from itertools import product

import pytest

from prunus.store.rows import Run, Start
from prunus.store.starts import computed_apart
from prunus.store.stored import Environment

FIRST, SECOND = {"torch": "2.13", "gpu": "A"}, {"torch": "2.13", "gpu": "B"}


def run(name: str, *later: dict[str, str]) -> Run:
    starts = [Start(number, "now", None, Environment.of(record), mixed=True) for number, record in enumerate(later, 1)]
    return Run.of(name, {}, {}, FIRST, starts=tuple(starts))


@pytest.mark.parametrize("blocks", list(product([0, 1], repeat=4)))
def test_every_problem_that_was_computed_alike_is_a_pair(blocks):
    """Two machines take the problems in blocks, all runs of a block on one of them."""
    starts = [{(start, start)} for start in blocks]
    assert computed_apart(run("base", SECOND), run("variant", SECOND), starts) is None


def test_problems_that_differ_are_counted_and_said():
    base, variant = run("base", SECOND), run("variant", SECOND)
    apart = computed_apart(base, variant, [{(0, 0)}] * 5 + [{(1, 1)}] * 3 + [{(0, 1)}] * 2)
    assert apart is not None and (apart.problems, apart.how) == (2, ["gpu B (A)"])
    apart = computed_apart(run("base"), variant, [{(0, 0)}] * 3 + [{(0, 1)}])
    assert apart is not None and (apart.problems, apart.how) == (1, ["gpu B (A)"])


def test_draws_of_one_problem_from_two_machines_are_no_pair():
    """Of which draw a mean is mostly, would depend on the machine; and so it is of a run alone."""
    mixed = run("run", SECOND)
    for other in (mixed, run("base")):
        apart = computed_apart(other, mixed, [{(0, 0)}] * 3 + [{(0, 0), (0, 1)}])
        assert apart is not None and apart.problems == 1


def test_what_differs_everywhere_alike_is_a_difference_between_the_runs():
    """One of them was served in another dtype on both machines, as run_differences says."""
    lower = {"dtype": "bfloat16"}
    base = replace(run("base", SECOND | {"dtype": "float32"}), environment=Environment.of(FIRST | {"dtype": "float32"}))
    variant = replace(run("variant", SECOND | lower), environment=Environment.of(FIRST | lower))
    assert computed_apart(base, variant, [{(0, 0)}] * 3 + [{(1, 1)}]) is None
    assert computed_apart(base, variant, [{(0, 0)}] * 3 + [{(1, 0)}]) is not None


def test_the_version_of_python_changes_no_number():
    assert computed_apart(run("base", FIRST | {"python": "4"}), run("other"), [{(0, 0)}, {(1, 0)}]) is None
