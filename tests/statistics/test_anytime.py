"""Numbers that hold at any time, and their use for runs whose problems `find` ended: plain loops, and simulation."""

from dataclasses import replace
from io import StringIO
from math import exp, log, sqrt

import numpy as np
import pytest
from comparable_runs import fill, random_run
from ladder_bets import loop_bets, loop_wealth, some

import prunus
from prunus.reporting.terminal import detail_tables
from prunus.results.comparison import ADAPTIVE, compare
from prunus.statistics import anytime, paired
from prunus.statistics.anytime import interleaved, rounds
from prunus.store.store import Store
from prunus.store.stored import Adaptive

NAMES = ("p", "p_margin", "lower_bound", "low", "high")


def by_loop(values, margin):
    """What `anytime.infer` says of one column, by plain loops and bisection."""

    def bound(d, bets, alpha):
        low, high = -1.0, 0.9995
        for _ in range(14):  # wealth falls in the mean that it bets against
            middle = (low + high) / 2
            rejected = max(loop_wealth(d, bets, middle)) >= log(1 / alpha)
            low, high = (middle, high) if rejected else (low, middle)
        return low

    up, down = loop_bets(values, margin), loop_bets(-values, margin, above=True)
    most = max(max(loop_wealth(sign * values, loop_bets(sign * values, 0.02, above=True), 0.0)) for sign in (1, -1))
    return {
        "p": min(1.0, 2 * exp(-max(0.0, most))),
        "p_margin": exp(-max(0.0, *loop_wealth(values, up, -margin))),
        "lower_bound": bound(values, up, 0.05),
        "low": bound(values, up, 0.025),
        "high": -bound(-values, down, 0.025),
    }


def test_columns_are_those_of_plain_loops():
    columns = [some(1, 60, 0.0, 0.1), some(2, 60, -0.2), some(3, 60, 0.3)]
    found = anytime.infer(np.stack(columns, axis=1), 0.1, 3)
    for c, values in enumerate(columns):
        expected = by_loop(values, 0.1)
        for name in NAMES:
            assert getattr(found, name)[c] == pytest.approx(expected[name], abs=6e-4), name
    assert found.low is not None and found.band_low is not None and (found.band_low < found.low).all()
    assert found.high is not None and found.band_high is not None and (found.band_high > found.high).all()
    assert found.p[1] < 0.05 < found.p[0] and found.p_margin[2] < 0.05 < found.p_margin[1]


def test_last_bits_of_rounds_do_not_depend_on_the_hashes_of_a_process():
    strata = list(np.random.default_rng(0).normal(size=(3, 200, 1)))
    names = [[f"{problem:03d}" for problem in range(200)]] * 3
    values = [dict(zip(names[k], strata[k], strict=True)) for k in range(3)]
    expected = [
        np.mean([values[int(k)][p] for k, p in one], axis=0)
        for one in rounds(interleaved(dict(zip("012", names, strict=True)), 5))
    ]
    assert np.array_equal(anytime.in_rounds(strata, names, 5), expected)


@pytest.mark.parametrize("margin", [0.0, "0%"])
def test_a_margin_of_nothing_has_bounds_but_claims_nothing(tmp_path, margin):
    store, _ = make(tmp_path, ("a",), "1")
    (entry,) = compare(store, "dense", margin=margin, stop_margin=margin, resamples=200).others
    assert (
        -0.8 < entry.primary.lower_bound < 0
        and entry.primary.p_margin > 0.05
        and entry.verdict in ("worse", "cannot tell")
    )


def marked(store, *runs, seed=5):
    with Store(store) as opened:
        for run in runs:
            opened.mark_adaptive(f"{run}{'f' * 11}", Adaptive.of({"by": "find", "seed": seed}))
    return store


def make(folder, tasks, marks, seed=5):
    shape = {"tasks": tasks, "draws": 2, "problems": 40}
    runs = {"dense": random_run(0, 0.6, **shape), "pruned": random_run(1, 0.5, **shape)}
    return marked(fill(folder / "s.db", runs), *marks, seed=seed), runs


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [("a",), ("a", "b")])
def test_compare_takes_a_marked_run_in_its_order(tmp_path, tasks):
    store, runs = make(tmp_path, tasks, "1")
    (entry,) = compare(store, "dense", margin=0.3, resamples=200).to_json()["others"]
    assert entry["adaptive"] and ADAPTIVE in entry["warnings"]

    def area(name, task, problem):
        rows = [r for r in runs[name] if (r.task, r.problem_id) == (task, problem) and r.budget in (16, 64)]
        return np.mean([r.correct for r in rows])

    order = rounds(interleaved({str(k): [f"{t}-{p}" for p in range(40)] for k, t in enumerate(tasks)}, 5))
    values = np.array(
        [np.mean([area("pruned", tasks[int(k)], p) - area("dense", tasks[int(k)], p) for k, p in one]) for one in order]
    )
    expected = by_loop(values, 0.3)
    for name in NAMES:
        assert entry["primary"][name] == pytest.approx(expected[name], abs=6e-4), name
    assert entry["primary"]["difference"] == pytest.approx(values.mean())
    assert entry["scaling"]["word"] == "cannot tell"
    ends = entry["stopping"]["endings"]["ends"]  # every made chain is forced: no difference at all
    same = by_loop(np.zeros(40), 0.05)
    for name, key in (("bound", "lower_bound"), ("low", "low"), ("high", "high")):
        assert ends[name] == pytest.approx(same[key], abs=6e-4)
    assert ends["p_margin"] == 1  # there is nothing to lose
    used = entry["stopping"]["endings"]["budget_used"]  # less of it is better, so its bound is an upper one
    assert used["bound"] == pytest.approx(-same["lower_bound"], abs=6e-4) and used["low"] < 0 < used["high"]


def test_bounds_that_the_mean_has_left_are_shown_around_it(tmp_path):
    """All losses come first, then as many gains: the upper bound has passed the mean, 0, on its way down."""
    ids = [f"a-{number}" for number in range(40)]
    order = [problem for ((_, problem),) in rounds(interleaved({"0": ids}, 5))]
    loses = set(order[:20])
    runs = {
        name: [replace(row, correct=(row.problem_id in loses) == first) for row in random_run(0, 0.5, problems=40)]
        for name, first in (("dense", True), ("pruned", False))
    }
    (entry,) = compare(marked(fill(tmp_path / "s.db", runs), "1"), "dense").to_json()["others"]
    values = np.array([-1.0 if problem in loses else 1.0 for problem in order])
    expected = by_loop(values, 0.02)
    assert expected["high"] < -0.1 and entry["primary"]["high"] == entry["primary"]["difference"] == 0
    assert entry["primary"]["low"] == pytest.approx(expected["low"], abs=6e-4)


@pytest.mark.slow
def test_a_mark_on_either_run_counts_and_without_one_nothing_changes(tmp_path):
    for number, marks in enumerate(("0", "01", "")):
        (tmp_path / str(number)).mkdir()
        store, _ = make(tmp_path / str(number), ("a",), marks)
        (entry,) = compare(store, "dense", resamples=200).to_json()["others"]
        assert entry["adaptive"] == bool(marks) and (ADAPTIVE in entry["warnings"]) == bool(marks)


@pytest.mark.slow
def test_table_and_page_say_that_a_run_was_collected_adaptively(tmp_path):
    from rich.console import Console

    store, _ = make(tmp_path, ("a",), "1")
    console = Console(width=300, record=True, file=StringIO())
    console.print(detail_tables(compare(store, "dense")))
    assert "collected adaptively by `prunus find`" in console.export_text()
    text = prunus.report(store, tmp_path / "r.html", base="dense").read_text()
    assert "<small>collected adaptively</small>" in text and "collected adaptively by `prunus find`" in text


def false_differences(p_of, runs=150):
    """Share of comparisons of equal models, looked at every 20 problems up to 200, that ever show a difference."""
    d = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (200, runs), p=[0.25, 0.5, 0.25])
    return np.mean(np.any([p_of(d[:n]) < 0.05 for n in range(20, 201, 20)], axis=0))


@pytest.mark.slow
def test_whoever_ends_at_the_first_difference_is_wrong_in_5_percent_at_most():
    share = false_differences(lambda d: anytime.infer(d, 0.02).p)
    assert share <= 0.05 + 4 * sqrt(0.05 * 0.95 / 150)
    assert false_differences(lambda d: paired.sign_flip_p([d], 300)) > 0.1  # the test of a fixed number of problems
    losing = np.random.default_rng(1).choice([-1.0, 0.0], (200, 50), p=[0.2, 0.8])
    assert np.mean(anytime.infer(losing, 0.02).p < 0.05) > 0.9  # it does find differences
