"""What every backend must do: the same list over all of them.

PRUNUS_TEST_BACKENDS says which (`make test-vllm`: vllm,served). `openai` talks to a small server of ours over the
scripted backend (over hf in test_openai.py), `served` to a real `vllm serve`, `url` to whatever serves the tiny
reasoner as `tiny` at PRUNUS_TEST_URL, such as llama.cpp's server.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest
from babbling import babble
from completions_server import Server, serving
from scripted_backend import ScriptedBackend
from tiny_chains import MARKERS, TOKENIZER, chains, complete, spelled, tiny

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import tiny_folder
from prunus.evaluation import backends
from prunus.evaluation.backends import opened
from prunus.evaluation.budget import (
    Chain,
    Draw,
    Rules,
    answer_cuts,
    contains,
    force_budgets,
    force_budgets_as_completed,
)
from prunus.evaluation.engine import Backend
from prunus.evaluation.pipeline import fill
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.profiles.markers import decode, encode_markers, encode_prompt
from prunus.evaluation.requests import Completion, Sampling
from prunus.evaluation.resolved_plan import problem_row, resolve_plan
from prunus.evaluation.run import missing_batches
from prunus.evaluation.tasks import load_task
from prunus.recipes import EvalPlan, TraceRecipe
from prunus.settings.budgets import OFF
from prunus.settings.engines import EngineOptions
from prunus.store.rows import Run
from prunus.store.store import Store

BACKENDS = os.environ.get("PRUNUS_TEST_BACKENDS", "scripted,hf,openai").split(",")
GREEDY, WARM = Sampling(0.0), Sampling(1.0, 0.95, 20)
NONE: frozenset[int] = frozenset()
BUDGETS = (0, 1, 5, 16, 24)
ROWS = 368  # of the tiny reasoner; the tokenizer knows fewer ids


@contextmanager
def backend_of(name: str) -> Iterator[Backend]:
    with ExitStack() as stack:
        if name == "scripted":
            yield ScriptedBackend(babble)
        elif name == "hf":
            yield tiny()
        elif name == "openai":
            server = stack.enter_context(serving(Server(ScriptedBackend(babble), TOKENIZER)))
            engine = EngineOptions(url=server.url)
            yield stack.enter_context(opened("openai", tiny_folder(), "auto", len(TOKENIZER), engine))
        elif name == "vllm":
            engine = EngineOptions(args={"enforce_eager": True})
            yield stack.enter_context(opened("vllm", tiny_folder(), "auto", len(TOKENIZER), engine))
        elif name == "url":
            engine = EngineOptions(url=os.environ["PRUNUS_TEST_URL"])
            yield stack.enter_context(opened("openai", tiny_folder(), "auto", len(TOKENIZER), engine))
        else:
            from vllm_server import vllm_serve

            engine = EngineOptions(url=stack.enter_context(vllm_serve(tiny_folder())))
            yield stack.enter_context(opened("openai", tiny_folder(), "auto", len(TOKENIZER), engine))


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request) -> Iterator[Backend]:
    with backend_of(request.param) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, WARM, Sampling(2.0)], ids=["greedy", "warm", "hot"])
def test_caps_hold_and_stops_bans_and_unknown_ids_do_not_come(backend, sampling):
    prompts = [chain.prompt for chain in chains()]
    stops, banned = frozenset({21, 22, *MARKERS.think_stops}), frozenset(range(7, 20))
    caps = [1 + 3 * index for index in range(len(prompts))]
    found = complete(backend, prompts, caps, stops, banned, range(100, 100 + len(prompts)), sampling)
    for completion, cap in zip(found, caps, strict=True):
        if completion.stopped is None:
            assert len(completion.ids) == cap
        else:
            assert completion.stopped in stops and len(completion.ids) < cap
        assert not set(completion.ids) & (stops | banned)
        assert max(completion.ids, default=0) < len(TOKENIZER) < ROWS


@pytest.mark.slow
def test_stops_wait_for_the_least_number_of_ids(backend):
    prompts = [chain.prompt for chain in chains()]
    stops = frozenset(range(3, 60))
    found = complete(backend, prompts, [20] * len(prompts), stops, NONE, range(len(prompts)), WARM, min_new_tokens=4)
    assert all(len(completion.ids) >= 4 and not set(completion.ids) & stops for completion in found)
    assert any(completion.stopped is not None for completion in found)


@pytest.mark.slow
def test_nothing_in_nothing_out(backend):
    assert complete(backend, [], [], NONE, NONE, [], GREEDY) == []


@pytest.mark.slow
def test_neither_order_nor_company_matters(backend):
    """Every row by itself, all together, and all together the other way round."""
    some = chains()
    calls = [
        (chain.prompt, 6 + 3 * number, 1000 + number)  # prompt, cap, seed
        for number, chain in enumerate(some)
    ]

    def run(rows: list[tuple[list[int], int, int]]) -> list:
        prompts, caps, seeds = zip(*rows, strict=True)
        return complete(backend, prompts, caps, MARKERS.think_stops, NONE, seeds, WARM)

    together = run(calls)
    assert run(calls[::-1])[::-1] == together
    assert [run([call])[0] for call in calls] == together


@pytest.mark.slow
def test_a_row_has_its_own_noise(backend):
    prompt, hot = TOKENIZER.encode("The answer is"), Sampling(2.0)  # nothing that the tiny reasoner knows
    different = complete(backend, [prompt] * 8, [16] * 8, NONE, NONE, range(8), hot)
    same = complete(backend, [prompt] * 4, [16] * 4, NONE, NONE, [3] * 4, hot)
    assert len({tuple(completion.ids) for completion in different}) > 6
    assert {tuple(completion.ids) for completion in same} == {tuple(different[3].ids)}


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_a_cut_chain_is_a_chain_of_its_own(backend, sampling):
    """One chain cut at every budget, against a chain drawn for each."""
    rules = Rules(MARKERS, sampling, seed=7)
    cut = force_budgets(backend, chains(), BUDGETS, rules)
    assert cut == force_budgets(backend, chains(), BUDGETS, rules, reuse=False)
    for draws, chain in zip(cut, chains(), strict=True):
        for draw, budget in zip(draws, BUDGETS, strict=True):
            assert draw.budget == budget >= len(draw.thinking) and len(draw.answer) <= chain.answer_tokens
            assert not MARKERS.think_stops & set(draw.thinking) and not MARKERS.answer_stops & set(draw.answer)
            assert (draw.ended == "natural") or len(draw.thinking) == budget


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_a_known_chain_is_answered_at_a_further_budget_as_if_it_had_been_cut_there(backend, sampling):
    some, rules = chains(), Rules(MARKERS, sampling)
    known = force_budgets(backend, some, (16,), rules)
    wanted = force_budgets(backend, some, (0, 4, 9, 16), rules)
    cuts, draws = list[tuple[Chain, Completion]](), list[Draw]()
    for chain, (longest,), of_chain in zip(some, known, wanted, strict=True):
        for draw in of_chain[:-1]:
            if draw.ended == "forced":
                cuts.append((chain, Completion(longest.thinking, None, longest.scores).first(draw.budget)))
                draws.append(draw)
    assert len(draws) > len(some)
    assert answer_cuts(backend, cuts, rules) == draws


@pytest.mark.slow
def test_thinking_switched_off_is_answered_beside_the_chain(backend):
    """Budget off against a request for its prompt alone; the other budgets have the draws that they have without it."""
    rules, stops, banned = Rules(MARKERS, WARM, seed=7), MARKERS.answer_stops, MARKERS.answer_banned
    some = [one._replace(off=[*one.prompt[:-2], *MARKERS.start, *MARKERS.natural_closing]) for one in chains(4)]
    found = force_budgets(backend, some, [OFF, 0, 5], rules)
    assert [draws[1:] for draws in found] == force_budgets(backend, chains(4), [0, 5], rules)
    caps, seeds = [chain.answer_tokens for chain in some], [rules.seed_of(chain, "off") for chain in some]
    alone = complete(backend, [list(chain.off) for chain in some], caps, stops, banned, seeds, WARM)
    for (draw, *_), answer in zip(found, alone, strict=True):
        assert (draw.budget, draw.answer, draw.thinking) == (OFF, answer.ids, [])
        assert (draw.answer_truncated, draw.ended) == (answer.stopped is None, "natural")


@pytest.mark.slow
def test_markers_of_several_tokens(backend):
    """One chain cut at every budget, against a chain drawn for each, and as they are completed."""
    markers = encode_markers(spelled(), TOKENIZER, "strict")
    rules = Rules(markers, GREEDY, seed=7)
    cut = force_budgets(backend, chains(), BUDGETS, rules)
    assert cut == force_budgets(backend, chains(), BUDGETS, rules, reuse=False)
    assert sorted(force_budgets_as_completed(backend, chains(), BUDGETS, rules)) == list(enumerate(cut))
    draws = [draw for of_chain in cut for draw in of_chain]
    assert {draw.ended for draw in draws} == {"natural", "forced"}
    for draw in draws:
        assert "=4" not in TOKENIZER.decode(draw.thinking) and "4\n" not in TOKENIZER.decode(draw.answer)
        assert draw.ended == "forced" or decode(TOKENIZER, list(draw.closing)).startswith("=4")


@pytest.mark.slow
def test_answers_end_with_the_context_and_at_ends_of_text(backend):
    """A context in which the longest prompt has room for its thinking and six more; ids 20 to 39 end a text."""
    longest, ends = max(len(chain.prompt) for chain in chains()), range(20, 40)
    context = longest + 12 + MARKERS.longest + 6
    rules = Rules(MARKERS.ending_at(ends), WARM, seed=7, context=context)
    cut = force_budgets(backend, [chain._replace(answer_tokens=99) for chain in chains()], (0, 12), rules)
    for chain, draws in zip(chains(), cut, strict=True):
        for draw in draws:
            before = len(chain.prompt) + len(draw.thinking) + len(draw.closing)
            assert len(draw.answer) <= draw.answer_cap == min(99, context - before)
            assert draw.answer_truncated == (len(draw.answer) == draw.answer_cap)
            assert not set(ends) & {*draw.thinking, *draw.answer}


@pytest.mark.slow
def test_what_is_put_in_is_what_the_profile_says(backend):
    """Byte by byte, written out here and not taken from the profile."""
    texts = {"natural": {"</think>\n\n"}, "forced": {"\n</think>\n\n", "</think>\n\n"}}
    seen = set()
    for chain, draws in zip(
        chains(), force_budgets(backend, chains(), (0, 6, 60), Rules(MARKERS, GREEDY)), strict=True
    ):
        assert decode(TOKENIZER, chain.prompt).endswith("<think>\n")
        for draw in draws:
            closing, thinking = decode(TOKENIZER, list(draw.closing)), decode(TOKENIZER, draw.thinking)
            assert closing in texts[draw.ended]
            if draw.ended == "forced":
                assert closing.startswith("\n") != thinking.endswith("\n")
            seen.add((draw.ended, closing))
    assert len(seen) >= 2


@pytest.mark.slow
def test_refused_stops(backend):
    rules = Rules(MARKERS, GREEDY, wait=1)
    for budget in (3, 60):
        for [draw] in force_budgets(backend, chains(), (budget,), rules, reuse=False):
            assert len(draw.thinking) <= budget and not MARKERS.think_stops & set(draw.thinking)
            if draw.ended == "natural":
                waits = (MARKERS.wait, MARKERS.wait_after_newline)
                assert any(contains(draw.thinking, wait) for wait in waits), "a chain ends only after its refusal"


@pytest.mark.slow
def test_chains_for_calibration_are_what_the_backend_draws(backend, tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "opened", lambda *_: nullcontext(backend))
    recipe = TraceRecipe(
        tasks=("tiny-train",), limit=3, chain_tokens=24, samples=2, temperature=1.0, seed=5, batch_size=5
    )
    prunus.traces("tiny", tmp_path / "own.jsonl", recipe)
    found = {
        (t["problem_id"], t["draw"]): t for t in map(json.loads, (tmp_path / "own.jsonl").read_text().splitlines())
    }
    assert len(found) == 6
    for problem in load_task("tiny-train", 3):
        prompt = encode_prompt(PROFILES["tiny"], TOKENIZER, problem.question)
        for number in range(2):
            chain = Chain(prompt, (problem.task, problem.id, number), 64)
            [[drawn]] = force_budgets(backend, [chain], (24,), Rules(MARKERS, Sampling(1.0), seed=5))
            answer = [*drawn.closing, *drawn.answer] if drawn.ended == "natural" else []
            trace = found[problem.id, number]
            assert trace["token_ids"] == [*prompt, *drawn.thinking, *answer] and trace["prompt_tokens"] == len(prompt)


@pytest.mark.slow
def test_a_run_that_was_interrupted_ends_the_same(backend, tmp_path):
    """Whole, and with a batch lost on the way: the same rows, texts included."""
    plan = EvalPlan(tasks=("tiny",), limit=4, budgets=(0, 8, 16), temperature=1.0, samples=2, batch_size=3)
    work = resolve_plan(Checkpoint(tiny_folder()), TOKENIZER, plan)

    def run(path: Path, part: int | None) -> list:
        with Store(path, create=True) as store:
            store.add_problems(problem_row(problem) for problem in work.problems)
            store.add_run(Run.of(work.run_id, {"name": "tiny"}, work.plan, {}))
            fill(store, work, backend, missing_batches(store, work)[:part])
            return store.samples(work.run_id, texts=True)

    whole = run(tmp_path / "whole.db", None)
    assert len(run(tmp_path / "parts.db", 1)) == 3 * 3
    parts = run(tmp_path / "parts.db", None)
    assert len(whole) == 24 and [(s.problem_id, s.budget, s.draw, s.thinking, s.text, s.ended) for s in parts] == [
        (s.problem_id, s.budget, s.draw, s.thinking, s.text, s.ended) for s in whole
    ]
