"""Accuracy against seconds: tokens become seconds as a plain sum says, and the page shows what a deadline buys."""

import sqlite3
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fake_store import make_store
from html_page import Page
from small_study import write_study

import prunus
from prunus.checkpoint.resolve import tiny_folder
from prunus.cli import main
from prunus.engines import EngineOptions
from prunus.errors import PrunusError
from prunus.evaluation import latency as measuring
from prunus.evaluation.backends.hf import HFBackend
from prunus.evaluation.backends.scripted import ScriptedBackend
from prunus.recipes import EvalPlan
from prunus.reporting.page import report
from prunus.reporting.sections.latency import seconds_text
from prunus.results.latency import Speed, affordable, by_budget, contrast, deadlines, draw_seconds
from prunus.results.store import Store
from prunus.results.table import tables

SPEED = Speed((10, 40, 100), (0.1, 0.2, 0.5), (1.0, 2.0, 5.0), {"tiny": 20.0}, 3, {"dtype": "float32", "clock": "cpu"})


def stored(speed=SPEED, factor=1.0, **how):
    """A speed as the store keeps it, with all times multiplied by `factor`."""
    return {
        "contexts": list(speed.contexts),
        "decode": [factor * one for one in speed.decode],
        "prefill": [factor * one for one in speed.prefill],
        "prompts": dict(speed.prompts),
        "start": speed.start,
        "how": {**speed.how, **how},
    }


def decode_at(context):
    """Seconds of a token by hand: straight lines, level outside."""
    knots = list(zip(SPEED.contexts, SPEED.decode, strict=True))
    if context <= knots[0][0]:
        return knots[0][1]
    for (x0, y0), (x1, y1) in pairwise(knots):
        if context <= x1:
            return y0 + (y1 - y0) * (context - x0) / (x1 - x0)
    return knots[-1][1]


@pytest.mark.parametrize(("prompt", "tokens"), [(10, 30), (20, 0), (20, 1), (5, 3), (20, 500), (90, 60), (300, 7)])
def test_seconds_are_the_prompt_and_a_sum_over_tokens(prompt, tokens):
    # Many small steps of a token, so that the sum is the integral.
    parts = 1000
    total = sum(decode_at(prompt + (k + 0.5) * tokens / parts) for k in range(parts)) * tokens / parts
    reading = np.interp(prompt, SPEED.contexts, SPEED.prefill)
    assert float(SPEED.seconds(prompt, tokens)) == pytest.approx(reading + total, rel=1e-4)


def test_a_draw_is_its_prompt_and_all_tokens_but_the_marker_that_is_read(tmp_path):
    path = make_store(tmp_path / "s.db", names=("tiny",), problems=6, budgets=(16, 64), draws=2)
    with Store(path) as opened:
        (run,) = opened.runs()
        samples = opened.samples(run.run_id)
    table = tables(samples)["tiny"]
    found = draw_seconds(table, SPEED, "tiny")
    for p, problem in enumerate(table.problems):
        for b, budget in enumerate(table.budgets):
            for n, draw in enumerate(table.draws):
                (s,) = [one for one in samples if (one.problem_id, one.budget, one.draw) == (problem, budget, draw)]
                tokens = s.thinking_tokens + s.answer_tokens + s.forced_tokens - 3
                assert found[p, b, n] == pytest.approx(float(SPEED.seconds(20.0, tokens)))
    cells = by_budget(table, SPEED, "tiny")
    assert cells[64] == {"mean": found[:, 1].mean(), "p95": np.percentile(found[:, 1], 95)}


def test_the_largest_budget_that_is_done_in_time():
    cells = {16: {"p95": 1.0}, 32: {"p95": 2.5}, 64: {"p95": 2.5}, 128: {"p95": 9.0}}
    found = [affordable(cells, deadline) for deadline in (0.9, 1.0, 2.4, 2.5, 8.9, 100.0)]
    assert found == [None, 16, 16, 64, 64, 128]


@pytest.mark.parametrize(
    ("first", "last", "wanted"),
    [
        (0.05, 1.0, [0.05, 0.1, 0.2, 0.5, 1.0]),
        (0.051, 1.1, [0.1, 0.2, 0.5, 1.0, 2.0]),
        (3.0, 3.0, [5.0]),
        (7.0, 7.5, [10.0]),
        (0.001, 900.0, [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]),
    ],
)
def test_deadlines_are_round_numbers_around_what_draws_take(first, last, wanted):
    found = deadlines(first, last)
    assert len(found) <= 8 and (found == wanted or len(wanted) == 7)
    assert found[0] >= first and (found[-1] >= last or len(wanted) == 7)


def test_a_contrast_pairs_different_budgets_by_problem(tmp_path):
    path = make_store(tmp_path / "s.db", names=("tiny", "wanda-50"), problems=60, budgets=(16, 256))
    with Store(path) as opened:
        dense, wanda = (tables(opened.samples(run.run_id))["tiny"] for run in opened.runs())
    found = contrast(dense, wanda, (16, 256))
    shares = wanda.correct[:, 1].mean(axis=1) - dense.correct[:, 0].mean(axis=1)
    assert found["difference"] == pytest.approx(shares.mean())
    assert found["low"] < found["difference"] < found["high"] and found["p"] < 0.05
    nothing = contrast(dense, dense, (16, 16))
    assert nothing["difference"] == 0 and nothing["low"] < 0 < nothing["high"] and nothing["p"] > 0.9


# The store


def test_speeds_are_kept_by_machine_and_a_store_made_without_them_takes_them(tmp_path):
    path = make_store(tmp_path / "s.db", names=("tiny",), problems=2, budgets=(16,))
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE timing")
    connection.close()
    with Store(path) as opened:
        (run,) = opened.runs()
        assert opened.timings(run.run_id) == {}
        opened.set_timing(run.run_id, "A", stored())
        opened.set_timing(run.run_id, "B", stored(factor=2.0))
        opened.set_timing(run.run_id, "A", stored(factor=3.0))
    with Store(path) as opened:
        assert opened.timings(run.run_id) == {"A": stored(factor=3.0), "B": stored(factor=2.0)}
        assert Speed.from_json(opened.timings(run.run_id)["B"]).decode == [0.2, 0.4, 1.0]
        assert opened.timings("another") == {}


# Measuring


def test_measuring_takes_the_least_disturbed_round():
    timed = {10: [(5.0, [1.0, 1.0, 9.0]), (4.0, [2.0, 2.0, 0.1])], 20: [(8.0, [3.0]), (9.0, [3.3])]}
    found = measuring.speed_of(timed, {"a": [4, 6]}, 2, {"dtype": "float32"})
    assert found["contexts"] == [10, 20] and found["decode"] == [1.0, 3.0] and found["prefill"] == [4.0, 8.0]
    assert found["prompts"] == {"a": 5.0} and found["how"]["spread"] == pytest.approx((1.0 + 0.1) / 2)


@pytest.mark.parametrize(("shortest", "longest"), [(20, 700), (1, 1), (64, 64), (100, 30), (0, 5)])
def test_contexts_double_from_the_shortest_prompt_to_the_longest_chain(shortest, longest):
    found = list(measuring.grid(shortest, longest))
    assert found[-1] == max(1, longest) and (found[0] == max(1, shortest) or shortest >= longest)
    assert all(b <= 2 * a for a, b in pairwise(found)) and found == sorted(set(found))


def test_the_backend_times_each_token_and_longer_contexts_take_longer_to_read():
    backend = HFBackend.load(tiny_folder(), "cpu", 363)
    assert isinstance(backend, measuring.TimedBackend)
    backend.time_tokens(8, 2)
    short, long = (min(backend.time_tokens(context, 1)[0] for _ in range(3)) for context in (8, 1024))
    reading, steps = backend.time_tokens(64, 5)
    assert len(steps) == 5 and reading > 0 and min(steps) > 0
    assert long > 3 * short


def test_a_backend_that_cannot_be_timed_is_refused():
    with pytest.raises(PrunusError, match="cannot be timed; leave --measure-seconds out"):
        measuring.measure(ScriptedBackend(lambda *_: []), {"a": [3]}, 0, 10, 100)


def test_a_finished_run_is_measured_once_and_without_drawing_again(tmp_path, monkeypatch):
    plan, store = EvalPlan(tasks=("tiny",), budgets=(8, 16), limit=3), tmp_path / "s.db"
    run_id = prunus.evaluate("tiny", plan, store)
    calls = []
    real = measuring.measure

    def counted(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(measuring, "measure", counted)
    monkeypatch.setattr("prunus.evaluation.run.run_batch", lambda *_: pytest.fail("drawn again"))
    for _ in range(2):
        assert prunus.evaluate("tiny", plan, store, measure_seconds=True) == run_id
    assert len(calls) == 1
    with Store(store) as opened:
        ((machine, speed),) = opened.timings(run_id).items()
    assert "thread" in machine and speed["how"]["device"] == "cpu" and speed["start"] > 0
    assert speed["contexts"][0] >= 10 and speed["contexts"] == sorted(speed["contexts"])
    (longest,) = [arguments[3] for arguments in calls]
    assert speed["contexts"][-1] == longest and all(one > 0 for one in speed["decode"] + speed["prefill"])
    with pytest.raises(PrunusError, match="backend hf only, not openai"):
        prunus.evaluate(
            "tiny",
            EvalPlan(tasks=("tiny",), backend="openai"),
            tmp_path / "t.db",
            engine=EngineOptions(url="http://localhost:1/v1"),
            measure_seconds=True,
        )


def test_a_study_times_its_variants_and_a_model_without_blocks_is_faster(tmp_path):
    """Two of three blocks gone: what is left takes less time a token, whatever the machine."""
    recipes = '[[drop]]\nblocks = "0,2"\n'
    file = write_study(tmp_path, recipes, top="measure_seconds = true", hidden_size=256, intermediate_size=512)
    prunus.run_study(file, out=tmp_path / "out")
    found = prunus.run_study(file, out=tmp_path / "out")
    with Store(found["store"]) as opened:
        speeds = {run.model["name"]: list(opened.timings(run.run_id).values()) for run in opened.runs()}
    ((dense,), (dropped,)) = speeds["model"], speeds["model/without-0-2"]
    assert np.mean(dropped["decode"]) < 0.8 * np.mean(dense["decode"])
    assert 'id="seconds"' in Path(found["report"]).read_text("utf-8")
    file.write_text(file.read_text().replace("[eval]", '[eval]\nbackend = "vllm"'))
    with pytest.raises(PrunusError, match=r"line 2: .*backend hf only, not vllm"):
        prunus.run_study(file, out=tmp_path / "other")


# The page


@pytest.fixture(scope="module")
def timed_store(tmp_path_factory) -> Path:
    """Dense, and Wanda 50 % on a machine of its own that is three times as fast."""
    path = make_store(tmp_path_factory.mktemp("timed") / "s.db", names=("tiny", "wanda-50", "drop-1"), problems=60)
    with Store(path) as opened:
        for run, factor in zip(opened.runs(), (1.0, 1 / 3, None), strict=True):
            if factor is not None:
                opened.set_timing(run.run_id, "Machine <x>", stored(factor=factor, spread=0.02))
        opened.set_timing(opened.runs()[0].run_id, "Elsewhere", stored())
    return path


def test_the_page_draws_seconds_and_what_a_deadline_buys(timed_store, tmp_path):
    page = Page(report(timed_store, tmp_path / "page.html", figures=tmp_path / "f", csv=tmp_path / "c"))
    text = page.source
    assert "Accuracy on tiny against seconds" in text and "on Machine &lt;x&gt;" in text and "<x>" not in text
    assert "Not timed on it: ShortGPT" in text and "The machine was busy" not in text
    with Store(timed_store) as opened:
        dense, wanda, _ = opened.runs()
        found = {run.run_id: tables(opened.samples(run.run_id))["tiny"] for run in (dense, wanda)}
    seconds = {
        run.run_id: by_budget(found[run.run_id], Speed.from_json(stored(factor=factor)), "tiny")
        for run, factor in ((dense, 1.0), (wanda, 1 / 3))
    }
    rows = page.rows("deadlines")[1:]
    assert rows and len({row[1] for row in rows}) * 2 == len(rows)
    affordable_more = 0
    for name, deadline, budget, *_ in rows:
        run = dense if name.strip() == "dense" else wanda
        wanted = affordable(seconds[run.run_id], float(deadline))
        assert budget.strip() == ("" if wanted is None else str(wanted))
        mine, base = wanted or -1, affordable(seconds[dense.run_id], float(deadline)) or -1
        affordable_more += mine > base
    assert affordable_more > 0, "the faster run can think longer"
    assert (tmp_path / "f" / "accuracy-seconds-tiny.svg").exists() and (tmp_path / "c" / "deadlines-tiny.csv").exists()


def test_the_page_warns_of_a_busy_machine_and_without_speeds_says_nothing(timed_store, tmp_path):
    plain = make_store(tmp_path / "plain.db", names=("tiny",), problems=6, budgets=(16,))
    assert 'id="seconds"' not in report(plain, tmp_path / "plain.html").read_text("utf-8")
    with Store(plain) as opened:
        opened.set_timing(opened.runs()[0].run_id, "M", stored(spread=0.5))
    text = report(plain, tmp_path / "busy.html").read_text("utf-8")
    assert 'id="seconds"' in text and "The machine was busy" in text and "50.0 % longer" in text


def test_the_command_measures(tmp_path, capsys):
    store = tmp_path / "s.db"
    main(
        ["eval", "tiny", "--task", "tiny", "--budgets", "8", "--limit", "2", "--store", str(store), "--measure-seconds"]
    )
    with Store(store) as opened:
        assert len(opened.timings(opened.runs()[0].run_id)) == 1


@pytest.mark.parametrize(("value", "text"), [(0.0523, "0.052"), (1.26, "1.3"), (12.4, "12"), (None, "\u2013")])
def test_seconds_are_shown_with_two_digits(value, text):
    assert seconds_text(value) == text
