"""Budgets as engines and gateways take them: what is written, and what is refused. The engines' own tests load it."""

import json
from pathlib import Path

import numpy as np
import pytest
from effort_stores import store_of

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.profiles import PROFILES
from prunus.results.budget_map import TARGETS, Thinking, budget_map, thinking_of
from prunus.settings.engines import ENGINES
from prunus.store.rows import Run

LEVELS = {"high": 448, "medium": None, "low": 320}


def thinking(profile: str, **plan) -> Thinking:
    found = thinking_of(Run.of("r", {}, {"strings": PROFILES[profile].strings()} | plan, {}))
    assert found is not None
    return found


def test_vllm_gets_the_text_that_was_measured_and_counts_the_line_break():
    made = budget_map("vllm", "r", "m", LEVELS, thinking("qwen3"))
    words = list(made.options or ())
    assert words[:3] == ["--reasoning-parser", "qwen3", "--reasoning-config"]
    text = PROFILES["qwen3"].forced_closing
    assert (
        json.loads(words[3]) == {"reasoning_start_str": "<think>", "reasoning_end_str": text} and made.closing == text
    )
    assert made.requests == {"high": {"thinking_token_budget": 449}, "low": {"thinking_token_budget": 321}}
    assert ENGINES["vllm"].of_closing in made.notes
    own = budget_map("vllm", "r", "m", LEVELS, thinking("qwen3", native={"parameter": "x"}))
    assert own.options == ("--reasoning-parser", "qwen3") and own.budgets == {"high": 448, "low": 320}
    assert own.closing is None


def test_llama_cpp_gets_what_stands_before_the_marker():
    made = budget_map("llama.cpp", "r", "m", LEVELS, thinking("brackets"))
    assert made.options == ("--reasoning-budget-message", "\n") and made.closing == "\n[/THINK]"
    assert made.requests == {"high": {"thinking_budget_tokens": 448}, "low": {"thinking_budget_tokens": 320}}


def test_sglang_is_told_to_end_thinking_by_another_text():
    made = budget_map("sglang", "r", "m", LEVELS, thinking("qwen3"))
    assert made.requests == {name: {"custom_params": {"thinking_budget": n}} for name, n in made.budgets.items()}
    assert any("a text of its own" in note for note in made.notes)


@pytest.mark.parametrize("target", [name for name in ENGINES if name in TARGETS])
def test_thinking_without_markers_has_a_field_in_no_engine(target):
    with pytest.raises(PrunusError, match=r"only max_tokens and a second request"):
        budget_map(target, "r", "m", LEVELS, thinking("plain"))
    numbers = budget_map("json", "r", "m", LEVELS, thinking("plain"))
    assert numbers.budgets == {"high": 448, "low": 320} and any("max_tokens" in note for note in numbers.notes)


def test_every_profile_whose_engine_can_end_its_thinking_has_a_parser_of_vllm():
    of_engines = [name for name, profile in PROFILES.items() if profile.native_engine]
    assert of_engines and all(thinking(name).stop in ENGINES["vllm"].parsers for name in of_engines)


@pytest.mark.parametrize(
    ("target", "levels", "of", "message"),
    [
        ("vlm", LEVELS, "qwen3", "did you mean 'vllm'"),
        ("vllm", {"low": None}, "qwen3", "no level of m"),
        ("openai", {"rough": 64}, "qwen3", "is no value of reasoning_effort"),
        ("vllm", LEVELS, None, "is an imported log"),
        ("vllm", LEVELS, "s1", "keeps no budget of thinking that ends with"),
    ],
)
def test_what_cannot_be_written_is_refused(target, levels, of, message):
    with pytest.raises(PrunusError, match=message):
        budget_map(target, "r", "m", levels, None if of is None else thinking(of))


def test_a_budget_that_the_model_is_told_of_is_no_field_of_an_engine():
    told = thinking("seed", native={"template": "thinking_budget"})
    with pytest.raises(PrunusError, match=r"told by its template: use --for json"):
        budget_map("vllm", "r", "m", LEVELS, told)


@pytest.mark.slow
def test_the_command_prints_json_alone(tmp_path, capsys):
    right = np.random.default_rng(1).random((300, 1, 1)) < np.array((0.3, 0.6, 0.88, 0.9, 0.9))[None, :, None]
    path: Path = store_of(tmp_path / "s.db", {"tiny": right, "copy": right})
    found = prunus.efforts(path)
    main(["efforts", str(path), "--run", "copy", "--for", "openai"])
    assert json.loads(capsys.readouterr().out) == {level.name: level.budget for level in found.runs[1].levels[1:]}
    made = found.for_target("json", "copy")
    assert made.run == "copy" and not made.notes
    few = prunus.efforts(path, levels={"high": 0.005, "low": 0.1}).for_target("json", "tiny")
    assert few.notes == ["level 'high': 300 problems are too few where nothing differs: at least 754"]
    assert few.budgets["high"] == 256, "the largest, since none smaller is shown to be enough"
    with pytest.raises(PrunusError, match=r"a map of budgets is of one run: name it, of tiny .*, copy"):
        found.for_target("json")
