"""The speed test of a form: on an engine with a cache of prefixes whose time is made up, and as JSON."""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import pytest

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.evaluation.requests import Completion, Request, Sampling
from prunus.evaluation.resolved_plan import resolve_plan
from prunus.recipes import EvalPlan
from prunus.settings.engines import EngineOptions
from prunus.store.stored import Environment
from prunus.studies.choose import speed_process
from prunus.studies.choose.speed import cost_of, speed_test_of_plan
from prunus.studies.choose.speed_process import SpeedTest, SpeedTestResult, Timing

# Seconds of a token that is read, of one that is drawn, and how much longer that takes for each token before it.
READ, DECODED, DEEPER = 0.01, 0.1, 1e-4


class Engine:
    """A backend that keeps every prompt and reads of the next one only what is new, one chain after the other."""

    def __init__(self) -> None:
        self.seconds, self.kept = 0.0, list[list[int]]()

    def completed(self, requests: Sequence[Request], _: Sampling) -> Iterator[None]:
        for request in requests:
            shared = max((common(request.prompt, one) for one in self.kept), default=0)
            self.seconds += READ * (len(request.prompt) - shared)
            self.seconds += sum(DECODED + DEEPER * (len(request.prompt) + n) for n in range(request.max_new_tokens))
            self.kept.append(list(request.prompt))
            assert request.then is not None
            request.then(Completion([7] * request.max_new_tokens, None), None)
            yield


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of their first tokens are the same."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def test_an_engine_that_keeps_prefixes_is_timed_as_on_new_prompts(monkeypatch):
    engine = Engine()
    monkeypatch.setattr(speed_process.time, "perf_counter", lambda: engine.seconds)
    monkeypatch.setattr(speed_process, "opened", lambda *_: nullcontext(engine))
    monkeypatch.setattr(speed_process, "describe_environment", lambda _: Environment())
    trial = SpeedTest(
        backend="openai", folder="", device="cpu", vocabulary=1000, engine={}, chains=[1, 3],
        prompts=[[100 * number + n for n in range(50)] for number in range(3)],
        filler=list(range(500, 540)), depth=200, tokens=20, banned=[], sampling=[0.0, 1.0, 0],
    )  # fmt: skip
    drawn = DECODED + 50 * DEEPER
    for pace in speed_process.measured(trial).times:
        assert pace.prompt_seconds == pytest.approx(pace.chains * (50 * READ + drawn))
        assert pace.first == pytest.approx(pace.chains * drawn, rel=0.02)
        assert pace.last == pytest.approx(pace.chains * (DECODED + 250 * DEEPER), rel=0.02)


@pytest.mark.parametrize("length", [2, 7, 50])
def test_prompts_of_a_test_begin_otherwise_and_end_as_they_did(length):
    """With a changed end a sampled token of llama.cpp took 27.4 ms instead of 24.8 (medians of four)."""
    prompt = list(range(length))
    turned = [speed_process.turned([prompt], places)[0] for places in range(1, 5)]
    assert all(sorted(one) == prompt for one in turned)
    assert all(one[8:] == prompt[8:] for one in turned)
    if length > 4:
        assert len({one[0] for one in [prompt, *turned]}) == 5


def test_noise_of_a_long_prompt_does_not_make_later_tokens_free(monkeypatch):
    """The prompt at the depth takes ten times as long the first time, so the difference of both is below zero."""
    slow, engine = iter([1.0] * 3 + [10.0, 1.0]), Engine()
    read = engine.completed
    monkeypatch.setattr(engine, "completed", lambda requests, how: stretched(engine, read(requests, how), next(slow)))
    monkeypatch.setattr(speed_process.time, "perf_counter", lambda: engine.seconds)
    monkeypatch.setattr(speed_process, "opened", lambda *_: nullcontext(engine))
    monkeypatch.setattr(speed_process, "describe_environment", lambda _: Environment())
    trial = SpeedTest(
        backend="openai", folder="", device="cpu", vocabulary=1000, engine={}, chains=[1], prompts=[list(range(50))],
        filler=list(range(500, 540)), depth=200, tokens=20, banned=[], sampling=[0.0, 1.0, 0],
    )  # fmt: skip
    (pace,) = cost_of([speed_process.measured(trial)], 0, 0).times
    assert pace.last == pace.first == pytest.approx(DECODED + 50 * DEEPER, rel=0.02)


def test_a_machine_that_is_slower_for_a_round_does_not_make_long_chains_slow():
    """In one round everything takes twice as long, in another what is timed last."""
    paces = [(0.1, 0.11), (0.2, 0.22), (0.1, 0.22)]
    rounds = [
        SpeedTestResult(
            times=[Timing(chains=1, prompt_tokens=9, prompt_seconds=1, first=first, last=last, depth=64)],
            peak=1,
            engine=Environment(),
        )
        for first, last in paces
    ]
    (pace,) = cost_of(rounds, 0, 0).times
    assert (pace.first, pace.last) == (pytest.approx(0.1), pytest.approx(0.11))


def stretched(engine: Engine, rows: Iterator[None], factor: float) -> Iterator[None]:
    """The completions of the engine, which take it `factor` times as long."""
    started = engine.seconds
    yield from rows
    engine.seconds = started + factor * (engine.seconds - started)


def test_what_is_asked_and_what_is_said_travel_as_json():
    asked = SpeedTest(
        backend="hf", folder="model", device="cpu", vocabulary=100, engine={"serving": "plain"}, chains=[1, 2],
        prompts=[[1, 2], [3]], filler=[4, 5], depth=16, tokens=2, banned=[0], sampling=[0.6, 1.0, 0],
    )  # fmt: skip
    assert SpeedTest.of(json.loads(json.dumps(asked.to_json()))) == asked
    times = [Timing(chains=n, prompt_tokens=1.5, prompt_seconds=0.1, first=0.2, last=0.3, depth=16) for n in (1, 2)]
    said = SpeedTestResult(times=times, peak=10**9, engine=Environment.of({"engine": "transformers"}))
    assert SpeedTestResult.of(json.loads(json.dumps(said.to_json()))) == said


def test_no_special_token_can_end_what_is_timed():
    """llama.cpp ends at any end token of its file: the rest was asked for anew, and the prompt was read twice."""
    folder = tiny_folder()
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "<|another_end|>"})
    work = resolve_plan(Checkpoint(folder), tokenizer, EvalPlan(("tiny",), (16,), limit=2))
    asked = speed_test_of_plan(work, folder, "hf", "cpu", EngineOptions(), [1])
    ids = tokenizer.get_vocab()
    assert {ids["<|another_end|>"], ids["<|endoftext|>"]} <= set(asked.banned)
    assert work.rules.markers.answer_stops <= set(asked.banned)
