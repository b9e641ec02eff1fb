"""The HF backend against transformers' own generate, against itself in other batches, and fork against two phases."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from real_llm import docstrings, smollm2
from scipy.stats import chi2
from tiny_chains import MARKERS, TOKENIZER, TwoPhases, chains, complete, tiny
from tiny_models import FAMILIES, make_model
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation.backends import rows as decoding
from prunus.evaluation.backends.hf import HFBackend, load_model
from prunus.evaluation.backends.rows import (
    candidates_of_top_p,
    confidence,
    exponentials,
    key_of,
    penalised,
    pick,
    probabilities,
)
from prunus.evaluation.budget import Chain, Draw, Rules, contains, force_budgets
from prunus.evaluation.requests import Completion, Request, Sampling

GREEDY, WARM = Sampling(0.0), Sampling(1.0, 0.95, 20)
NONE: frozenset[int] = frozenset()


def run(order: Sequence[int], batch_size: int, sampling: Sampling) -> dict[int, Completion]:
    """Thinking of the chains in this order and in batches of this size."""
    found = {}
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        prompts = [chains(9)[index].prompt for index in some]
        caps, seeds = [5 + 3 * index for index in some], [1000 + index for index in some]
        completions = complete(tiny(), prompts, caps, MARKERS.think_stops, NONE, seeds, sampling)
        found |= dict(zip(some, completions, strict=True))
    return found


@pytest.mark.slow
@pytest.mark.thorough("greedy")
@pytest.mark.parametrize("sampling", [GREEDY, WARM, Sampling(0.7)], ids=["greedy", "top-k and top-p", "plain"])
def test_neither_batch_size_nor_order_matters(sampling):
    order = list(range(len(chains(9))))
    alone = run(order, 1, sampling)
    shuffled = [order[(7 * index) % len(order)] for index in order]
    assert sorted(shuffled) == order and shuffled != order
    for batch_size in (4, 9):
        assert run(order, batch_size, sampling) == alone
        assert run(shuffled, batch_size, sampling) == alone
    assert {completion.stopped is None for completion in alone.values()} == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budgets", "sampling"),
    [((0,), GREEDY), ((0, 1, 5, 16, 24), GREEDY), ((0, 1, 5, 16, 24), WARM), ((24,), WARM)],
    ids=["none greedy", "many greedy", "many sampled", "one sampled"],
)
def test_forked_caches_give_the_draws_of_two_phases(budgets, sampling):
    rules = Rules(MARKERS, sampling, seed=7)
    forked = force_budgets(tiny(), chains(9), budgets, rules)
    assert forked == force_budgets(TwoPhases(tiny()), chains(9), budgets, rules)
    assert forked == force_budgets(tiny(), chains(9), budgets, rules, reuse=False)
    if max(budgets) > 0:
        assert {draw.ended for draws in forked for draw in draws} == {"natural", "forced"}


@pytest.mark.slow
def test_a_chain_that_stops_at_once_is_forced_for_budget_zero_only():
    """Every thought stops on its first id here: both endings of one chain must come out."""
    stops = frozenset(range(len(TOKENIZER)))
    eager = MARKERS.__class__(**{**vars(MARKERS), "think_stops": stops})
    rules = Rules(eager, GREEDY)
    forked = force_budgets(tiny(), chains(9), (0, 4), rules)
    assert forked == force_budgets(TwoPhases(tiny()), chains(9), (0, 4), rules)
    assert all([draw.ended for draw in draws] == ["forced", "natural"] for draws in forked)


def teacher_forced(chain: Chain, draw: Draw) -> tuple[float, float]:
    """Mean log-probability and self-certainty from one plain pass in float64 over all ids of the draw."""
    ids = torch.tensor([[*chain.prompt, *draw.thinking, *draw.closing, *draw.answer]])
    logits_TV = plain()(ids).logits[0, :-1]
    found_T = logits_TV.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    uniform_TV = torch.full_like(logits_TV, 1 / logits_TV.shape[1])
    certain_T = torch.nn.functional.kl_div(logits_TV.log_softmax(-1), uniform_TV, reduction="none").sum(-1)
    start, end = len(chain.prompt), len(chain.prompt) + len(draw.thinking)
    sampled = [*range(start - 1, end - 1), *range(end + len(draw.closing) - 1, ids.shape[1] - 1)]
    return found_T[sampled].mean().item(), certain_T[sampled].mean().item()


@cache
def plain() -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("forking", [True, False], ids=["forked", "two phases"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(2.5, 0.8, 9)], ids=["greedy", "hot, cut and banned"])
def test_scores_equal_a_teacher_forced_pass(sampling, forking):
    """Of the model's own distribution, although ids were picked from a warmer one, cut off and with bans."""
    backend = tiny() if forking else TwoPhases(tiny())
    some = chains(9)[::2]
    checked = 0
    with torch.inference_mode():
        for chain, draws in zip(
            some, force_budgets(backend, some, (0, 1, 5, 24), Rules(MARKERS, sampling)), strict=True
        ):
            for draw in draws:
                logprob, certainty = teacher_forced(chain, draw)
                assert draw.logprob == pytest.approx(logprob, abs=2e-5)
                assert draw.self_certainty == pytest.approx(certainty, abs=2e-4)
                checked += 1
    assert checked == 4 * len(some)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confidence_is_computed_in_float32(dtype):
    logits = (4 * torch.randn(7, 3000, generator=torch.Generator().manual_seed(9))).to(dtype)
    logits[0], logits[1, 5] = 2.0, 90.0  # as unsure and as sure as can be
    tokens = torch.tensor([3, 5, 17, 0, 2999, 4, 4])
    found = confidence(logits, tokens)
    expected = logits.double().log_softmax(-1)
    torch.testing.assert_close(found[0].double(), expected[range(7), tokens], atol=2e-5, rtol=0)
    torch.testing.assert_close(found[1].double(), -expected.mean(-1) - math.log(3000), atol=2e-5, rtol=0)
    assert found[1][0].abs() < 1e-5 and found[0][1] == 0


@pytest.mark.slow
def test_refusals_run_on_the_model():
    rules = Rules(MARKERS, GREEDY, wait=1)
    draws = [found[0] for found in force_budgets(tiny(), chains(9), (48,), rules, reuse=False)]
    refused = [draw for draw in draws if contains(draw.thinking, MARKERS.wait_after_newline)]
    assert refused and all(not MARKERS.think_stops & set(draw.thinking) for draw in draws)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_of_transformers(family, tmp_path, monkeypatch):
    check_against_generate(make_model(tmp_path, family), monkeypatch)


@pytest.mark.slow
def test_blocks_that_look_only_so_far_back(tmp_path, monkeypatch):
    """Half of the blocks see 24 tokens: their masks are not those of the others."""
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    folder = make_model(
        tmp_path,
        "qwen2",
        use_sliding_window=True,
        sliding_window=24,
        max_window_layers=1,
        layer_types=kinds,
    )
    assert load_model(folder, "cpu").config.layer_types == kinds
    check_against_generate(folder, monkeypatch)


def check_against_generate(folder, monkeypatch) -> None:
    """Prompts so long that prefill takes several pieces, chains so long that the cache grows, rows that leave early."""
    monkeypatch.setattr(decoding, "GROW_BY", 32)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 96)
    backend = HFBackend.load(folder, "cpu")
    model: Any = backend.model
    generator = torch.Generator().manual_seed(1)
    lengths = (3, 40, 110)
    prompts = [torch.randint(3, 368, (length,), generator=generator).tolist() for length in lengths]
    caps, stops = [72, 25, 50], frozenset({5, 6, 7, 8, 9})
    found = complete(backend, prompts, caps, stops, NONE, [0, 0, 0], GREEDY)
    for prompt, cap, completion in zip(prompts, caps, found, strict=True):
        config = GenerationConfig(
            max_new_tokens=cap, do_sample=False, eos_token_id=sorted(stops), pad_token_id=0, bos_token_id=None
        )
        ids = torch.tensor([prompt])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        expected = output[0, len(prompt) :].tolist()
        stopped = expected[-1] if expected[-1] in stops else None
        assert completion == Completion(expected[: -1 if stopped is not None else None], stopped)


@pytest.mark.slow
def test_what_may_not_be_sampled_is_not():
    few = HFBackend(tiny().model, vocabulary=60)  # the model has 368 rows
    prompts = [chain.prompt for chain in chains(18)]
    banned, stops = frozenset({7, 18, 19, 20}), frozenset({21, 22})
    caps = [1 + index for index in range(len(prompts))]
    for sampling in (GREEDY, Sampling(3.0)):
        found = complete(few, prompts, caps, stops, banned, list(range(len(prompts))), sampling, min_new_tokens=3)
        ids = {token for completion in found for token in completion.ids}
        assert ids and max(ids) < 60 and not ids & (banned | stops)
        assert all(len(completion.ids) <= cap for completion, cap in zip(found, caps, strict=True))
        assert all(
            len(c.ids) == cap if c.stopped is None else len(c.ids) >= 3 for c, cap in zip(found, caps, strict=True)
        )
    assert complete(few, [], [], stops, banned, [], GREEDY) == []


@pytest.mark.slow
def test_a_row_has_its_own_noise():
    """Sixteen copies of one prompt, one seed each: all but never the same; one seed for all: always the same."""
    prompt, hot = chains(18)[0].prompt, Sampling(20.0)
    different = complete(tiny(), [prompt] * 16, [12] * 16, NONE, NONE, list(range(16)), hot)
    same = complete(tiny(), [prompt] * 16, [12] * 16, NONE, NONE, [3] * 16, hot)
    assert len({tuple(completion.ids) for completion in different}) > 12
    assert {tuple(completion.ids) for completion in same} == {tuple(different[3].ids)}


@pytest.mark.parametrize("top_k", [0, 1, 7, 500])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("size", [40, 3000])
def test_probabilities_equal_the_warpers_of_transformers(size, top_p, top_k):
    logits = 2 * torch.randn(6, size, generator=torch.Generator().manual_seed(size))
    logits[:, ::7] = -torch.inf  # banned ids
    warpers: list[Any] = [TemperatureLogitsWarper(0.7)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = logits
    for warper in warpers:
        expected = warper(torch.empty(0), expected)
    sampling, sizes = Sampling(0.7, top_p, top_k), [*candidates_of_top_p(size)]
    found, enough = probabilities(logits, sampling, sizes[-1])
    assert enough is None and sizes == ([40] if size == 40 else [128, 1024, 3000])
    for few in sizes[:-1]:  # which say in which rows they do
        rows, enough = probabilities(logits, sampling, few)
        wanted = (found > 0).sum(-1) < few if top_p < 1 else torch.ones(6, dtype=torch.bool)
        enough = torch.ones(6, dtype=torch.bool) if enough is None else enough
        assert torch.equal(enough, wanted) and torch.equal(rows[enough], found[enough])
    torch.testing.assert_close(found / found.sum(-1, keepdim=True), expected.softmax(-1))


@pytest.mark.parametrize("min_p", [0.01, 0.3, 1.0])
def test_min_p_equals_that_of_transformers(min_p):
    logits = 2 * torch.randn(6, 300, generator=torch.Generator().manual_seed(3))
    logits[:, ::7] = -torch.inf
    expected = logits
    # In vLLM's order; transformers itself has min-p last.
    warpers: list[Any] = [TemperatureLogitsWarper(0.7), MinPLogitsWarper(min_p), TopKLogitsWarper(50)]
    for warper in (*warpers, TopPLogitsWarper(0.9)):
        expected = warper(torch.LongTensor(), expected)
    found, _ = probabilities(logits, Sampling(0.7, 0.9, 50), 300, min_p)
    torch.testing.assert_close(found / found.sum(-1, keepdim=True), expected.softmax(-1))


@pytest.mark.parametrize(("repetition", "presence"), [(1.3, 0.0), (0.7, 0.0), (1.0, 0.9), (1.2, -0.5)])
def test_penalties_equal_those_of_transformers_and_of_a_plain_loop(repetition, presence):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(4, 30, generator=generator)
    prompts = torch.randint(30, (4, 6), generator=generator).tolist()
    sampled = [[], [3], [3, 3, 29], [0, 7, 7, 11]]
    found = penalised(logits, repetition, presence, list(map(frozenset, prompts)), list(map(set, sampled)))
    for row, (prompt, ids) in enumerate(zip(prompts, sampled, strict=True)):
        processor: Any = RepetitionPenaltyLogitsProcessor(repetition)
        scores = processor(torch.tensor([prompt + ids]), logits[row : row + 1].clone())[0]
        for token in range(30):
            logit = logits[row, token].item()
            if token in prompt or token in ids:
                logit = logit * repetition if logit < 0 else logit / repetition
            assert scores[token].item() == pytest.approx(logit)
            assert found[row, token].item() == pytest.approx(logit - presence * (token in ids))


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_penalties_are_of_each_sequence_and_its_phase(sampling):
    """Forked chains against two phases, and thinking against a plain loop without a cache."""
    asked = {"repetition_penalty": 1.2, "presence_penalty": 0.7, "min_p": 0.02}
    backend, some = HFBackend(tiny().model, len(TOKENIZER), asked), chains()[:4]
    rules = Rules(MARKERS, sampling, seed=3)
    found = force_budgets(backend, some, (0, 3, 9), rules)
    assert found == force_budgets(TwoPhases(backend), some, (0, 3, 9), rules)
    assert found != force_budgets(tiny(), some, (0, 3, 9), rules)
    if sampling.temperature:
        return
    completions = complete(backend, [one.prompt for one in some], [10] * 4, NONE, NONE, [0] * 4, sampling)
    for one, completion in zip(some, completions, strict=True):
        ids: list[int] = []
        for _ in range(10):
            with torch.inference_mode():
                logits = tiny().model(torch.tensor([one.prompt + ids])).logits[:, -1].float()
            penalise: Any = RepetitionPenaltyLogitsProcessor(1.2)
            logits = penalise(torch.tensor([one.prompt + ids]), logits)[0]
            for token in set(ids):
                logits[token] -= 0.7
            ids.append(int(logits[: len(TOKENIZER)].argmax()))
        assert completion.ids == ids


@pytest.mark.slow
@pytest.mark.thorough("places")
@pytest.mark.parametrize(
    "keys", [lambda n: key_of(5, n), lambda n: key_of(n, 0), lambda n: key_of(n, n)], ids=["places", "seeds", "both"]
)
def test_picks_follow_the_probabilities(keys):
    """Chi-square over places of a request, and over seeds that follow each other; nothing outside the filters."""
    logits, times = torch.randn(50, generator=torch.Generator().manual_seed(2)), 8000
    key_R = torch.tensor([keys(n) for n in range(times)])
    for of in (Sampling(0.8, 0.9, 30), Sampling(1.0)):
        counts = pick(logits.expand(times, -1), of, key_R, 50)[0].bincount(minlength=50).double()
        weight = probabilities(logits[None], of, 50)[0][0].double()
        expected = times * weight / weight.sum()
        allowed = expected > 0
        square = ((counts - expected)[allowed] ** 2 / expected[allowed]).sum()
        assert counts[~allowed].sum() == 0
        assert 0.001 < chi2.sf(float(square), int(allowed.sum()) - 1) < 0.999


def test_random_numbers_are_those_of_splitmix():
    """By integers of Python, without wrapping; they are in (0, 37) and do not depend on what else is computed."""
    keys, ids = [key_of(3, 0), key_of(3, 1), key_of(4, 0)], [0, 1, 49_151]
    found = exponentials(torch.tensor(keys)[:, None], torch.tensor([ids]))
    for row, key in enumerate(keys):
        for column, token in enumerate(ids):
            x = (key + (token + 1) * 0x9E3779B97F4A7C15) % 2**64
            x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
            x ^= x >> 31
            assert found[row, column] == pytest.approx(-math.log(((x >> 12) + 0.5) / 2**52))
    assert len(set(keys)) == 3 and all(-(2**63) <= key < 2**63 for key in keys)
    alone = exponentials(torch.tensor(keys[1:2])[:, None], torch.tensor([ids[2:]]))
    assert alone.item() == found[1, 2]


def test_a_small_change_of_the_distribution_seldom_changes_the_pick():
    """At most 2 d / (1 + d) of picks, d the total variation; inverting cumulative sums would change half of them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 5000, generator=generator)
    near = logits + 0.05 * torch.randn(1, 5000, generator=generator)
    keys = torch.tensor([key_of(1, n) for n in range(400)])
    both = [pick(of.expand(400, -1), Sampling(1.0), keys, 128)[0] for of in (logits, near)]
    apart = float((logits.softmax(-1) - near.softmax(-1)).abs().sum() / 2)
    assert 0 < (both[0] != both[1]).float().mean() < 2 * apart / (1 + apart) + 0.03 < 0.08


@pytest.mark.real_llm
@pytest.mark.slow
@pytest.mark.thorough
def test_rounding_changes_no_sampled_id_of_a_real_llm():
    """Id by id in a batch of three against all at once; by inverse cumulative sums 3 of these 1,200 ids changed."""
    tokenizer, length = load_tokenizer(smollm2()), 400
    backend = HFBackend(load_model(smollm2(), "cpu", torch.float32), len(tokenizer))
    prompts, seeds, plain = [tokenizer.encode(text)[:90] for text in docstrings()[:3]], [1, 2, 3], Sampling(1.0)
    completions = complete(backend, prompts, [length] * 3, NONE, NONE, seeds, plain)
    for prompt, seed, completion in zip(prompts, seeds, completions, strict=True):
        with torch.inference_mode():
            logits_TV = backend.model(torch.tensor([prompt + completion.ids])).logits[0, len(prompt) - 1 : -1]
        key_T = torch.tensor([key_of(seed, place) for place in range(length)])
        assert pick(logits_TV, plain, key_T, 128)[0].tolist() == completion.ids


def test_temperature_zero_is_the_most_likely_id():
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(4))
    assert pick(logits, GREEDY, None, 30)[0].tolist() == [row.index(max(row)) for row in logits.tolist()]


def test_how_a_model_is_loaded(tmp_path):
    assert tiny().description.data == {"device": "cpu", "dtype": "float32"}
    assert load_model(tiny_folder(), "cpu", torch.bfloat16).dtype == torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(PrunusError, match="no CUDA GPU"):
            load_model(tiny_folder(), "cuda")
    with pytest.raises(PrunusError, match="cannot be loaded"):
        load_model(tmp_path, "cpu")


class Cramped(HFBackend):
    """A device whose memory holds `room` rows and no more."""

    def __init__(self, room: int) -> None:
        super().__init__(tiny().model, len(TOKENIZER))
        self.room, self.tried = room, []

    def _decode(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.tried.append(len(requests))
        if len(requests) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return super()._decode(requests, sampling)


@pytest.mark.slow
def test_out_of_memory_halves_the_batch_says_so_and_changes_nothing(capsys):
    cramped, rules = Cramped(room=5), Rules(MARKERS, WARM)
    some = chains(18, cap=5)
    assert force_budgets(cramped, some, (0, 3), rules) == force_budgets(tiny(), some, (0, 3), rules)
    assert cramped.tried[:3] == [18, 9, 4] and max(cramped.tried[2:]) <= 5
    told = capsys.readouterr().err
    assert (
        "out of memory with 18 chains at once: going on with 9" in told and "9 chains at once: going on with 4" in told
    )
    before = len(cramped.tried)
    prompts = [chain.prompt for chain in chains(18)]
    calls = (prompts, [3] * 18, NONE, NONE, list(range(18)), WARM)
    assert complete(cramped, *calls) == complete(tiny(), *calls)
    assert max(cramped.tried[before:]) <= 5, "what was too much is not tried again"
    with pytest.raises(PrunusError, match=r"memory for a single chain: CUDA out of memory\. Tried") as error:
        force_budgets(Cramped(room=0), chains(18), (0,), rules)
    assert "\n" not in str(error.value)
