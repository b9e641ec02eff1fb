"""Levels and exchange of thinking budgets: against plain loops, against rows of real models, and what is never said."""

import csv
import re
import sqlite3
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparable_runs import random_run
from effort_stores import BUDGETS, exact_p, rising, store_of
from staged_runs import add

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.plain_data import parse_json
from prunus.reporting.efforts import as_right_in_words, exchange_lines
from prunus.reporting.sections.efforts import ticks
from prunus.results.efforts import AsRight, Measured, checked_levels, efforts, efforts_of
from prunus.statistics import exact
from prunus.statistics.least_margin import problems_for
from prunus.store.store import Store
from prunus.store.stored import Adaptive

ROOT = Path(__file__).parents[2]
LEVELS = {"high": 0.05, "medium": 0.1, "low": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_levels_of_one_draw_are_those_of_a_plain_walk(tmp_path, seed):
    right = rising(np.random.default_rng(seed), problems=60)
    found = efforts(store_of(tmp_path / "s.db", {"tiny": right}), levels=LEVELS).runs[0]
    for level, margin in zip(found.levels[1:], LEVELS.values(), strict=True):
        named = BUDGETS[-1]
        for place in reversed(range(len(BUDGETS) - 1)):
            change = right[:, place, 0].astype(int) - right[:, -1, 0]
            if exact_p(int((change < 0).sum()), int((change > 0).sum()), len(right), margin) > 0.05 / 3:
                break
            named = BUDGETS[place]
        assert level.budget == named
        assert level.accuracy == pytest.approx(right[:, BUDGETS.index(named), 0].mean())


@pytest.mark.slow
def test_the_page_does_not_deny_a_level_that_saves_nothing(tmp_path):
    """All chains end within 192 tokens, which are shown to be enough, but save nothing beside 256."""
    right = rising(np.random.default_rng(0), problems=200, shares=(0.1, 0.2, 0.4, 0.88, 0.88))
    right[:, -1] = right[:, -2]
    store = store_of(tmp_path / "s.db", {"tiny": right})
    assert {level.budget for level in efforts(store, levels=LEVELS).runs[0].levels[1:]} == {192}
    page = prunus.report(store, tmp_path / "r.html").read_text()
    assert "No budget of the original that saves tokens is shown to be enough." in page


def test_the_numbers_beside_a_level_are_means_over_its_rows(tmp_path):
    right = np.ones((300, 5, 1), bool)
    right[:150, 0] = False
    full, level, *_ = efforts(store_of(tmp_path / "s.db", {"tiny": right})).runs[0].levels
    assert (full.budget, full.cut, full.tokens, full.unanswered) == (256, 0.0, 155.0, 0.0)
    assert (level.budget, level.below, level.cut, level.tokens) == (96, 64, 1.0, 101.0)
    assert level.saved == pytest.approx(1 - 101 / 155)


def gsm8k() -> dict[str, np.ndarray]:
    """The rows of the repository: {variant: (P, B, 1) whether it is right}."""
    rows = defaultdict[str, dict[tuple[str, int], int]](dict)
    with (ROOT / "benchmarks/gsm8k.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows[row["variant"]][row["problem_id"], int(row["budget"])] = int(row["correct"])
    tables = {}
    for name, of in rows.items():
        problems, budgets = sorted({key[0] for key in of}), sorted({key[1] for key in of})
        tables[name] = np.array([[[of[problem, budget]] for budget in budgets] for problem in problems], bool)
    return tables


@pytest.mark.slow
def test_levels_of_real_rows(tmp_path):
    """The budgets were computed by other code (numpy alone), with the exact test at 5/3 %."""
    tables = gsm8k()
    budgets = (64, 128, 256, 512)
    expected = {"dense": (512, 512, 256), "Wanda 20 %": (512, 256, 256), "W8A8": (512, 512, 256)}
    names = {name: next(key for key in tables if key.lower().startswith(name.lower())) for name in expected}
    models = {name: tables[key] for name, key in names.items()}
    found = efforts(store_of(tmp_path / "s.db", models, budgets=budgets))
    for run in found.runs:
        assert tuple(level.budget for level in run.levels[1:]) == expected[str(run.model)], run.model
        assert run.levels[1].note == "200 problems are too few where nothing differs: at least 220"
        if run.exchange is not None:  # as right as dense at 256 with more than 128, without an upper end
            bracket = next(found for found in run.exchange.as_right if found.base_budget == 256)
            assert (bracket.above, bracket.below, bracket.never) == (128, None, False)


def test_a_variant_that_is_worse_everywhere_and_a_copy(tmp_path):
    right = rising(np.random.default_rng(1), problems=200)
    broken = right & (np.arange(200) % 3 == 0)[:, None, None]
    found = efforts(store_of(tmp_path / "s.db", {"tiny": right, "broken": broken, "copy": right}))
    dense, worse, copy = found.runs
    assert "is as right as the original at" in repr(found) and "is as right as dense" not in repr(found)
    assert dense.exchange is None
    assert worse.exchange and all(bracket.never for bracket in worse.exchange.as_right if bracket.base_budget > 96)
    assert copy.exchange is not None
    last = copy.exchange.as_right[-1]
    assert last.above is not None and last.above < last.base_budget and last.below is None and not last.never
    assert [level.budget for level in copy.exchange.levels] == [None, *(level.budget for level in copy.levels[2:])]
    least = problems_for(0.02, 0.05 / 6, one_outcome=True)
    assert copy.exchange.levels[0].note == f"200 problems are too few where nothing differs: at least {least}"
    lines = exchange_lines("copy", copy, "dense")
    assert any("without a known upper end" in line for line in lines)


@pytest.mark.parametrize(
    ("bracket", "words"),
    [
        (AsRight(base_budget=96, above=112, below=208, never=False, longer_low=1.1, longer_high=1.6),
         "as right as dense at 96 tokens with 112 to 208; its chains are then 1.10 to 1.60 times as long"),
        (AsRight(base_budget=96, above=512, below=None, never=True, longer_low=None, longer_high=None),
         "as right as dense at 96 tokens with no budget up to 512: it is shown to be worse at each"),
        (AsRight(base_budget=96, above=None, below=None, never=False, longer_low=None, longer_high=None),
         "as right as dense at 96 tokens: not decided with which budget"),
    ],
)  # fmt: skip
def test_words_of_the_exchange(bracket, words):
    assert as_right_in_words(bracket, "dense", (64, 512)) == words


def test_a_margin_of_half_of_what_is_solved_names_no_budget(tmp_path):
    right = rising(np.random.default_rng(2), problems=150, shares=(0.02, 0.04, 0.08, 0.1, 0.12))
    levels = efforts(store_of(tmp_path / "s.db", {"tiny": right}), levels={"low": 0.1, "rough": "60%"}).runs[0].levels
    assert all(level.budget is None and "half or more" in str(level.note) for level in levels[1:])


def test_several_draws_are_bet_on(tmp_path):
    right = rising(np.random.default_rng(3), problems=250, draws=4)
    run = efforts(store_of(tmp_path / "s.db", {"tiny": right}), levels={"low": 0.1}).runs[0]
    assert run.samples == 4 and run.level("low").budget in (128, 192)


def test_an_unfinished_run_has_no_level(tmp_path):
    from prunus.store.rows import PlannedProblems

    planned = PlannedProblems(9, {"a": [f"a-{number:04d}" for number in range(9)]})
    right = np.ones((6, 5, 1), bool)
    run = efforts(store_of(tmp_path / "s.db", {"tiny": right}, planned=planned)).runs[0]
    assert run.levels == [] and run.unfinished is not None and "unfinished" in run.warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "least"), [(1, 41), (2, 40)])
def test_a_level_is_named_from_as_many_problems_as_are_said_to_be_needed(tmp_path, draws, least):
    """Where nothing differs, 39 could show a loss of 10 points by (1 - margin)^n; neither test does."""
    assert problems_for(0.1, 0.05 / 3, one_outcome=draws == 1) == least and 0.9**39 <= 0.05 / 3
    for problems in (least - 1, least):
        right = np.ones((problems, 2, draws), bool)
        path = store_of(tmp_path / f"{problems}.db", {"tiny": right}, budgets=(64, 256))
        low = efforts(path).runs[0].level("low")
        assert low.budget == (64 if problems == least else 256)
        assert (
            problems == least or low.note == f"{problems} problems are too few where nothing differs: at least {least}"
        )


@pytest.mark.slow
def test_a_group_of_problems_counts_once(tmp_path):
    """Where nothing differs 40 groups are enough for a loss of 10 points by bets, however many problems they have."""
    assert problems_for(0.1, 0.05 / 3, one_outcome=False) == 40
    for groups in (39, 40):
        path = store_of(tmp_path / f"{groups}.db", {"tiny": np.ones((4 * groups, 2, 1), bool)}, None, (64, 256), 4)
        low = efforts(path).runs[0].level("low")
        assert low.budget == (64 if groups == 40 else 256)
        assert groups == 40 or low.note == "39 problems are too few where nothing differs: at least 40"


def test_levels_of_a_run_whose_engine_kept_the_budget_follow_from_its_rows(tmp_path):
    right = rising(np.random.default_rng(8), problems=150)
    native = {"control": "native", "native": {"parameter": "thinking_token_budget"}}
    forced, kept = (efforts(store_of(tmp_path / f"{n}.db", {"tiny": right}, **of)) for n, of in enumerate(({}, native)))
    assert [level.to_json() for level in kept.runs[0].levels] == [level.to_json() for level in forced.runs[0].levels]


@pytest.mark.slow
def test_levels_of_a_limit_that_grew_rest_on_bets_that_hold_at_any_time(tmp_path, monkeypatch):
    path, rows = tmp_path / "s.db", random_run(0, 0.9, problems=120, draws=1)
    first, later = (add(path, "dense", rows, limit) for limit in (50, None))

    def broken(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(exact, "p_value", broken)
    (run,) = efforts(path, later).runs[-1:]
    said = "its limit grew from 50 to all after its rows could be seen, so the bounds hold at any time"
    assert run.run == later and run.problems == 120 and any(line.startswith(said) for line in run.warnings)
    with pytest.raises(RuntimeError):
        efforts(path, first, base=first)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({}, "no level"),
        ({"full": 0.1}, "cannot be named so"),
        ({"a b": 0.1}, "cannot be named so"),
        ({"low": 0}, "margin"),
    ],
)
def test_bad_levels_are_named(levels, message):
    with pytest.raises(PrunusError, match=message):
        checked_levels(levels)


def test_the_command(tmp_path, capsys):
    right = np.random.default_rng(1).random((200, 1, 1)) < np.array((0.3, 0.6, 0.88, 0.9, 0.9))[None, :, None]
    path = store_of(tmp_path / "s.db", {"tiny": right, "copy": right})
    main(["efforts", str(path), "--levels", "medium=0.05,low=10%"])
    shown = capsys.readouterr().out
    assert "loses less than 5 points" in shown and "10 % of what it solves" in shown
    assert "at every larger measured one" in " ".join(shown.split())
    main(["efforts", str(path), "--run", "copy", "--json"])
    data = capsys.readouterr().out
    assert prunus.Efforts.of(parse_json(data)).runs[-1].model == "copy"
    with pytest.raises(SystemExit):
        main(["efforts", str(path), "--levels", "low"])
    assert "NAME=MARGIN" in capsys.readouterr().err


@pytest.mark.slow
def test_levels_of_problems_that_rows_chose_rest_on_bets_that_hold_at_any_time(tmp_path):
    right = rising(np.random.default_rng(5), problems=300)
    with Store(store_of(tmp_path / "s.db", {"tiny": right})) as store:
        (run,) = store.runs()
        runs = [run, replace(run, adaptive=Adaptive.of({"by": "find", "seed": 1}))]
        measured = [
            Measured.read(store, of, store.samples(run.run_id), store.groups(), store.questions()) for of in runs
        ]
    found = [efforts_of([of], checked_levels({"low": 0.1}), None) for of in measured]
    fixed, chosen = (of.runs[0] for of in found if of is not None)
    assert not fixed.warnings and any("at any time" in line for line in chosen.warnings)
    pair = (of.level("low").budget for of in (fixed, chosen))
    assert tuple(pair) == (192, 128), "the order of the search has most losses late, when the bet is won"


def test_answers_that_go_on_thinking_are_told(tmp_path):
    right = rising(np.random.default_rng(4), problems=150)
    path = store_of(tmp_path / "s.db", {"tiny": right})
    assert not efforts(path).runs[0].warnings
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE sample SET answer_tokens = 600 WHERE budget = 256 AND problem_id < 'a-0015'")
    assert efforts(path).runs[0].warnings == [
        "at 256 tokens 10 % of the answers go on thinking, which a budget does not end"
    ]


@pytest.mark.slow
def test_the_page_draws_how_far_apart_the_budgets_are(tmp_path):
    right = rising(np.random.default_rng(6), problems=400)
    path = store_of(tmp_path / "s.db", {"tiny": right, "copy": right})
    prunus.report(path, tmp_path / "page.html", figures=tmp_path / "figures")
    (figure,) = (tmp_path / "figures").glob("efforts-*.svg")
    bracket = efforts(path).runs[1].exchange
    assert bracket is not None and not bracket.as_right[0].never
    flat = re.findall(r"M([\d.]+),([\d.]+)L([\d.]+),([\d.]+)\"", figure.read_text())
    level = [line for line in flat if line[1] == line[3]]
    assert len(level) == 1 and float(level[0][0]) < float(level[0][2])
    page = (tmp_path / "page.html").read_text()
    assert 'id="efforts"' in page and "is as right as" in page


@pytest.mark.slow
def test_compare_points_to_efforts_where_there_are_several_budgets(tmp_path, capsys):
    right = rising(np.random.default_rng(7), problems=60)
    main(["compare", str(store_of(tmp_path / "s.db", {"tiny": right, "copy": right}))])
    assert "prunus efforts STORE" in capsys.readouterr().out
    main(["compare", str(store_of(tmp_path / "o.db", {"tiny": right[:, :1], "copy": right[:, :1]}, budgets=(64,)))])
    assert "prunus efforts STORE" not in capsys.readouterr().out


def test_ticks_of_a_fine_grid_have_room():
    grid = {512, 431, 362, 304, 256, 215, 181, 152, 128, 64}
    assert ticks(grid) == [64, 128, 181, 256, 362, 512] and ticks({64}) == [64]
