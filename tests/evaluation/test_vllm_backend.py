"""The vllm backend without vLLM: what it asks of the engine, and one line for everything that is missing or wrong.

The engine here is made of plain Python; vllm_engine.py has the real one.
"""

import sys
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from babbling import babble
from scripted_backend import ScriptedBackend
from tiny_chains import MARKERS, TOKENIZER, chains, complete

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation.backends import vllm as module
from prunus.evaluation.backends.vllm import VLLMBackend, weights
from prunus.evaluation.budget import Rules, force_budgets
from prunus.evaluation.requests import Sampling
from prunus.settings.engines import EngineOptions
from prunus.settings.serving import INT4

WARM = Sampling(0.6, 0.95, 20)


class PlainEngine:
    """Finishes one request a step, the most urgent first, as vLLM's scheduler admits them."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, int, str, list[int], Any]] = deque()
        self.asked: list[tuple[list[int], Any, int]] = []
        self.aborted: list[str] = []
        self.fails: Exception | None = None
        model = SimpleNamespace(max_model_len=2048, get_vocab_size=lambda: 368, dtype=torch.float32, enforce_eager=True)
        self.vllm_config = SimpleNamespace(model_config=model, scheduler_config=SimpleNamespace(max_num_seqs=4))
        self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def add_request(self, name: str, prompt: dict[str, list[int]], how: Any, priority: int) -> None:
        self.asked.append((prompt["prompt_token_ids"], how, priority))
        self.waiting.append((priority, len(self.asked), name, prompt["prompt_token_ids"], how))

    def step(self) -> list[Any]:
        if self.fails:
            raise self.fails
        first = min(self.waiting)
        self.waiting.remove(first)
        _, _, name, prompt, how = first
        stops, banned = frozenset(how.stop_token_ids), frozenset(how.logit_bias or ())
        seeds, least = [how.seed], how.min_tokens
        [found] = complete(ScriptedBackend(babble), [prompt], [how.max_tokens], stops, banned, seeds, WARM, least)
        ids = [*found.ids, *([] if found.stopped is None else [found.stopped])]
        output = SimpleNamespace(
            token_ids=ids,
            finish_reason="length" if found.stopped is None else "stop",
            stop_reason=found.stopped,
            logprobs=[{token: SimpleNamespace(logprob=-0.5)} for token in ids],
        )
        return [SimpleNamespace(request_id=name, finished=True, outputs=[output])]

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names


@pytest.fixture
def engine(monkeypatch) -> PlainEngine:
    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY="final"))
    monkeypatch.setattr(module, "vllm", lambda: SimpleNamespace(SamplingParams=SimpleNamespace, sampling_params=kinds))
    return PlainEngine()


def backend_over(engine: PlainEngine, **options: Any) -> VLLMBackend:
    return VLLMBackend(SimpleNamespace(llm_engine=engine), tiny_folder(), len(TOKENIZER), EngineOptions(**options))


@pytest.mark.parametrize(("kind", "gpu"), [("cuda", {"gpu": "NVIDIA H100"}), ("cpu", {})])
def test_the_model_of_gpu_is_described(engine, monkeypatch, kind, gpu):
    found = SimpleNamespace(device_type=kind, get_device_name=lambda: "NVIDIA H100")
    monkeypatch.setattr(module, "platforms", lambda: found)
    monkeypatch.setattr(module, "vllm", lambda: SimpleNamespace(__version__="0.32.0"))
    described = backend_over(engine).description.data
    assert {key: described[key] for key in described.keys() & {"device", "gpu"}} == {"device": kind, **gpu}


@pytest.mark.parametrize("set_to", [None, "1", "0"])
@pytest.mark.parametrize("quantisation", [None, "int8", "int4", "awq 4-bit"])
def test_the_variable_for_4_bits_is_recorded_where_it_is_set_and_concerns_the_model(
    engine, monkeypatch, set_to, quantisation
):
    monkeypatch.setattr(module, "described", dict)
    monkeypatch.setattr(module, "vllm", lambda: SimpleNamespace(__version__="0.32.0"))
    monkeypatch.setattr(module, "EngineFolder", lambda _folder: SimpleNamespace(quantisation=quantisation))
    monkeypatch.delenv(INT4, raising=False)
    if set_to is not None:
        monkeypatch.setenv(INT4, set_to)
    backend = backend_over(engine)
    backend.llm.collective_rpc = lambda _name: [["Kernel"]]
    engine.vllm_config.model_config.quantization = quantisation
    concerns = set_to is not None and quantisation in ("int4", "awq 4-bit")
    assert backend.description.data["flags"] == ({INT4: set_to} if concerns else {})


@pytest.mark.parametrize("longrope", [False, True])
def test_the_longest_sequence_is_described_for_longrope_only(engine, monkeypatch, longrope):
    monkeypatch.setattr(module, "described", dict)
    monkeypatch.setattr(module, "vllm", lambda: SimpleNamespace(__version__="0.32.0"))
    monkeypatch.setattr(module, "has_longrope", lambda _folder: longrope)
    assert backend_over(engine).description.data.get("context") == (2048 if longrope else None)


def test_draws_are_those_of_two_phases_and_answers_go_first(engine):
    rules, budgets = Rules(MARKERS, WARM, seed=2), (0, 4, 9)
    found = force_budgets(backend_over(engine), chains(), budgets, rules)
    scripted = ScriptedBackend(babble)
    banned = MARKERS.answer_banned | set(range(len(TOKENIZER), 368))
    unknown_too = MARKERS.__class__(**{**vars(MARKERS), "answer_banned": banned})
    assert found == force_budgets(scripted, chains(), budgets, Rules(unknown_too, WARM, seed=2))
    assert all(draw.logprob == -0.5 and draw.self_certainty is None for draws in found for draw in draws if draw.answer)
    priorities = [priority for _, _, priority in engine.asked]
    assert priorities[: len(chains())] == [1] * len(chains()) and set(priorities[len(chains()) :]) == {0}


def test_every_value_is_said_and_every_row_has_its_seed(engine):
    force_budgets(backend_over(engine), chains(), (0, 4), Rules(MARKERS, WARM))
    expected = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1}
    expected |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True, "detokenize": False}
    for _, how, _ in engine.asked:
        assert expected.items() <= vars(how).items()
    seeds = [how.seed for _, how, _ in engine.asked]
    assert len(set(seeds)) == len(seeds) > len(chains())
    answers = [how for _, how, priority in engine.asked if priority == 0]
    assert all(set(how.logit_bias) == MARKERS.answer_banned | set(range(len(TOKENIZER), 368)) for how in answers)


def test_fields_of_every_request_are_those_of_the_options(engine):
    asked = {"repetition_penalty": 1.05, "min_p": 0.05, "frequency_penalty": 0.5}
    force_budgets(backend_over(engine, request=asked), chains()[:2], (0, 4), Rules(MARKERS, WARM))
    assert len(engine.asked) > 2
    for _, how, _ in engine.asked:
        assert {**asked, "presence_penalty": 0.0, "temperature": 0.6}.items() <= vars(how).items()


def test_an_engine_that_dies_is_one_line_and_nothing_is_left_in_it(engine):
    engine.fails = RuntimeError("CUDA out of memory.\nTried to allocate 20 GiB")
    with pytest.raises(PrunusError, match="vLLM failed: CUDA out of memory") as error:
        force_budgets(backend_over(engine), chains(), (4,), Rules(MARKERS, WARM))
    assert "\n" not in str(error.value) and "gpu_memory_utilization" in str(error.value)
    assert len(engine.aborted) == len(chains())


def test_weights_of_a_variant():
    source = Checkpoint(tiny_folder())
    name = "model.layers.1.mlp.up_proj.weight"
    found = dict(weights(source, {name: torch.ones(256, 128)}, [3]))
    assert sorted(found) == sorted(source.tensors) and bool((found[name] == 1).all())
    for other, tensor in found.items():
        silent = other.startswith("model.layers.3.")
        assert other == name or torch.equal(tensor, torch.zeros_like(tensor) if silent else source.read(other))


def refusal(**args: Any) -> str:
    plan = prunus.EvalPlan(tasks=("tiny",), limit=1, budgets=(4,), engine="vllm")
    with TemporaryDirectory() as folder, pytest.raises(PrunusError) as error:
        prunus.evaluate("tiny", plan, Path(folder) / "results.db", options=EngineOptions(args=args))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_vllm_missing_too_old_or_broken(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert "needs vLLM: pip install '.[vllm]'" in refusal()
    monkeypatch.setattr(module, "find_spec", lambda _: True)
    fake: Any = ModuleType("vllm")
    monkeypatch.setitem(sys.modules, "vllm", fake)
    fake.__version__ = "0.18.2"
    assert "vLLM 0.18.2 is too old: prunus needs 0.32 or newer" in refusal()
    fake.__version__ = "0.32.0"
    assert "vLLM is installed but cannot be imported: module 'vllm' has no attribute 'LLM'" in refusal()


def test_arguments_that_are_ours_or_need_a_server():
    assert "engine argument 'generation_config' is set by prunus: the plan has" in refusal(generation_config="auto")
    assert "one replica: start `vllm serve MODEL --data-parallel-size N`" in refusal(data_parallel_size=2)
