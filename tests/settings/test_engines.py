"""The facts of engines: what follows from them is compared with what was written by hand."""

import pytest

from prunus.errors import PrunusError
from prunus.recipes import EvalPlan, GgufRecipe
from prunus.recipes.gguf import FILE_TYPES
from prunus.settings.cache_size import CacheSize
from prunus.settings.engines import (
    BACKENDS,
    ENGINES,
    IN_CHOOSE,
    IN_FIND,
    EngineOptions,
    engine_of_server,
    options_for,
)  # fmt: skip
from prunus.settings.engines.facts import filled
from prunus.settings.engines.vllm import flag

CACHE = CacheSize(keys="f16", values="f16", per_token=10, windows={}, constant=7)


def test_engines_of_commands():
    assert (set(IN_CHOOSE), set(IN_FIND)) == ({"hf", "vllm", "llama.cpp"}, {"vllm", "llama.cpp"})
    assert {name: engine.backend for name, engine in ENGINES.items()} == {
        "hf": "hf",
        "vllm": "vllm",
        "sglang": "openai",
        "llama.cpp": "openai",
    }
    assert {engine.backend for engine in ENGINES.values()} == set(BACKENDS)


def test_forms_of_llama_cpp_are_all_types_that_the_writer_has():
    kinds = [file_type.name for file_type in FILE_TYPES if file_type.name != GgufRecipe.type]  # the model as it is
    assert [form[-1] for form in ENGINES["llama.cpp"].forms] == [{"gguf": {"type": kind}} for kind in kinds]


@pytest.mark.parametrize(
    ("owner", "name"),
    [("vllm", "vllm"), ("sglang", "sglang"), ("llamacpp", "llama.cpp"), ("me", None), ("", None), ("unknown", None)],
)
def test_a_server_tells_its_engine(owner, name):
    engine = engine_of_server(owner)
    assert (engine and engine.name) == name


@pytest.mark.parametrize(
    ("engine", "fields"),
    [
        ("vllm", {"thinking_token_budget": 512}),
        ("sglang", {"custom_params": {"thinking_budget": 512}}),
        ("llama.cpp", {"thinking_budget_tokens": 512}),
        ("hf", {}),
    ],
)
def test_the_request_fields_of_a_thinking_budget(engine, fields):
    assert ENGINES[engine].budget_fields(512) == fields


def test_a_command_gets_room_for_all_chains():
    command = "llama-server -m {gguf} --port {port} -c {context} -np {slots}"
    assert ENGINES["llama.cpp"].sized(command, 300, 3) == "llama-server -m {gguf} --port {port} -c 1536 -np 3"


@pytest.mark.parametrize(
    ("name", "serve", "args", "command"),
    [
        ("hf", None, {}, 'transformers serve --port "$port" --force-model "$here"'),
        (
            "vllm",
            None,
            {"tensor_parallel_size": 2},
            """vllm serve "$here" --served-model-name 'my model' --port "$port" --max-model-len 300 --max-num-seqs 3"""
            " --kv-cache-memory-bytes 15381 --tensor-parallel-size 2",  # 3 chains of 4 blocks of 128 tokens
        ),
        (
            "llama.cpp",
            "llama-server -m {gguf} -a {name} --port={port} -c {context} -np {slots}",
            {},
            """llama-server -m "$here/model.gguf" -a 'my model' --port="$port" -c 1536 -np 3""",
        ),
    ],
)
def test_the_command_that_serves_a_choice(name, serve, args, command):
    assert ENGINES[name].script("my model", serve, args, (300, 3, CACHE)) == command


def test_places_in_a_command_are_filled_inside_words_too():
    values = {"{port}": '"$port"', "{gguf}": '"$here/model.gguf"'}
    assert filled("serve -m {gguf} --port={port} -a 'x y'", values) == (
        """serve -m "$here/model.gguf" --port="$port" -a 'x y'"""
    )


def test_arguments_of_vllm_are_options_of_its_command():
    given = {"enforce_eager": True, "async_scheduling": False, "dtype": "bfloat16", "override": {"a": 1}}
    assert [flag(key, value) for key, value in given.items()] == [
        "--enforce-eager",
        "--no-async-scheduling",
        "--dtype bfloat16",
        """--override '{"a": 1}'""",
    ]


@pytest.mark.parametrize(
    ("engine", "given", "on_path", "backend", "serve"),
    [
        ("vllm", None, False, "vllm", None),
        ("openai", None, False, "openai", None),
        ("llama.cpp", None, True, "openai", "llama-server -m {gguf} --alias {name} --port {port}"),
        ("llama.cpp", "s {gguf} {port}", False, "openai", "s {gguf} {port}"),
        ("llama.cpp", None, False, "openai", "llama-server of llama.cpp is not on the PATH: add the folder that has"),
    ],
)
def test_an_engine_knows_its_backend_and_its_server(tmp_path, monkeypatch, engine, given, on_path, backend, serve):
    if on_path:
        (tmp_path / "llama-server").write_text("#!/bin/sh\n")
        (tmp_path / "llama-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = EvalPlan(("tiny",), engine=engine)
    assert plan.backend == plan.to_json()["backend"] == backend and "engine" not in plan.to_json()
    if engine == "llama.cpp" and not (given or on_path):
        with pytest.raises(PrunusError, match=serve):
            options_for(engine, EngineOptions(serve=given))
    else:
        assert options_for(engine, EngineOptions(serve=given)).serve == serve
    url = EngineOptions(url="http://localhost:1/v1")
    assert options_for(engine, url) == url, "a server that runs is not started"
