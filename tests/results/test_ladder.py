"""The decisions of a ladder: wealth by a plain loop, other software's bounds, rows by hand, and simulated errors."""

import runpy
from dataclasses import replace
from math import log, log2, sqrt
from pathlib import Path

import numpy as np
import pytest
from bets_made import made
from comparable_runs import row
from ladder_bets import loop_bets, loop_wealth, some

from prunus.errors import PrunusError
from prunus.results import ladder
from prunus.results.ladder import ACCURACY, ENDS, Rule
from prunus.results.vocabulary import RungVerdict
from prunus.statistics import anytime
from prunus.statistics.anytime import interleaved, rounds
from prunus.store.rows import tables

LEVEL = log(20)
RUNS = 300
bench = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "find_errors.py"))


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "margin"), [(0.1, 0.05), (0.0, 0.02), (-0.2, 0.05)])
def test_e_values_and_bounds_are_those_of_a_plain_loop(mean, margin):
    d = some(1, 120, mean)
    path, (certify, refuse) = anytime.path(d, margin), anytime.log_e_values(d, margin)
    bets = {sign: loop_bets(sign * d, margin, above=sign < 0) for sign in (1, -1)}
    for logs, sign in ((certify, 1), (refuse, -1)):
        wealth = loop_wealth(sign * d, bets[sign], -sign * margin)
        assert logs == pytest.approx(np.maximum.accumulate(np.maximum(wealth, 0)))
    assert path.estimate[-1] == pytest.approx(d.mean())
    for bound_T, sign in ((path.lower, 1), (path.upper, -1)):
        for t in (3, 40, 120):
            nulls = np.linspace(-0.999, 0.999, 400)
            rejected = [m for m in nulls if max(loop_wealth(sign * d[:t], bets[sign][:t], m)) >= LEVEL]
            assert sign * bound_T[t - 1] == pytest.approx(max(rejected, default=-1), abs=0.012)
    # The bound and the decision say the same.
    assert ((path.lower > -margin - 1e-12) == (certify >= LEVEL)).all()
    assert ((path.upper < -margin + 1e-12) == (refuse >= LEVEL)).all()
    assert (certify[-1] >= LEVEL) == (mean > 0) and (refuse[-1] >= LEVEL) == (mean < 0)


# Lower bounds that are valid at any time, from gostevehoward/confseq @ 70b1ef3 (betting_mart with lambda_predmix_eb,
# trunc_scale=.75), the authors' own package.
CONFSEQ = {12: -0.260206, 90: -0.000632, 400: 0.034978}


def test_bounds_with_their_bets_are_confseqs():
    d = made(400)[:, 0]
    x = (d + 1) / 2
    t = np.arange(1, 401)
    variance = (0.25 + np.cumsum((x - (0.5 + np.cumsum(x)) / (t + 1)) ** 2)) / (t + 1)
    bets = np.sqrt(2 * LEVEL / (np.concatenate([[0.25], variance[:-1]]) * t * np.log(1 + t)))
    path = anytime.lower_path(d, bets, 0.05, most=0.75)
    for n, bound in CONFSEQ.items():
        assert bound - 0.0013 < path[n - 1] <= bound + 1e-6  # rounded down to the grid


def test_the_first_to_be_shown_decides_whenever_one_looks():
    harmless, broken = np.zeros(300), some(3, 300, -0.4)
    rule = Rule(margin=0.05, stop_margin=0.1)
    both = ladder.decide({ACCURACY: harmless, ENDS: harmless}, rule)
    alone = int(ladder._first(np.array(loop_wealth(harmless, loop_bets(harmless, 0.05), -0.05)), LEVEL))
    assert (both.word, both.rounds, both.failed) == (RungVerdict.CERTIFIED, alone, ())
    found = {ACCURACY: harmless, ENDS: broken}
    stops = ladder.decide(found, rule)
    assert (stops.word, stops.failed) == (RungVerdict.REFUSED, (ENDS,)) and stops.rounds < alone
    harmful, harmless_too = (stops.evidence[ENDS][name] for name in ("harmful", "harmless"))
    assert harmful is not None and harmless_too is not None and harmful >= 20 > harmless_too
    for look in (0, 1, stops.rounds - 1, stops.rounds, 200):
        part = {name: values[:look] for name, values in found.items()}
        assert (ladder.decide(part, rule) == stops) == (look >= stops.rounds)
        if look < stops.rounds:
            assert ladder.decide(part, rule).word == RungVerdict.GO_ON
            assert ladder.decide(part, rule, over=True).word == RungVerdict.CANNOT_TELL
    # Accuracy is certified first, ending by itself never: a rung needs both.
    noisy = np.where(np.arange(300) % 2, 0.9, -0.9)
    still = ladder.decide({ACCURACY: harmless, ENDS: noisy}, rule, over=True)
    assert (still.word, still.failed, still.rounds) == (RungVerdict.CANNOT_TELL, (ENDS,), 300)


@pytest.mark.slow
def test_looks_end_where_the_rest_cannot_be_enough_and_are_short_where_little_may_be():
    rule, total = Rule(margin=0.05, stop_margin=0.05), 200

    def certified_after(values, n):
        """How many more rounds without a difference certify a rung; None if n do not. By trying all."""
        for more in range(n + 1):
            longer = np.concatenate([values, np.zeros(more)])
            if ladder.decide({ACCURACY: longer, ENDS: np.zeros(len(longer))}, rule).word == RungVerdict.CERTIFIED:
                return more
        return None

    ended, short = 0, 0
    for seed in range(3):
        d = np.where(np.random.default_rng(seed).random(total) < 0.04, -1.0, 0.0)
        for T in (0, 30, 60, 90, 150, 199):
            found = {ACCURACY: d[:T], ENDS: np.zeros(T)}
            until, more = ladder.next_look(found, rule, 40, total), certified_after(d[:T], total - T)
            harmful = max(0.0, *loop_wealth(-d[:T], loop_bets(-d[:T], 0.05, above=True), 0.05), 0.0)
            expected = 0 if more is None else min(total - T, 40, max(more, 10))
            if more is None and harmful * total / T >= LEVEL:  # it would be refused
                expected = min(total - T, 40)
            assert until == T + expected
            ended, short = ended + (more is None), short + (0 < expected < 40)
    assert ended > 3 and short
    # If all rounds could not be enough in the first place, all are taken: somebody wanted them anyway.
    few = {ACCURACY: np.zeros(20), ENDS: np.zeros(20)}
    assert ladder.next_look(few, rule, 40, 30) == 30


def test_rounds_hold_every_problem_once_and_as_many_of_a_task_as_they_can():
    sizes = {"a": 3, "b": 7, "c": 4}
    order = interleaved({task: [f"{task}{i}" for i in range(n)] for task, n in sizes.items()}, 5)
    found = rounds(order)
    assert len(found) == 3 and sorted(sum(found, ())) == sorted(order)
    for one in found:
        counts = {task: sum(name == task for name, _ in one) for task in sizes}
        assert counts["a"] == 1 and counts["b"] in (2, 3) and counts["c"] in (1, 2)
    for task in sizes:
        assert [p for one in found for t, p in one if t == task] == [p for t, p in order if t == task]
    assert rounds([]) == []


def run(seed, budgets, draws, sizes):
    rng = np.random.default_rng(seed)
    return [
        row(task, p, budget, draw, rng.random() < 0.6, ended="natural" if rng.random() < 0.7 else "forced")
        for task, n in sizes.items()
        for p in range(n)
        for budget in budgets
        for draw in range(draws)
    ]


def test_differences_are_those_of_the_rows_up_to_the_first_incomplete_round():
    budgets, sizes = (0, 16, 64, 256), {"a": 6, "b": 12}
    dense, rung = run(0, budgets, 3, sizes), run(1, budgets, 3, sizes)
    order = rounds(interleaved({t: [f"{t}-{p}" for p in range(n)] for t, n in sizes.items()}, 1))
    found = ladder.differences(tables(dense), tables(rung), order, (16, 256), 2)

    def outcome(rows, task, problem, draws=(0, 1)):
        mine = [r for r in rows if (r.task, r.problem_id) == (task, problem) and r.draw in draws]
        area = np.mean([r.correct for r in mine if r.budget in (16, 256)])  # two budgets: both ends weigh alike
        return area, np.mean([r.ended == "natural" for r in mine if r.budget == 256])

    for place, one in enumerate(order):
        by_task = {
            task: np.mean(
                [np.subtract(outcome(rung, *key), outcome(dense, *key)) for key in one if key[0] == task], axis=0
            )
            for task in sizes
        }
        expected = np.mean(list(by_task.values()), axis=0)
        assert (found[ACCURACY][place], found[ENDS][place]) == pytest.approx(tuple(expected))
    # Three budgets above 0: trapezoids over the logarithm of the budget; OFF and 0 have no weight.
    three = ladder.differences(tables(dense), tables(rung), order[:1], (16, 64, 256), 1)[ACCURACY][0]
    weights = {16: 1 / 4, 64: 1 / 2, 256: 1 / 4}
    assert log2(64 / 16) == log2(256 / 64)
    means = [
        np.mean(
            [
                sum(
                    weights[r.budget] * r.correct * sign
                    for rows, sign in ((rung, 1), (dense, -1))
                    for r in rows
                    if (r.task, r.problem_id) == key and r.draw == 0 and r.budget
                )
                for key in order[0]
                if key[0] == task
            ]
        )
        for task in sizes
    ]
    assert three == pytest.approx(np.mean(means))
    # One row of the fourth round is missing: complete later rounds do not count either.
    gone = order[3][1]
    less = [r for r in rung if not ((r.task, r.problem_id) == gone and r.budget == 16 and r.draw == 1)]
    part = ladder.differences(tables(dense), tables(less), order, (16, 256), 2)
    assert part[ACCURACY] == pytest.approx(found[ACCURACY][:3]) and len(part[ENDS]) == 3
    assert len(ladder.differences(tables(dense), {}, order, (16, 256), 2)[ENDS]) == 0
    assert len(ladder.differences(tables(dense), tables(rung), order, (16, 512), 2)[ENDS]) == 0
    with pytest.raises(PrunusError, match="needs a budget above 0"):
        ladder.differences(tables(dense), tables(rung), order, (0,), 1)


@pytest.mark.slow
def test_forecasts_are_what_happens():
    """Problems until a harmless rung is certified, for one endpoint: the median of simulated walks."""
    rng = np.random.default_rng(0)
    for changed, margin in ((0.04, 0.05), (0.01, 0.02), (0.1, 0.05)):
        paths = rng.choice([-1.0, 0.0, 1.0], p=[changed / 2, 1 - changed, changed / 2], size=(150, 1000))
        times = [ladder._first(anytime.log_e_values(d, margin)[0], LEVEL) for d in paths]
        assert ladder.rounds_needed(changed, margin) == pytest.approx(np.median(times), rel=0.2)
    same = ladder._first(anytime.log_e_values(np.zeros(300), 0.02)[0], LEVEL)
    assert ladder.rounds_needed(0.0, 0.02) == same == 174


@pytest.mark.slow
def test_a_forecast_from_rows_is_what_happens_to_a_rung_that_differs_as_much():
    rng = np.random.default_rng(1)
    chances = {ACCURACY: 0.04, ENDS: 0.01}

    def some_rung(n):
        return {end: rng.choice([-1.0, 0.0, 1.0], p=[p / 2, 1 - p, p / 2], size=n) for end, p in chances.items()}

    rule = Rule(0.05, 0.05)
    times = [ladder.decide(some_rung(1000), rule).rounds for _ in range(60)]
    assert ladder.rounds_like(some_rung(3000), rule) == pytest.approx(np.median(times), rel=0.25)
    (fewer, more) = (one[ACCURACY] for one in (ladder.forecast(rule, 300, 1), ladder.forecast(rule, 300, 4)))
    assert fewer.fewer < fewer.rounds and fewer.fewer == ladder.rounds_needed(0.01, 0.05)
    assert more.fewer == ladder.rounds_needed(0.01 / 4, 0.05)


def test_the_smallest_margin_is_certified_and_a_smaller_one_is_not():
    for n in (30, 198, 420):
        margin = ladder.smallest_margin(n)
        same = {name: np.zeros(n) for name in ladder.ENDPOINTS}
        assert ladder.decide(same, Rule(margin + 1e-6, 0.5)).word == RungVerdict.CERTIFIED
        assert ladder.decide(same, Rule(margin - 1e-4, 0.5)).word == RungVerdict.GO_ON
    assert ladder.smallest_margin(0) == 1 > ladder.smallest_margin(1) > 0.95


@pytest.mark.slow
def test_a_forecast_asks_for_draws_where_they_help_and_not_where_only_problems_do():
    found = ladder.forecast(Rule(0.05, 0.05), 80, 1)[ACCURACY]
    assert found.rounds > 80 and found.draws == 4 and ladder.rounds_needed(ladder.CHANGED / 4, 0.05) <= 80
    assert ladder.rounds_needed(ladder.CHANGED / 2, 0.05) > 80
    assert ladder.forecast(Rule(0.02, 0.05), 30, 1)[ACCURACY].draws is None  # 30 problems cannot show 2 points at all
    assert ladder.forecast(Rule(0.02, 0.05), 30, 1)[ACCURACY].smallest > 0.1


@pytest.mark.parametrize("bad", [{"margin": 0}, {"margin": 1.0}, {"stop_margin": -0.1}, {"alpha": 0.0}])
def test_rules_that_make_no_sense_are_refused(bad):
    with pytest.raises(PrunusError, match=r"must be a share in \(0, 1\)"):
        replace(Rule(), **bad)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("shape", ["at the margin", "stops less", "bump", "a few problems break"])
def test_a_ladder_has_a_false_certificate_in_5_percent_at_most(shape):
    """The benchmark in small: all looks, both endpoints, rungs that share the dense model's rows."""
    found = bench["walk"](bench["SHAPES"][shape], 150, 2, Rule(0.1, 0.1), RUNS)
    assert found.false <= 0.05 + 4 * sqrt(0.05 * 0.95 / RUNS)
    assert found.certified > 0.9 * bench["SHAPES"][shape].sound  # it is not safe by never claiming anything
    broken = bench["walk"](bench["SHAPES"][shape], 150, 2, Rule(0.1, 0.1), RUNS, evidence=bench["normal_looks"])
    assert broken.false > 0.15  # the simulation finds out a bound that does not hold at any time


@pytest.mark.slow
def test_a_walk_takes_a_fraction_of_the_problems():
    found = bench["walk"](bench["SHAPES"]["cliff"], 300, 2, Rule(0.1, 0.1), 100)
    assert found.certified > 5.9 and found.false == 0 and found.used < 0.2
