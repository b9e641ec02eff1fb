"""traces(): chains as the model drew them, resumable, filtered, and never of an evaluation problem."""

import json

import pytest

import prunus
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.cli.evaluation import traces_command
from prunus.errors import PrunusError
from prunus.evaluation import engine as loop
from prunus.evaluation import traces as module
from prunus.evaluation.tasks import load_task
from prunus.evaluation.tasks.tiny import EVALUATION_SEED, held_out, question_hash
from prunus.evaluation.traces import Trace, filter_chains
from prunus.questions import evaluation_set, held_out_in, question_digest
from prunus.questions import held_out as digests
from prunus.recipes import EvalPlan, TraceRecipe
from prunus.store.store import Store


def recipe(**changes):
    return TraceRecipe(**{"tasks": ("tiny-train",), "limit": 12, "chain_tokens": 48, "batch_size": 5} | changes)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_chains_are_those_of_an_evaluation_of_the_same_problems(tmp_path):
    summary = prunus.traces("tiny", tmp_path / "t.jsonl", recipe(samples=2, batch_size=24))
    plan = EvalPlan(tasks=("tiny-train",), limit=12, budgets=(48,), samples=2, batch_size=24)
    run_id = prunus.evaluate("tiny", plan, tmp_path / "r.db").run_id
    with Store(tmp_path / "r.db") as store:
        samples = {(s.problem_id, s.draw): s for s in store.samples(run_id, texts=True)}
    questions = {problem.id: problem.question for problem in load_task("tiny-train", 12)}
    tokenizer = load_tokenizer(resolve("tiny"))
    found = lines(tmp_path / "t.jsonl")
    assert len(found) == len(samples) == summary.chains == 24
    assert {trace["ended"] for trace in found} == {"natural", "forced"}
    for trace in found:
        sample = samples[trace["problem_id"], trace["draw"]]
        assert (trace["correct"], trace["ended"]) == (sample.correct, sample.ended)
        assert trace["thinking_tokens"] == sample.thinking_tokens
        ids, cut = trace["token_ids"], trace["prompt_tokens"]
        prompt, chain = str(tokenizer.decode(ids[:cut])), str(tokenizer.decode(ids[cut:]))
        question = questions[trace["problem_id"]]
        assert prompt == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        assert trace["problem_digest"] == question_digest(question)
        assert chain.startswith(sample.thinking)
        if sample.ended == "natural":
            assert chain.endswith(sample.text) and "</think>" in chain
        else:
            assert chain == sample.thinking  # no word that the model did not choose


@pytest.mark.slow
def test_chains_without_markers_end_with_their_turn(tmp_path):
    path = tmp_path / "t.jsonl"
    prunus.traces("tiny", path, recipe(profile="plain", limit=8, chain_tokens=80, batch_size=8))
    found = lines(path)
    ended = [trace["ended"] == "natural" for trace in found]
    assert 0 < sum(ended) < len(found)
    assert all(trace["prompt_tokens"] + trace["thinking_tokens"] == len(trace["token_ids"]) for trace in found)


@pytest.mark.thorough
@pytest.mark.slow
def test_an_interrupted_call_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    prunus.traces("tiny", tmp_path / "whole.jsonl", recipe())
    run_batch, calls = loop.run_batch, []

    def counting(work, backend, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_batch(work, backend, batch)

    monkeypatch.setattr(loop, "run_batch", counting)
    out, partial = tmp_path / "t.jsonl", tmp_path / "t.jsonl.partial"
    with pytest.raises(KeyboardInterrupt):
        prunus.traces("tiny", out, recipe())
    assert not out.exists() and len(partial.read_text().splitlines()) == 3
    with partial.open("a") as stream:
        stream.write('{"batch": 2, "rows": [')  # as a power cut leaves it
    with pytest.raises(PrunusError, match=r"another run \(seed 0, here 1\): give that run's settings to go on with it"):
        prunus.traces("tiny", out, recipe(seed=1))
    prunus.traces("tiny", out, recipe())
    assert len(calls) == 4
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and not partial.exists()


@pytest.mark.slow
def test_filters_that_leave_nothing_keep_the_chains(tmp_path, monkeypatch):
    out = tmp_path / "t.jsonl"
    with pytest.raises(PrunusError, match="none of 12 chains passes the filters; all are kept in "):
        prunus.traces("tiny", out, recipe(temperature=50.0, only="correct"))
    assert not out.exists()
    monkeypatch.setattr(module, "draw", None)
    assert prunus.traces("tiny", out, recipe(temperature=50.0)).chains == 12


def chain(problem: str, draw: int, correct: bool, thinking: int) -> Trace:
    return Trace([], 0, thinking, "natural", correct, problem, "", draw)


CHAINS = [
    chain("easy", 0, True, 10),
    chain("long", 0, True, 90),
    chain("never", 0, False, 99),
    chain("half", 0, False, 20),
    chain("half", 1, True, 20),
    chain("never", 1, False, 5),
    chain("easy", 1, True, 10),
    chain("long", 1, True, 80),
]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, ["easy0", "easy1", "long0", "long1", "never0", "never1", "half0", "half1"]),
        ({"only": "correct"}, ["easy0", "easy1", "long0", "long1", "half1"]),
        ({"min_tokens": 20}, ["long0", "long1", "never0", "half0", "half1"]),
        ({"min_tokens": 85, "only": "correct"}, ["long0"]),
    ],
)
def test_which_are_kept_and_in_which_order(settings, kept):
    chosen = filter_chains(CHAINS, recipe(chain_tokens=100, **settings))
    assert [f"{trace.problem_id}{trace.draw}" for trace in chosen] == kept


@pytest.mark.slow
def test_evaluation_problems_are_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "draw", None)
    with pytest.raises(PrunusError, match="is in the evaluation set tiny"):
        prunus.traces("tiny", tmp_path / "t.jsonl", recipe(tasks=("tiny",)))
    copied = load_task("tiny", 3)[2].question.upper() + "  "
    own = tmp_path / "own.jsonl"
    rows = [{"id": "a", "problem": "What is 1+1?", "answer": "2"}, {"id": "b", "problem": copied, "answer": "2"}]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(PrunusError, match=r"problem .*b. is in the evaluation set tiny"):
        prunus.traces("tiny", tmp_path / "t.jsonl", recipe(tasks=(str(own),)))
    assert [path.name for path in tmp_path.iterdir()] == ["own.jsonl"]


def test_training_problems_are_many_distinct_and_not_held_out():
    problems = load_task("tiny-train")
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == len(problems) == 2000
    assert not {question_hash(p.question) for p in problems} & held_out()
    assert all(evaluation_set(question_digest(p.question)) is None for p in problems)


def test_every_evaluation_problem_is_known_by_its_digest():
    assert {evaluation_set(question_digest(p.question)) for p in load_task("tiny")} == {"tiny"}
    assert EVALUATION_SEED == 10007
    sizes = {name: list(digests().values()).count(name) for name in set(digests().values())}
    contests = {"aime24": 30, "aime25": 30, "aime26": 30, "amc23": 40, "hmmt_feb25": 30, "hmmt_feb26": 33}
    choices = {"gpqa_diamond": 198, "mmlu_pro": 11_056, "arc_challenge": 1103}
    assert sizes == {"tiny": 5040, "gsm8k": 1319, "math500": 500} | contests | choices
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests())


def test_a_question_is_found_as_a_whole_as_a_paragraph_and_as_a_line():
    question = load_task("tiny", 1)[0].question
    for text in (question, f"Hello\n\n{question}\n\nBye", f"first\n{question.upper()} \nlast"):
        assert held_out_in(text) == "tiny"
    assert held_out_in(f"Please: {question}") is None  # stated limit
    assert held_out_in("") is None


def test_the_answer_cap_is_that_of_the_plan_and_of_the_command():
    recipe = TraceRecipe(tasks=("tiny-train",), answer_tokens=32)
    assert recipe.plan().answer_tokens == 32 and recipe.to_json()["answer_tokens"] == 32
    assert (
        traces_command.make_context("traces", ["m", "o.jsonl", "--task", "t", "--answer-tokens", "9"]).params[
            "answer_tokens"
        ]
        == 9
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_tokens": 100, "chain_tokens": 50}, "exceeds chain_tokens 50"),
        ({"min_tokens": -1}, "0 or more"),
        ({"chain_tokens": 0}, "at least 1"),
        ({"samples": 0}, "at least 1"),
        ({"only": "wrong"}, "choose one of all, correct"),
        ({"tasks": ()}, "at least one task"),
    ],
)
def test_bad_recipes(settings, words):
    with pytest.raises(PrunusError, match=words):
        recipe(**settings)


@pytest.mark.slow
def test_bad_outputs_are_refused(tmp_path):
    (tmp_path / "old.jsonl").write_text("{}\n")
    for name, words in (("old.jsonl", "exists"), ("t.json", "must end in .jsonl"), ("no/t.jsonl", "not a folder")):
        with pytest.raises(PrunusError, match=words):
            prunus.traces("tiny", tmp_path / name, recipe())
    prunus.traces("tiny", tmp_path / "old.jsonl", recipe(limit=2), overwrite=True)
    assert len(lines(tmp_path / "old.jsonl")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["old.jsonl"]
    with pytest.raises(PrunusError, match="is the file of the problems"):
        prunus.traces("tiny", tmp_path / "old.jsonl", recipe(tasks=(str(tmp_path / "old.jsonl"),)), overwrite=True)
