"""Chains of a backend that streams: each is stored as soon as it is complete, and none waits for another."""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import pytest
import warm_processes
from babbling import babble
from completions_server import Server, serving
from last_first import LastFirst
from scripted_backend import ScriptedBackend
from tiny_chains import TOKENIZER

import prunus
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation import backends, pipeline
from prunus.evaluation.engine import Backend, in_background
from prunus.evaluation.resolved_plan import problem_row, resolve_plan
from prunus.evaluation.run import missing_batches
from prunus.recipes import EvalPlan, TraceRecipe
from prunus.settings.engines import EngineOptions
from prunus.store.rows import Run
from prunus.store.store import Store

PLAN = EvalPlan(tasks=("tiny",), budgets=(0, 2, 6), answer_tokens=6, limit=4, samples=2, batch_size=4)


def evaluated(path, backend: Backend, plan: EvalPlan = PLAN) -> tuple[str, set]:
    work = resolve_plan(ModelFolder(tiny_folder()), TOKENIZER, plan)
    with Store(path, create=True) as store:
        store.add_problems(map(problem_row, work.problems))
        store.add_run(Run.of(work.run_id, {"name": "tiny", "manifest": {}}, work.plan, {}))
        pipeline.fill(store, work, backend, missing_batches(store, work))
    return work.run_id, rows(path, work.run_id)


def rows(path, run_id: str) -> set:
    with Store(path) as store:
        return {
            (s.problem_id, s.budget, s.draw, s.thinking, s.text, s.correct) for s in store.samples(run_id, texts=True)
        }


@pytest.mark.slow
def test_rows_are_those_of_batches(tmp_path):
    backend = LastFirst()
    run_id, found = evaluated(tmp_path / "streamed.db", backend)
    assert prunus.evaluate("tiny", PLAN, tmp_path / "batches.db").run_id == run_id
    assert found == rows(tmp_path / "batches.db", run_id) and len(found) == 4 * 2 * 3
    # New chains were taken while others were not complete: there is no barrier.
    assert backend.log.index("chain") < len(backend.log) - 1 - backend.log[::-1].index("take")


@pytest.mark.slow
def test_a_control_has_no_more_chains_at_once_than_its_batches(tmp_path):
    usual, again = LastFirst(window=100), LastFirst(window=100)
    _, found = evaluated(tmp_path / "usual.db", usual)
    _, repeated = evaluated(tmp_path / "again.db", again, replace(PLAN, aa_control=True))
    assert repeated == found
    assert usual.log == ["take"] * 8 + ["chain"] * 8
    assert again.log == (["take"] * 2 + ["chain"] * 2) * 4


@pytest.mark.slow
def test_what_was_complete_is_stored_when_the_engine_fails(tmp_path):
    path = tmp_path / "streamed.db"
    with pytest.raises(PrunusError, match="the engine is gone"):
        evaluated(path, LastFirst(ends_after=5))
    work = resolve_plan(ModelFolder(tiny_folder()), TOKENIZER, PLAN)
    assert len(rows(path, work.run_id)) == 5 * 3, "whole chains"
    rest = LastFirst()
    _, found = evaluated(path, rest)
    assert rest.log.count("chain") == 8 - 5, "only chains that are missing are computed again"
    prunus.evaluate("tiny", PLAN, tmp_path / "batches.db")
    assert found == rows(tmp_path / "batches.db", work.run_id)


class Holding(Server):
    """A server of babble that gives no answers to some prompts, and to what follows others, until it is released."""

    def hold(self, never_begun: list[int], half_done: list[int]) -> None:
        self.released, self.never_begun, self.half_done = threading.Event(), never_begun, half_done

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, length = body["prompt"], len(self.half_done)
        if prompt == self.never_begun or (prompt[:length] == self.half_done and len(prompt) > length):
            self.released.wait(60)
        return super().complete(body)


KILLED = """
import json, sys, prunus
plan = prunus.EvalPlan.from_json(json.loads(sys.argv[1]))
prunus.evaluate("tiny", plan, sys.argv[2], options=prunus.EngineOptions(url=sys.argv[3]))
"""


@pytest.mark.thorough
@pytest.mark.slow
@warm_processes.in_one_worker
def test_a_kill_loses_the_chains_that_the_engine_works_on_and_no_other(tmp_path):
    """Of 8 chains 4 are at the server: 2 think, 2 of which the thinking is done answer. The other 4 are stored."""
    plan, path = EvalPlan.from_json(PLAN.to_json() | {"backend": "openai", "temperature": 1.0}), tmp_path / "killed.db"
    work = resolve_plan(ModelFolder(tiny_folder()), TOKENIZER, plan)
    server = Holding(ScriptedBackend(babble), TOKENIZER)
    server.hold(never_begun=work.chains[0].prompt, half_done=work.chains[1].prompt)
    with serving(server):
        with warm_processes.running(KILLED, json.dumps(plan.to_json()), path, server.url) as process:
            for _ in range(1000):
                with suppress(PrunusError):  # until the store has its tables
                    if len(rows(path, work.run_id)) == 4 * 3:
                        break
                time.sleep(0.05)
            assert process.is_running()
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        kept = Counter(problem for problem, *_ in rows(path, work.run_id))
        assert kept == {work.problems[index].id: 2 * 3 for index in (2, 3)}
        server.released.set()
        server.seen.clear()
        engine = EngineOptions(url=server.url)
        assert prunus.evaluate("tiny", plan, path, options=engine).run_id == work.run_id
        thought = Counter(tuple(body["prompt"]) for body in server.seen)
        assert [thought[tuple(chain.prompt)] for chain in work.chains] == [2, 2, 0, 0], (
            "no other chain is sampled again"
        )
        prunus.evaluate("tiny", plan, tmp_path / "unbroken.db", options=engine)
    assert rows(path, work.run_id) == rows(tmp_path / "unbroken.db", work.run_id)


@pytest.mark.slow
def test_traces_are_those_of_batches_and_only_missing_chains_are_drawn_again(tmp_path, monkeypatch):
    recipe = TraceRecipe(tasks=("tiny-train",), limit=8, chain_tokens=24, batch_size=3)
    prunus.traces("tiny", tmp_path / "batches.jsonl", recipe)
    out, backend = tmp_path / "streamed.jsonl", LastFirst(ends_after=5)
    monkeypatch.setattr(backends, "opened", lambda *_: nullcontext(backend))
    with pytest.raises(PrunusError, match="the engine is gone"):
        prunus.traces("tiny", out, recipe)
    kept = [json.loads(line) for line in (tmp_path / "streamed.jsonl.partial").read_text().splitlines()[1:]]
    assert sum(len(portion["rows"]) for portion in kept) == 5
    backend = LastFirst()
    prunus.traces("tiny", out, recipe)
    assert backend.log.count("chain") == 8 - 5
    assert out.read_bytes() == (tmp_path / "batches.jsonl").read_bytes()


def test_a_slow_grader_does_not_hold_the_engine_up():
    """All items come while the first one is being worked on."""
    gate, seen = threading.Event(), list[list[int]]()

    def items() -> Iterator[int]:
        yield from range(20)
        assert seen == []
        gate.set()

    def slow(some: list[int]) -> int:
        gate.wait(30)
        seen.append(some)
        return len(some)

    assert sum(in_background(slow, items())) == 20
    assert [one for some in seen for one in some] == list(range(20)) and len(seen) <= 2


def test_an_error_in_the_background_is_raised_where_results_are_taken():
    failed = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        failed.wait(30)
        time.sleep(0.1)
        yield 2
        raise AssertionError("no item is asked for after an error")

    def broken(some: list[int]) -> None:
        failed.set()
        raise PrunusError("the disk is full")

    with pytest.raises(PrunusError, match="the disk is full"):
        list(in_background(broken, items()))
