"""Progress while a batch is decoded, with a slow model and a clock that only this model moves."""

import json
import re
from functools import partial
from itertools import pairwise

import pytest
import torch
from tiny_chains import MARKERS, TOKENIZER, chains, tiny

import prunus
from prunus import progress
from prunus.evaluation.backends.hf import HFBackend
from prunus.evaluation.backends.rows import PaddedRows, SeparateRows
from prunus.evaluation.budget import Rules, force_budgets
from prunus.evaluation.engine import BatchProgress
from prunus.evaluation.requests import Sampling
from prunus.progress import Steps
from prunus.recipes import EvalPlan, TraceRecipe

GREEDY = Sampling(0.0)
TOKENS_A_SECOND = 30.0
SECONDS_A_PASS = 0.5


class Clock:
    """A clock that the model moves: each forward pass takes half a second and 1/30 s per token."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tokens = 0

    def __call__(self) -> float:
        return self.now

    def tick(self, module, arguments, options) -> None:
        tokens = options["input_ids"].numel()
        self.tokens += tokens
        self.now += SECONDS_A_PASS + tokens / TOKENS_A_SECOND


@pytest.fixture
def slow():
    """The tiny reasoner's own model, and the clock that it moves."""
    clock, model = Clock(), tiny().model
    handle = model.register_forward_pre_hook(clock.tick, with_kwargs=True)
    yield HFBackend(model, len(TOKENIZER)), clock
    handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize("rows", [PaddedRows, SeparateRows])
def test_updates_come_every_few_seconds_of_a_slow_batch(slow, rows, monkeypatch):
    backend, clock = slow
    backend.__dict__["_rows"] = partial(rows, backend.model)
    monkeypatch.setattr("prunus.evaluation.backends.rows.PREFILL_TOKENS", 30)
    some = chains(5)
    assert sum(len(chain.prompt) for chain in some) > 3 * 30, "more than three passes"
    expected = force_budgets(tiny(), some, (0, 12), Rules(MARKERS, GREEDY))
    clock.now, clock.tokens, updates = 0.0, 0, [(0.0, 0.0, "")]
    pace = BatchProgress(12, clock)
    with pace.shown(backend, len(some), 1, lambda share, note: updates.append((clock.now, share, note))):
        assert force_budgets(backend, some, (0, 12), Rules(MARKERS, GREEDY)) == expected
    times, shares, notes = zip(*updates, strict=True)
    assert clock.now - times[-1] == 0.0, "the last update is the last pass"
    assert max(after - before for before, after in pairwise(times)) < 4.0
    assert list(shares) == sorted(shares) and 0.5 < shares[-1] < 1.0
    assert notes[1].startswith("reading prompts, ")
    # Every id that the model read is counted once: prompts first (padding included), then the others.
    read = max(int(note.split()[2].replace(",", "")) for note in notes if note.startswith("reading"))
    after = int(notes[-1].split()[0].replace(",", ""))
    if rows is SeparateRows:
        assert (read, read + after) == (sum(len(chain.prompt) for chain in some), clock.tokens)
    assert notes[-1] == f"{after:,} tokens of this batch, {after / clock.now:,.0f} tokens/s"
    backend.on_tokens(1, 1)
    assert len(updates) == len(times), "after the batch nobody listens"
    assert (pace.chains, pace.tokens) == (5, after)


def test_later_batches_are_compared_with_those_before():
    clock, seen = Clock(), list[float]()
    pace, backend = BatchProgress(1000, clock), HFBackend(tiny().model, len(TOKENIZER))
    for tokens in (100, 50):
        with pace.shown(backend, 10, 1, lambda share, _: seen.append(share)):
            clock.now += 1
            backend.on_tokens(70, 0)
            backend.on_tokens(0, tokens)
    assert seen == [0.0, 100 / 10_000, 0.0, 50 / 100]


@pytest.mark.slow
def test_time_left_falls_within_a_batch(slow, monkeypatch, capsys):
    """Of the lines that are printed where the output is no terminal."""
    backend, clock = slow
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 2.0)
    some = chains(8)
    with Steps("evaluating", 2 * len(some), "answers", clock=clock) as steps:
        with BatchProgress(12, clock).shown(backend, 8, 8, steps.within):
            force_budgets(backend, some, (12,), Rules(MARKERS, GREEDY))
        steps.advance(8)
    lines = capsys.readouterr().err.splitlines()
    first = [
        re.fullmatch(r"evaluating: 0/16 answers(?:, about (\d+) s left)? (.*)", line)
        for line in lines
        if " 0/16 " in line
    ]
    assert len(first) > 2 and all(first), lines
    left = [int(found[1]) for found in first if found and found[1]]
    assert left[0] > left[-1] > 0


@pytest.mark.slow
def test_lots_and_traces_show_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    plan = EvalPlan(tasks=("tiny",), budgets=(0, 8), limit=3, batch_size=3)
    prunus.evaluate("tiny", plan, tmp_path / "results.db")
    lines = capsys.readouterr().err.splitlines()
    within = [line for line in lines if re.match(r"evaluating: 0/6 answers, about \d+ s left [\d,]+ tokens of", line)]
    assert len(within) > 8, lines
    recipe = TraceRecipe(tasks=("tiny-train",), limit=3, chain_tokens=12)
    prunus.traces("tiny", tmp_path / "traces.jsonl", recipe)
    lines = capsys.readouterr().err.splitlines()
    assert sum(bool(re.match(r"drawing: 0/3 chains, about \d+ s left", line)) for line in lines) > 8, lines
    assert len([json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]) == 3


def test_the_time_left_does_not_count_what_is_done_before_the_work(capsys):
    """Found here: an engine that took minutes to start made the time left many times too long."""
    clock = Clock()
    with Steps("drawing", 10, "chains", clock=clock) as steps:
        for seconds in (1000, 31, 31):
            clock.now += seconds
            steps.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "drawing: 1/10 chains",
        "drawing: 2/10 chains, about 248 s left",
        "drawing: 3/10 chains, about 217 s left",
    ]


def test_work_that_lasts_is_named_early_and_no_line_comes_twice(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "FIRST_AFTER_SECONDS", 0.01)
    with progress.named_if_slow("starting the engine"), Steps("drawing", 10, "chains", clock=clock) as steps:
        steps.timer.join()
        for _ in range(2):
            clock.now += 31
            steps.within(0.0)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == ["drawing: 0/10 chains", "starting the engine"]
    monkeypatch.setattr(progress, "FIRST_AFTER_SECONDS", 100.0)
    with progress.named_if_slow("starting the engine"), Steps("drawing", 10, "chains", clock=clock) as steps:
        pass
    steps.timer.join()
    assert not capsys.readouterr().err


def test_the_time_left_is_by_sizes_where_units_are_not_the_same_work(capsys):
    """Found here: the last tensors of a GGUF file are its largest; `5 s left` took 90."""
    clock = Clock()
    with Steps("writing", 4, "tensors", clock=clock, sizes=[10, 10, 10, 970]) as steps:
        for seconds in (31, 31, 31):
            clock.now += seconds
            steps.advance()
    assert capsys.readouterr().err.splitlines() == [
        "writing: 1/4 tensors",
        "writing: 2/4 tensors, about 3038 s left",  # 980 of 1000 at 10 in 31 s
        "writing: 3/4 tensors, about 3007 s left",
    ]


def test_without_progress_there_is_no_line(capsys):
    """Found here: the demonstration asks again every second how much is done, and each time the time left grew."""
    clock = Clock()
    with Steps("making", 10, "answers", clock=clock) as steps:
        for count in (1, 1, 0, 0):
            clock.now += 31
            steps.advance(count)
    assert capsys.readouterr().err.splitlines() == ["making: 1/10 answers", "making: 2/10 answers, about 248 s left"]


def test_work_that_shows_nothing_for_long_says_that_it_goes_on(monkeypatch, capsys):
    """Found here: vLLM had nothing to show between 0/240 answers and its first chains, minutes later."""
    monkeypatch.setattr(progress, "FIRST_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.01)
    with Steps("evaluating", 10, "answers", clock=Clock()) as steps:
        steps.timer.join()
        for _ in range(2):
            assert steps.later is not None
            steps.later.join()
    assert capsys.readouterr().err.splitlines()[:3] == [
        "evaluating: 0/10 answers",
        "evaluating: 0/10 answers, still at work after another 0 s",
        "evaluating: 0/10 answers, still at work after another 0 s",
    ]


def test_a_busy_machine_is_named_once_where_work_lasts(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_said_busy", False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for load, said in ((2.9, False), (5.25, True), (5.25, False)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        with Steps("pruning", 10, "blocks") as steps:
            steps.timer.join()
        assert (f"busy (load {load:.1f} on 2 cores): this takes longer" in capsys.readouterr().err) == said


def test_another_process_can_hear_how_much_is_done(monkeypatch):
    monkeypatch.setattr(progress, "_heard", None)
    heard = []
    progress.hear(lambda *told: heard.append(told))
    with Steps("evaluating", 10, "answers", done=4) as steps:
        steps.within(1.5)
        steps.advance(3)
        steps.within(0.25)
    assert heard == [("evaluating", 1.5), ("evaluating", 1.5), ("evaluating", 0.25)]


def test_a_finished_row_is_not_read():
    model, prompts = tiny().model, [chain.prompt for chain in chains()[:2]]
    with torch.inference_mode():
        alone, both = SeparateRows(model, prompts[1:]), SeparateRows(model, prompts)
        alone.prefill()
        both.prefill()
        found = both.step([None, 7])
        assert not found[0].any() and torch.equal(found[1], alone.step([7])[0])
