"""evaluate(): what is stored, what is done again, what survives a kill, what is refused before anything is written."""

import json
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import warm_processes
from private_sets import private_problems
from tiny_models import make_model

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.device import processor
from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation import engine as loop
from prunus.evaluation.backends.hf import HFBackend
from prunus.evaluation.engine import Engine
from prunus.evaluation.grading import GRADER_VERSION
from prunus.evaluation.resolved_plan import cut_into_batches, resolve_plan
from prunus.recipes import EvalPlan
from prunus.store.looping import repetition_rate
from prunus.store.rows import Sample
from prunus.store.store import Store

PLAN = EvalPlan(tasks=("tiny",), limit=6, budgets=(0, 4, 10), batch_size=4)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "results.db"


def rows(store: Path) -> list[tuple]:
    """The sample table as SQLite has it."""
    with sqlite3.connect(store) as connection:
        found = connection.execute("SELECT * FROM sample ORDER BY run_id, problem_id, budget, draw").fetchall()
    connection.close()
    return found


def no_model(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(HFBackend, "load", refuse)


@pytest.mark.slow
def test_every_row_of_the_plan_is_stored_once(store):
    plan = replace(PLAN, samples=2, temperature=1.0)
    run_id = prunus.evaluate("tiny", plan, store).run_id
    with Store(store) as opened:
        [run], samples, problems = opened.runs(), opened.samples(run_id, texts=True), opened.problems()
    assert len(samples) == 6 * 3 * 2 and len(problems) == 6
    assert Counter((s.budget, s.draw) for s in samples) == {(b, d): 6 for b in plan.budgets for d in (0, 1)}
    tokenizer = load_tokenizer(tiny_folder())
    for sample in samples:
        assert sample.thinking_tokens <= sample.budget and sample.answer_tokens <= 64
        assert len(tokenizer.encode(sample.thinking)) <= sample.thinking_tokens
        assert sample.correct == (sample.answer == problems[sample.problem_id].gold)
        closing = "</think>\n\n" if sample.ended == "natural" or sample.thinking.endswith("\n") else "\n</think>\n\n"
        assert sample.forced_tokens == len(tokenizer.encode("<think>\n")) + len(tokenizer.encode(closing))
    assert run.run_id == run_id and run.model.name == run.model.source == "tiny"
    assert run.model.checksum == Checkpoint(tiny_folder()).checksum() and run.model.blocks == 8
    assert run.environment.grader == GRADER_VERSION and run.environment.dtype == "float32"
    assert {"prunus", "torch", "transformers", "python", "device"} <= set(run.environment.data)
    assert run.environment.data["cpu"] == processor()


@pytest.mark.slow
def test_the_stored_plan_holds_the_values_that_took_effect(store):
    run_id = prunus.evaluate("tiny", replace(PLAN, limit=1), store).run_id
    with Store(store) as opened:
        plan = opened.run(run_id).plan
    assert (plan.profile, plan.temperature, plan.top_p, plan.top_k) == ("tiny", 0.0, 1.0, 0)
    assert plan.answer_tokens == 64 and plan.budgets == (0, 4, 10) and plan.mode == "strict"
    assert plan.strings.forced_break == "\n" and plan.strings.forced_closing == "</think>\n\n"
    spelled_out = replace(PLAN, limit=1, profile="tiny", temperature=0.0, top_p=1.0, top_k=0, answer_tokens=64)
    assert prunus.evaluate("tiny", spelled_out, store).run_id == run_id, "the same work has the same id"
    others = {
        prunus.evaluate("tiny", replace(PLAN, limit=1, **change), store).run_id for change in ({"seed": 1}, {"wait": 0})
    }
    assert len(others | {run_id}) == 2


@pytest.mark.slow
def test_a_second_call_does_no_work(store, monkeypatch):
    run_id = prunus.evaluate("tiny", PLAN, store).run_id
    before = store.read_bytes()
    no_model(monkeypatch)
    assert prunus.evaluate("tiny", PLAN, store).run_id == run_id
    assert store.read_bytes() == before


@pytest.mark.slow
def test_only_missing_batches_are_done(store, monkeypatch):
    run_id = prunus.evaluate("tiny", PLAN, store).run_id
    expected = rows(store)
    with sqlite3.connect(store) as connection:
        connection.execute("DELETE FROM sample WHERE problem_id = ? AND budget = 4", (expected[0][2],))
    connection.close()
    asked = []
    original = loop.run_batch
    monkeypatch.setattr(loop, "run_batch", lambda *args: asked.append(args[2]) or original(*args))
    assert prunus.evaluate("tiny", PLAN, store).run_id == run_id
    assert rows(store) == expected
    assert len(asked) == 1 and len(asked[0]) <= PLAN.rows


@pytest.mark.slow
def test_neither_batches_nor_reuse_change_a_row(store):
    sampled = replace(PLAN, limit=3, temperature=1.0, samples=2, budgets=(0, 4, 12))
    changes: list[dict[str, Any]] = [{"batch_size": 3}, {"batch_size": 64}, {"reuse": False}]
    run_id, *others = (prunus.evaluate("tiny", replace(sampled, **change), store).run_id for change in ({}, *changes))
    assert len({run_id, *others}) == 1 + len(changes)
    with Store(store) as opened:
        first = opened.samples(run_id, texts=True)
        for change, other_id in zip(changes, others, strict=True):
            second = opened.samples(other_id, texts=True)
            assert list(map(unscored, first)) == list(map(unscored, second)), change
            for one, other in zip(first, second, strict=True):  # the last bits depend on the rows beside
                assert one.logprob == pytest.approx(other.logprob, abs=1e-5), change
                assert one.self_certainty == pytest.approx(other.self_certainty, abs=1e-4), change


def unscored(sample: Sample) -> Sample:
    return replace(sample, logprob=None, self_certainty=None)


@pytest.mark.slow
def test_scores_and_repetition_are_stored(store):
    run_id = prunus.evaluate("tiny", replace(PLAN, limit=2, budgets=(0, 60)), store).run_id
    with Store(store) as opened:
        for sample in opened.samples(run_id, texts=True):
            assert sample.logprob is not None and -3 < sample.logprob < 0
            assert sample.self_certainty is not None and 0 < sample.self_certainty < 60
            assert sample.repetition == repetition_rate(f"{sample.thinking}\n{sample.text}")


@pytest.mark.slow
def test_draws_differ_and_seeds_tell(store):
    plan = replace(PLAN, temperature=5.0, samples=3, budgets=(12,), batch_size=64)
    with Store(store, create=True):
        pass
    ids = [prunus.evaluate("tiny", replace(plan, seed=seed), store).run_id for seed in (0, 1)]
    with Store(store) as opened:
        texts = [[sample.thinking for sample in opened.samples(run_id, texts=True)] for run_id in ids]
    assert texts[0] != texts[1]
    assert any(len(set(texts[0][at : at + 3])) == 3 for at in range(0, 18, 3))


RUNNER = """
import sys
import prunus
from prunus.evaluation import engine
original = engine.run_batch
def announced(*args):
    print("batch", flush=True)
    return original(*args)
engine.run_batch = announced
plan = prunus.EvalPlan.from_json(__import__("json").loads(sys.argv[1]))
print(prunus.evaluate("tiny", plan, sys.argv[2]), flush=True)
"""


@pytest.mark.thorough
@warm_processes.in_one_worker
@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(store, tmp_path):
    plan = replace(PLAN, temperature=1.0, samples=4)
    with warm_processes.running(RUNNER, json.dumps(plan.to_json()), store) as process:
        for _ in range(3):  # two batches of six are stored, the third is under way
            assert process.stdout.readline() == "batch\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    stored = len(rows(store))
    assert 2 * 4 * 3 <= stored < 24 * 3 and stored % (4 * 3) == 0, "whole batches only"
    run_id = prunus.evaluate("tiny", plan, store).run_id
    unbroken = tmp_path / "unbroken.db"
    assert prunus.evaluate("tiny", plan, unbroken).run_id == run_id
    assert rows(store) == rows(unbroken) and len(rows(store)) == 24 * 3


@contextmanager
def second_batch_under_way(plan: EvalPlan, store: Path) -> Iterator[warm_processes.Running]:
    """Another process that evaluates tiny, stopped where its second batch begins; killed at the end."""
    with warm_processes.running(RUNNER, json.dumps(plan.to_json()), store) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["batch\n"] * 2
        process.send_signal(signal.SIGSTOP)
        yield process


@warm_processes.in_one_worker
@pytest.mark.slow
def test_a_second_process_at_the_same_run_is_sent_away_and_one_at_another_is_not(store, monkeypatch):
    plan = replace(PLAN, limit=6, batch_size=2, budgets=(0, 8))
    with second_batch_under_way(plan, store) as process:
        before = rows(store)
        with monkeypatch.context() as patched:
            no_model(patched)  # it must not even be loaded
            with pytest.raises(PrunusError, match=rf"process \(pid {process.pid}\) is evaluating this run") as error:
                prunus.evaluate("tiny", plan, store)
        assert "\n" not in str(error.value) and rows(store) == before
        prunus.evaluate("tiny", replace(PLAN, limit=2), store)  # into the same store, side by side
        assert len(rows(store)) == len(before) + 2 * 3
    [lock] = store.parent.glob("*.lock")
    assert lock.read_text() == str(process.pid), "kill -9 leaves the file, but not the lock"
    run_id = prunus.evaluate("tiny", plan, store).run_id
    with Store(store) as opened:
        assert len(opened.keys(run_id)) == 6 * 2
    assert [path.name for path in store.parent.iterdir()] == [store.name]


@pytest.mark.slow
def test_ctrl_c_keeps_the_finished_batches(store, monkeypatch):
    original = loop.run_batch
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(loop, "run_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prunus.evaluate("tiny", PLAN, store)
    assert len(rows(store)) == PLAN.rows * 3
    assert not Path(f"{store}-journal").exists(), "the store was closed"
    prunus.evaluate("tiny", PLAN, store)
    assert len(rows(store)) == 6 * 3


def test_batches_are_sorted_by_length_and_cover_everything():
    lengths = [5, 3, 9, 3, 7]
    batches = cut_into_batches(lengths, samples=2, size=3)
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    chains = [chain for batch in batches for chain in batch]
    assert chains == [(1, 0), (3, 0), (0, 0), (4, 0), (2, 0), (1, 1), (3, 1), (0, 1), (4, 1), (2, 1)]


def write_task(path: Path, *problems: dict) -> Path:
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return path


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_written(store, tmp_path, monkeypatch):
    no_model(monkeypatch)
    short = {"id": "short", "problem": "Compute 1+1.", "answer": "2"}
    long = {"id": "long", "problem": "1+" * 150 + "1", "answer": "151"}
    model = make_model(tmp_path / "model", "qwen3", max_position_embeddings=256)
    plan = EvalPlan(tasks=(str(write_task(tmp_path / "t.jsonl", short, long)),), budgets=(16,), profile="tiny")
    with pytest.raises(
        PrunusError, match=r"problem 'long' needs \d+ tokens \(\d+ of prompt, 16 to think, 5 of markers, 64 to"
    ):
        prunus.evaluate(model, plan, store)
    assert not store.exists()


def test_a_model_that_cannot_be_loaded_leaves_no_store(store, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise PrunusError("the model cannot be loaded")

    monkeypatch.setattr("prunus.evaluation.backends.hf.load_model", broken)
    with pytest.raises(PrunusError, match="the model cannot be loaded"):
        prunus.evaluate("tiny", PLAN, store)
    assert not store.exists()
    with pytest.raises(PrunusError, match=r"the folder of the store .* does not exist"):
        prunus.evaluate("tiny", PLAN, store.parent / "missing" / "results.db")


@pytest.mark.slow
def test_a_context_that_just_fits(tmp_path, store):
    problem = {"id": "p", "problem": "Compute 1+1.", "answer": "2"}
    task = str(write_task(tmp_path / "t.jsonl", problem))
    plan = EvalPlan(tasks=(task,), budgets=(16,), profile="tiny", answer_tokens=10)
    tokenizer = load_tokenizer(tiny_folder())
    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem["problem"]}], add_generation_prompt=True, tokenize=False
    )
    needed = len(tokenizer.encode(str(template).removesuffix("<think>\n"))) + 16 + 10 + 5
    roomy, tight = (
        make_model(tmp_path / name, "qwen3", max_position_embeddings=context)
        for name, context in (("roomy", needed), ("tight", needed - 1))
    )
    prunus.evaluate(roomy, plan, store)
    with pytest.raises(PrunusError, match=f"needs {needed} tokens .* context is {needed - 1}"):
        prunus.evaluate(tight, plan, store)


@pytest.mark.slow
def test_legacy_answers_run_to_the_end_of_the_context(tmp_path, store):
    """The defaults, on a context far below 32,768: every answer is capped by what its own chain leaves."""
    problems = ({"id": "short", "problem": "1+1?", "answer": "2"}, {"id": "long", "problem": "1+" * 20, "answer": "21"})
    model = make_model(tmp_path / "model", "qwen3", max_position_embeddings=128)
    plan = EvalPlan(tasks=(str(write_task(tmp_path / "t.jsonl", *problems)),), budgets=(0, 8, 24), mode="legacy")
    run_id = prunus.evaluate(model, plan, store).run_id
    work = resolve_plan(Checkpoint(model), load_tokenizer(model), plan)
    lengths = {problem.id: len(chain.prompt) for problem, chain in zip(work.problems, work.chains, strict=True)}
    start = len(work.rules.markers.start)
    with Store(store) as opened:
        stored, samples = opened.run(run_id).plan, opened.samples(run_id)
    assert (stored.profile, stored.answer_tokens, stored.context) == ("qwen3-legacy", 32768, 128)
    for sample in samples:
        before = lengths[sample.problem_id] - start + sample.forced_tokens + sample.thinking_tokens
        assert sample.answer_cap == 128 - before >= sample.answer_tokens
        assert sample.answer_truncated == (sample.answer_tokens == sample.answer_cap)
    assert len({sample.answer_cap for sample in samples}) >= 6, "per row"
    assert any(sample.answer_truncated for sample in samples)
    with pytest.raises(PrunusError, match=r"24 to think, \d+ of markers, 32768 to answer"):
        prunus.evaluate(model, replace(plan, mode="strict", profile="qwen3-legacy"), store)
    with pytest.raises(
        PrunusError, match=r"128 to think, \d+ of markers, 1 to answer\), but the model's context is 128"
    ):
        prunus.evaluate(model, replace(plan, budgets=(128,)), store)


def test_an_engine_that_would_cut_answers_before_the_model_does_is_refused(tmp_path):
    model = make_model(tmp_path / "model", "qwen3", max_position_embeddings=128)
    task = write_task(tmp_path / "t.jsonl", {"id": "p", "problem": "1+1?", "answer": "2"})
    plan = EvalPlan(tasks=(str(task),), budgets=(8,), mode="legacy")
    work = resolve_plan(Checkpoint(model), load_tokenizer(model), plan)
    engine = Engine()
    engine.context = 128
    engine.check(work)
    engine.context = 127
    with pytest.raises(PrunusError, match=r"needs 128 tokens .* but the engine's context is 127"):
        engine.check(work)
    short = resolve_plan(Checkpoint(model), load_tokenizer(model), replace(plan, answer_tokens=9))
    engine.check(short)


@pytest.mark.slow
def test_plans_keep_their_ids_where_nothing_is_new(tmp_path):
    """Neither a context that cuts no answer nor ends of text that the profile has anyway are part of a plan."""
    model, plan = make_model(tmp_path / "model", "qwen3"), EvalPlan(tasks=("tiny",), budgets=(8,), profile="s1")
    work = partial(resolve_plan, tokenizer=load_tokenizer(model))
    usual = work(Checkpoint(model), plan=replace(plan, answer_tokens=8))
    assert not {"context", "end_ids"} & usual.plan.data.keys() and usual.rules.context == 256
    assert (
        not {"context"} & work(Checkpoint(model), plan=replace(plan, mode="legacy", answer_tokens=8)).plan.data.keys()
    )
    for ends, more in ((2, None), ([2], None), ([2, 5, 9999], [5]), (None, None)):
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        found = work(Checkpoint(model), plan=replace(plan, answer_tokens=8))
        assert found.plan.data.get("end_ids") == more and (found.run_id == usual.run_id) == (more is None)
        assert found.rules.markers.answer_stops == usual.rules.markers.answer_stops | set(more or ())
        assert found.rules.markers.think_stops == usual.rules.markers.think_stops | set(more or ())


@pytest.mark.slow
def test_caps_follow_the_kind_of_problem(tmp_path, store):
    task = write_task(
        tmp_path / "mixed.jsonl",
        {"id": "a", "problem": "Which?", "answer": "B", "choices": ["x", "y"]},
        {"id": "b", "problem": "1/2?", "answer": "\\frac12"},
    )
    model = make_model(tmp_path / "model", "qwen3", max_position_embeddings=2048)
    work = resolve_plan(
        Checkpoint(model), load_tokenizer(model), EvalPlan(tasks=(str(task),), budgets=(1,), profile="qwen3")
    )
    assert work.plan.answer_tokens == {"choice": 512, "math": 1024} and [
        chain.answer_tokens for chain in work.chains
    ] == [512, 1024]
    assert work.plan.tasks == ("mixed",)
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    copied = write_task(elsewhere / "mixed.jsonl", *map(json.loads, task.read_text().splitlines()))
    plan = EvalPlan(tasks=(str(copied),), budgets=(1,), profile="qwen3")
    assert resolve_plan(Checkpoint(model), load_tokenizer(model), plan).run_id == work.run_id
    write_task(copied, {"id": "a", "problem": "Which?", "answer": "A", "choices": ["x", "y"]})
    assert resolve_plan(Checkpoint(model), load_tokenizer(model), plan).run_id != work.run_id


def test_a_problem_in_two_tasks_is_refused(store):
    with pytest.raises(PrunusError, match="is in task 'tiny' and in"):
        prunus.evaluate("tiny", EvalPlan(tasks=("tiny", "tiny/chain"), budgets=(0,)), store)


def test_a_store_of_another_format_is_refused_and_left_alone(store, monkeypatch):
    no_model(monkeypatch)
    with Store(store, create=True):
        pass
    with sqlite3.connect(store) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = store.read_bytes()
    with pytest.raises(PrunusError, match="format 99"):
        prunus.evaluate("tiny", PLAN, store)
    assert store.read_bytes() == before


def test_a_model_without_a_chat_template_is_refused(store, tmp_path):
    model = make_model(tmp_path / "model", "llama")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(PrunusError, match="no chat template"):
        prunus.evaluate(model, replace(PLAN, profile="plain"), store)
    assert not store.exists()


@pytest.mark.slow
def test_texts_of_private_problems_are_not_stored(store, monkeypatch):
    monkeypatch.setattr("prunus.evaluation.resolved_plan.load_task", lambda *_: private_problems())
    monkeypatch.setattr("prunus.evaluation.preflight.check_task", lambda _: None)
    run_id = prunus.evaluate("tiny", EvalPlan(tasks=("gated",), budgets=(0, 30)), store).run_id
    assert b"secret" not in store.read_bytes()
    with Store(store) as opened:
        samples = opened.samples(run_id, texts=True)
        assert {row.choices for row in opened.problems().values()} == {("", "")}
    assert len(samples) == 6 and {sample.thinking + sample.text for sample in samples} == {""}
    before = rows(store)
    assert prunus.regrade(store).to_json() == {"runs": 1, "graded": 0, "changed": 0, "kept": 6}
    assert rows(store) == before


@pytest.mark.slow
def test_regrade_repairs_grades_and_generates_nothing(store, monkeypatch):
    run_id = prunus.evaluate("tiny", PLAN, store).run_id
    expected = rows(store)
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE sample SET answer = 'nonsense', correct = 1 - correct WHERE budget = 10")
        connection.execute("UPDATE run SET versions = '{}'")
    connection.close()
    assert rows(store) != expected
    no_model(monkeypatch)
    assert prunus.regrade(store).to_json() == {"runs": 1, "graded": 18, "changed": 6, "kept": 0}
    assert rows(store) == expected
    assert prunus.regrade(store).to_json()["changed"] == 0
    with Store(store) as opened:
        assert opened.run(run_id).environment.grader == GRADER_VERSION


@pytest.mark.slow
def test_refusals_need_budgets_one_by_one(store):
    plan = replace(PLAN, wait=1, reuse=False, limit=2)
    run_id = prunus.evaluate("tiny", plan, store).run_id
    with Store(store) as opened:
        assert len(opened.samples(run_id)) == 2 * 3


@pytest.mark.slow
def test_the_forced_words_are_part_of_the_answer_text(store, tmp_path):
    """s1 forces `Final Answer:` into the model's mouth; graders need to see it."""
    task = write_task(tmp_path / "t.jsonl", {"id": "p", "problem": "1+1?", "answer": "2"})
    model = make_model(tmp_path / "model", "qwen3")
    plan = EvalPlan(tasks=(str(task),), budgets=(0, 3), profile="s1", answer_tokens=5, temperature=0.0)
    run_id = prunus.evaluate(model, plan, store).run_id
    with Store(store) as opened:
        texts = [sample.text for sample in opened.samples(run_id, texts=True) if sample.ended == "forced"]
    assert texts and all(text.startswith("Final Answer:") for text in texts)


def test_the_backend_table_loads_models():
    backend = HFBackend.load(tiny_folder(), "cpu", 363)
    assert isinstance(backend, HFBackend) and backend.vocabulary == 363
