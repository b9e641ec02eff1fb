"""The claim of a choice: against plain loops, by enumeration of all rows, and on rows of which the answer is known."""

from itertools import product
from math import exp, log, sqrt

import numpy as np
import pytest

from prunus.statistics.best import (
    ChoiceRule,
    above,
    as_good,
    excess,
    forecast,
    interval,
    lower_bounds,
    select_choice,
    state_after,
    states_after,
)


def wealth_by_hand(differences, rule, null):
    """The largest mean of the wealths of both gamblers of the module's docstring, in plain loops."""
    kelly = toward = 1.0
    largest, squares = 1.0, 0.0
    mean, weight, after = 0.5, 0.25, 0.25 * 0.25
    total = 0.125
    for t, d in enumerate(differences):
        r, m = (0.04 * 10 + squares) / (10 + t), rule.margin
        as_harmless = (2 * m**2 - r + sqrt(r**2 + 4 * m**2 * (1 - r))) / (m * (1 - m**2))
        at_the_end = 2 * sqrt(2 * rule.goal / (r * rule.rounds))
        variance = 0.25 if t == 0 else after / weight
        gain = max(0.01, mean - 1.02 / 2)
        bet = min(gain / (variance + gain**2), 0.75 / (1.02 / 2))
        x, zero = (d + 1) / 2, (null + 1) / 2
        kelly *= 1 + min(max(as_harmless, at_the_end), 0.99 / zero) * (x - zero)
        toward *= 1 + min(bet, 0.99 / zero) * (x - zero)
        largest = max(largest, (kelly + toward) / 2)
        squares += d * d
        weight += 1
        total += x
        mean = total / weight
        after += (x - mean) ** 2
    return largest


@pytest.mark.parametrize("rounds", [1, 7, 60])
def test_bounds_are_where_the_wealth_of_plain_loops_reaches_the_goal(rounds):
    rng, rule = np.random.default_rng(rounds), ChoiceRule(4, 60)
    d = rng.choice([-1.0, 0.0, 0.5, 1.0], (rounds, 3), p=[0.1, 0.5, 0.2, 0.2])
    for column, bound in enumerate(lower_bounds(d, rule, rule.goal)):
        if bound > -1:
            assert wealth_by_hand(d[:, column], rule, bound - 1e-5) >= exp(rule.goal) * (1 - 1e-9)
        assert wealth_by_hand(d[:, column], rule, bound + 1e-5) < exp(rule.goal)


@pytest.mark.parametrize(("up", "down"), [(0.3, 0.1), (0.05, 0.0), (0.6, 0.3)])
def test_over_all_possible_rows_the_claim_is_false_as_seldom_as_alpha_says(up, down):
    """Of two choices, each problem of which is won, lost or equal: every row of seven problems with its probability.

    The second is better by up - down. False: the bound of how much better it is was ever too small, whenever looked at.
    """
    rule, chance = ChoiceRule(2, 7, alpha=0.3), {1.0: up, -1.0: down, 0.0: 1 - up - down}
    every = [*product(chance, repeat=7)]
    values = np.concatenate([np.zeros((7, 1)), np.array(every).T], axis=1)  # a column for each, beside the chosen one
    ever = np.any([excess(values[:t], 0, rule)[1:] < up - down - 1e-9 for t in range(1, 8)], axis=0)
    false = sum(float(np.prod([chance[one] for one in row])) for row, wrong in zip(every, ever, strict=True) if wrong)
    assert false <= rule.alpha
    assert false > 0 or up < 0.1  # else this could not fail


@pytest.mark.parametrize(("up", "down"), [(0.3, 0.1), (0.05, 0.0), (0.6, 0.3)])
def test_over_all_possible_rows_bounds_that_know_their_number_are_false_as_seldom(up, down):
    """As above, of rows that are looked at once; false is also that the better one is dropped."""
    rule, chance = ChoiceRule(2, 7, alpha=0.3, fixed=True), {1.0: up, -1.0: down, 0.0: 1 - up - down}
    every = [*product(chance, repeat=7)]
    lost = -np.array(every).T  # by the first choice, beside the second
    wrong = -lower_bounds(lost, rule, rule.goal) < up - down - 1e-9
    for row in np.flatnonzero(above(lost, rule, 0.0))[:20]:
        values = np.stack([np.array(every[row]) < 0, np.array(every[row]) > 0], axis=1).astype(float)
        assert wrong[row] or state_after(values, (0, 1), rule).left == (0, 1)
    false = sum(
        float(np.prod([chance[won] for won in row])) for row, is_false in zip(every, wrong, strict=True) if is_false
    )
    assert false <= rule.alpha
    assert false > 0 or up < 0.1  # else this could not fail


def test_where_all_rows_are_there_x_is_about_a_quarter_smaller():
    values = (np.random.default_rng(0).random((300, 3)) < 0.5).astype(float)
    found = [excess(values, 1, ChoiceRule(3, 300, fixed=fixed)).max() for fixed in (False, True)]
    assert 0.65 * found[0] < found[1] < 0.9 * found[0]
    dropped = state_after(rows(70, 70, 20), (0, 1, 2), ChoiceRule(3, 400, fixed=True))
    assert dropped.left == (0, 1) == dropped.within


def test_more_choices_take_more_evidence_but_only_by_those_of_the_best():
    assert ChoiceRule(11, 100).goal == pytest.approx(log(10 / 0.05))
    assert ChoiceRule(1, 100).goal == pytest.approx(log(1 / 0.05))


def rows(*right, problems=400):
    """(T, K) values of choices that solve every problem of which the number modulo 100 is below theirs."""
    number = np.random.default_rng(0).permutation(problems) % 100
    return np.stack([(number < one).astype(float) for one in right], axis=1)


def test_a_hopeless_choice_is_dropped_and_is_asked_for_no_more_rows():
    values, asked = rows(70, 70, 20), []

    def read(left, rounds):
        asked.append((tuple(left), rounds))
        return values[:rounds, list(left)]

    found = states_after(read, ChoiceRule(3, 400), range(25, 401, 25))
    assert found[0].left == (0, 1, 2) or found[0].left == (0, 1)
    assert found[-1].left == (0, 1)
    assert asked[-1][0] == (0, 1)
    assert found[-1].rounds < 400  # equal choices are soon within the margin
    assert found[-1].within == (0, 1)


def test_a_walk_over_rows_that_are_there_goes_on_and_ends_where_they_do():
    values = rows(70, 70)
    found = states_after(
        lambda left, n: values[:n, list(left)] if n <= 300 else None, ChoiceRule(2, 400), range(50, 401, 50), False
    )
    assert [one.rounds for one in found] == [50, 100, 150, 200, 250, 300]


def test_of_choices_within_the_margin_the_cheapest_is_taken_and_else_that_of_the_largest_mean():
    rule = ChoiceRule(2, 400, margin=0.03)
    same, first = state_after(rows(70, 70), (0, 1), rule), state_after(rows(60, 50)[:40], (0, 1), rule)
    assert select_choice(same, [(2, 0), (1, 0)]) == 1
    assert not first.within
    assert select_choice(first, [(2, 0), (1, 0)]) == 0
    tied = state_after(rows(60, 60)[:5], (0, 1), rule)
    assert not tied.within
    assert select_choice(tied, [(2, 0), (1, 9)]) == 1


def test_bounds_of_the_chosen_one_are_wider_the_more_it_was_chosen_from():
    values = rows(70)[:, 0]
    few, many = interval(values, ChoiceRule(2, 400)), interval(values, ChoiceRule(40, 400))
    assert many[0] < few[0] < 0.7 < few[1] < many[1]


def test_another_is_as_good_only_where_that_is_shown():
    values, rule = rows(70, 70, 60), ChoiceRule(3, 400)
    assert as_good(values[:, 1:], values[:, 0], 4, rule).tolist() == [True, False]
    assert as_good(values[:20, 1:], values[:20, 0], 4, rule).tolist() == [False, False]


@pytest.mark.slow
@pytest.mark.parametrize("problems", [100, 300])
def test_the_forecast_is_about_what_choices_that_differ_as_much_come_to(problems):
    """On average over made-up rows of six equal choices, any two of which differ on a tenth of the problems."""
    rng, rule, found = np.random.default_rng(0), ChoiceRule(6, problems), []
    for _ in range(20):
        alone = rng.random((problems, 6)) < 0.05  # of each choice, which then has the other result
        values = ((rng.random((problems, 1)) < 0.5) ^ alone).astype(float)
        found.append(excess(values, int(values.mean(axis=0).argmax()), rule).max())
    assert 0.6 * forecast(rule) < np.mean(found) < 1.1 * forecast(rule)  # the one of the largest mean is not random
    assert forecast(ChoiceRule(18, problems)) > forecast(rule) > forecast(ChoiceRule(6, 2 * problems))
