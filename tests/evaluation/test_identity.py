"""A row in a store is what its run says it is, whatever is changed, resumed or served between."""

import json
import re
import shutil
import sqlite3
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from completions_server import Server, serving
from safetensors.torch import load_file, save_file
from tiny_chains import TOKENIZER, tiny

import prunus
from prunus.checkpoint.content import content_digest
from prunus.checkpoint.longrope import has_longrope
from prunus.checkpoint.resolve import tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation import engine as loop
from prunus.evaluation import provenance
from prunus.recipes import EvalPlan
from prunus.results.comparison import compare
from prunus.settings.engines import ENGINES, EngineOptions
from prunus.settings.serving import Serving, read_command, versions_of
from prunus.store.labels import label_of
from prunus.store.rows import Run
from prunus.store.starts import differences
from prunus.store.store import Store
from prunus.store.stored import Environment
from prunus.studies.cells import open_models
from prunus.studies.file import read_study
from prunus.studies.variants import is_made, make_variant

PLAN = EvalPlan(tasks=("tiny",), limit=2, budgets=(4, 8), answer_tokens=4)
OF_SERVER = EvalPlan(tasks=("tiny",), limit=2, budgets=(4,), answer_tokens=4, engine="openai")


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the built-in reasoner."""
    return shutil.copytree(tiny_folder(), tmp_path / "model")


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "results.db"


def change(file: Path, **content: Any) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | content))


def lose_rows(store: Path, problem: str | None = None) -> None:
    """Delete the rows of the last problem, so that the run is unfinished."""
    with sqlite3.connect(store) as connection:
        connection.execute("DELETE FROM sample WHERE problem_id = (SELECT max(problem_id) FROM sample)")


def change_record(store: Path, path: str, value: Any) -> None:
    """Change what the first start of all runs recorded."""
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE run SET versions = json_set(versions, ?, ?)", (path, value))


def runs(store: Path) -> list[Run]:
    with Store(store) as opened:
        return opened.runs()


def counted(monkeypatch) -> list[int]:
    """The sizes of the batches that are computed from here on."""
    sizes, original = list[int](), loop.run_batch
    monkeypatch.setattr(
        loop, "run_batch", lambda work, engine, batch: sizes.append(len(batch)) or original(work, engine, batch)
    )
    return sizes


@pytest.mark.thorough
@pytest.mark.slow
def test_a_copy_with_another_configuration_is_another_run(model, store, capsys):
    """Finding B 3: it showed the unchanged model's rows, as one run."""
    first = prunus.evaluate(model, PLAN, store, device="cpu").run_id
    copy = shutil.copytree(model, model.with_name("copy"))
    assert prunus.evaluate(copy, PLAN, store, device="cpu").run_id == first, "a folder's place is no matter"
    change(copy / "config.json", rms_norm_eps=0.5)
    second = prunus.evaluate(copy, PLAN, store, device="cpu").run_id
    assert second != first and len(runs(store)) == 2
    with Store(store) as opened:
        texts = [[row.thinking for row in opened.samples(one, texts=True)] for one in (first, second)]
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"a_new_key": 1}),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}),
        ("config.json", {"torch_dtype": "float16"}),
        ("generation_config.json", None),
        ("tokenizer_config.json", {"add_bos_token": True}),
        ("special_tokens_map.json", {"eos_token": "x"}),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}),
        ("tokenizer.json", {"normalizer": {"type": "NFC"}}),
        ("chat_template.jinja", "{{ 'else' }}"),
    ],
)
def test_what_a_model_computes_with_is_hashed(model, file, content):
    before, path = content_digest(model), model / file
    if isinstance(content, str):
        path.write_text(content)
    elif content is None:  # its end ids are in the plan; sampling is the plan's
        path.write_text('{"temperature": 0.1}')
    else:
        path.write_text(path.read_text() if path.exists() else "{}")
        change(path, **content)
    assert (content_digest(model) == before) == (content is None)


def test_names_are_not_hashed_and_a_template_counts_in_any_file(model):
    before = content_digest(model)
    change(model / "config.json", _name_or_path="x", transformers_version="4.0", use_cache=False)
    architectures = json.loads((model / "config.json").read_text())["architectures"]
    change(model / "config.json", architectures=[name.upper() for name in architectures])
    assert content_digest(model) == before
    template = model / "chat_template.jinja"
    change(model / "tokenizer_config.json", chat_template=template.read_text())
    template.unlink()
    assert content_digest(model) == before


def test_integers_without_their_scales_are_refused(model, store):
    """Finding B 4: they were evaluated as plain numbers, with exit 0."""
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if name.endswith("mlp.up_proj.weight"))
    save_file({**tensors, name: tensors[name].to(torch.int8)}, model / "model.safetensors")
    for backend in ("hf", "vllm"):
        with pytest.raises(PrunusError, match=r"is I8, but config\.json has no quantization_config") as error:
            prunus.evaluate(model, replace(PLAN, engine=backend), store, device="cpu")
        assert "\n" not in str(error.value)
    assert not store.exists()
    (model.parent / "text.txt").write_text("Compute 97-3-33.")
    with pytest.raises(PrunusError, match=r"is I8, but config\.json has no quantization_config"):
        prunus.perplexity(model, model.parent / "text.txt", seqlen=4, device="cpu")
    study = model.parent / "study.toml"
    study.write_text(f'models = ["{model}"]\n[eval]\ntasks = ["tiny"]\nengine = "vllm"\n')
    with pytest.raises(PrunusError, match=r"is I8, but config\.json has no quantization_config"):
        open_models(read_study(study))


def by_server(store: Path, server: Server, mixed: bool = False, **engine: Any) -> str:
    with serving(server):
        options = EngineOptions(url=server.url, **engine)
        return prunus.evaluate("tiny", OF_SERVER, store, options=options, mixed=mixed).run_id


@pytest.mark.thorough
@pytest.mark.slow
def test_another_server_does_not_continue_a_run(store, capsys):
    """Finding B 5: rows of any server stood under the run's id; the store had neither address nor served name."""
    run = by_server(store, Server(tiny(), TOKENIZER))
    record = runs(store)[0].environment.data
    assert record["served"] == "tiny" and record["address"].startswith("http://127.0.0.1:") and record["first_ids"]
    lose_rows(store)
    with pytest.raises(PrunusError, match="the served model is elsewhere, not tiny") as error:
        by_server(store, Server(tiny(), TOKENIZER, name="elsewhere"), served_model="elsewhere")
    assert "--serving NAME" in str(error.value) and "--mixed" in str(error.value) and "\n" not in str(error.value)
    change_record(store, "$.first_ids[0]", -1)
    with pytest.raises(PrunusError, match="the server's reply to a probe is"):
        by_server(store, Server(tiny(), TOKENIZER))
    change_record(store, "$.first_ids[0]", record["first_ids"][0])
    capsys.readouterr()
    assert by_server(store, Server(tiny(), TOKENIZER)) == run, "the same server at another address"
    assert "goes on at http://127.0.0.1" in capsys.readouterr().err
    assert by_server(store, Server(tiny(), TOKENIZER), serving="KV q4_0") != run
    assert [label_of(one) for one in runs(store)] == ["dense", "dense · KV q4_0"]


def test_what_a_server_tells_is_compared():
    told = {"default top_k": "40", "model_path": "a.gguf"}
    stored = Environment.of({"told": told, "address": "x", "max_num_seqs": 3, "device": "cuda:0"})
    other = {"told": told | {"model_path": "b.gguf"}, "address": "y", "max_num_seqs": 4, "device": "cuda:1"}
    assert differences(stored, Environment.of(other)) == ["the server's settings: model_path is b.gguf, not a.gguf"]


def begun(monkeypatch, **changes: Any) -> None:
    """From here on, starts record these."""
    original = provenance.describe_environment
    for module in ("pipeline", "lm_eval"):
        monkeypatch.setattr(f"prunus.evaluation.{module}.describe_environment", lambda *of: original(*of) | changes)


@pytest.mark.slow
def test_a_start_that_computes_otherwise_is_refused_or_marked(model, store, monkeypatch, capsys):
    """Finding B 6: a second device, dtype or version left no trace."""
    pruned = model.with_name("pruned")
    prunus.prune(model, pruned, prunus.PruneRecipe("magnitude", 0.3))
    base = prunus.evaluate(model, PLAN, store, device="cpu").run_id
    run = prunus.evaluate(pruned, PLAN, store, device="cpu").run_id
    lose_rows(store)
    begun(monkeypatch, prunus="9", python="4")
    prunus.evaluate(pruned, PLAN, store, device="cpu")
    (start,) = runs(store)[1].starts
    assert start.environment.data["python"] == "4" and start.at and not start.mixed, (
        "what changes no number is appended"
    )
    lose_rows(store)
    begun(monkeypatch, torch="1.0", dtype="float64")
    with pytest.raises(
        PrunusError, match=r"was started differently \(dtype is float64, not float32; torch is 1.0, not"
    ) as error:
        prunus.evaluate(pruned, PLAN, store, device="cpu")
    assert "\n" not in str(error.value) and len(runs(store)[1].starts) == 1
    assert prunus.evaluate(pruned, PLAN, store, device="cpu", mixed=True).run_id == run
    assert runs(store)[1].mixed and not runs(store)[0].mixed

    # Where the base goes on there, too, each problem has one way of computing in both runs, and there is a verdict.
    prunus.evaluate(model, PLAN, store, device="cpu", mixed=True)
    assert all(stored.mixed for stored in runs(store))
    (entry,) = prunus.compare(store, base, [run], resamples=100).others
    assert entry.unfinished is None and entry.verdict != "unfinished"

    # A problem that the base computed on the first machine and the variant on the second is no pair.
    with sqlite3.connect(store) as connection:
        connection.execute("DELETE FROM sample WHERE run_id = ? AND start > 0", (base,))
    begun(monkeypatch)
    prunus.evaluate(model, PLAN, store, device="cpu")
    (entry,) = prunus.compare(store, base, [run], resamples=100).others
    assert entry.verdict == "unfinished" and entry.unfinished is not None and entry.unfinished.mixed
    assert entry.warnings[0].startswith(
        "mixed: no verdict is given, since 1 of 2 problems were computed otherwise in the two runs, or not as the"
        " others: dtype float64 (float32)"
    )
    page = Path(prunus.report(store, store.with_suffix(".html"), base=base)).read_text()
    assert "mixed" in page
    capsys.readouterr()
    begun(monkeypatch, torch="1.0")
    prunus.evaluate(pruned, PLAN, store, device="cpu")
    assert "started differently" not in capsys.readouterr().err, "a complete run is not refused"


@pytest.mark.slow
def test_another_model_of_gpu_does_not_continue_a_run(store, monkeypatch):
    """Its kernels round otherwise; a run that did not record it contradicts nothing."""
    begun(monkeypatch, gpu="NVIDIA A100")
    run = prunus.evaluate("tiny", PLAN, store, device="cpu").run_id
    lose_rows(store)
    begun(monkeypatch, gpu="NVIDIA H100")
    with pytest.raises(PrunusError, match=r"started differently \(gpu is NVIDIA H100, not NVIDIA A100\)"):
        prunus.evaluate("tiny", PLAN, store, device="cpu")
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE run SET versions = json_remove(versions, '$.gpu')")
    assert prunus.evaluate("tiny", PLAN, store, device="cpu").run_id == run and not runs(store)[0].mixed
    lose_rows(store)
    begun(monkeypatch, gpu="NVIDIA A100")
    with pytest.raises(PrunusError, match=r"started differently \(gpu is NVIDIA A100, not NVIDIA H100\)"):
        prunus.evaluate("tiny", PLAN, store, device="cpu")  # the first start did not tell, but the second did
    smaller = prunus.evaluate("tiny", replace(PLAN, limit=1), store, device="cpu").run_id
    assert [one.environment.data["gpu"] for one in next(r for r in runs(store) if r.run_id == smaller).starts] == [
        "NVIDIA H100"
    ]


def test_a_run_goes_on_on_another_model_of_cpu():
    known = Environment.of({"device": "cpu", "torch": "2", "cpu": "AMD EPYC", "printed": "n_threads = 2"})
    assert differences(known, Environment.of({"device": "cpu", "torch": "2", "cpu": "Intel Xeon"})) == []
    assert differences(known, Environment.of({"device": "cpu", "torch": "3"})) == ["torch is 3, not 2"]


def test_a_complete_run_of_another_model_of_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H100")
    record = {"torch": torch.__version__, "device": "cuda:0"}
    assert provenance.computed_otherwise(Run.of("a", {}, {}, record), "hf", "cuda") is None
    line = provenance.computed_otherwise(Run.of("a", {}, {}, {**record, "gpu": "NVIDIA A100"}), "hf", "auto")
    assert line == "run a is complete; it was computed otherwise: here gpu is NVIDIA H100, not NVIDIA A100"


@pytest.mark.slow
def test_a_complete_run_says_where_it_was_computed_otherwise(store, capsys):
    run = prunus.evaluate("tiny", PLAN, store, device="cpu").run_id
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE run SET versions = json_set(versions, '$.torch', '1.0')")
    assert prunus.evaluate("tiny", PLAN, store, device="cpu").run_id == run
    assert f"run {run} is complete; it was computed otherwise: here torch is" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_says_where_runs_were_computed_otherwise(store, tmp_path):
    prunus.prune("tiny", tmp_path / "pruned", prunus.PruneRecipe("magnitude", 0.3))
    for name in ("tiny", tmp_path / "pruned"):
        prunus.evaluate(name, PLAN, store, device="cpu")
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE run SET versions = json_set(versions, '$.device', 'cuda:1') WHERE rowid = 2")
    (entry,) = compare(store, "tiny", resamples=100).others
    assert "computed otherwise than the base: device cuda (cpu), so the difference may be theirs" in entry.warnings


@pytest.mark.slow
@pytest.mark.parametrize("smaller", [{"limit": 2}, {"budgets": (4,)}, {"samples": 1}])
def test_a_smaller_plan_takes_the_rows_that_are_there(store, monkeypatch, smaller):
    """Finding B 7: they were computed anew."""
    larger = replace(PLAN, limit=3, samples=2, batch_size=2)
    few = replace(larger, **smaller)
    whole = prunus.evaluate("tiny", larger, store, device="cpu").run_id
    expected = prunus.evaluate("tiny", few, store.with_name("alone.db"), device="cpu").run_id
    sizes = counted(monkeypatch)
    assert prunus.evaluate("tiny", few, store, device="cpu").run_id == expected and not sizes
    with Store(store) as mine, Store(store.with_name("alone.db")) as alone:
        found, wanted = (  # the last bits of scores depend on the company in a batch
            [replace(row, logprob=None, self_certainty=None) for row in one.samples(expected, texts=True)]
            for one in (mine, alone)
        )
        assert found == wanted
        assert len(mine.keys(whole)) == 12


@pytest.mark.slow
def test_an_interrupted_larger_run_gives_what_it_has(store, monkeypatch):
    larger = replace(PLAN, limit=4, batch_size=1)
    prunus.evaluate("tiny", larger, store, device="cpu")
    with sqlite3.connect(store) as connection:
        connection.execute(
            "DELETE FROM sample WHERE problem_id IN (SELECT DISTINCT problem_id FROM sample ORDER BY 1 LIMIT 1)"
        )
    sizes = counted(monkeypatch)
    prunus.evaluate("tiny", replace(larger, limit=3), store, device="cpu")
    assert sizes == [1]


@pytest.mark.slow
def test_rows_of_another_kind_are_not_taken(store, monkeypatch):
    prunus.evaluate("tiny", replace(PLAN, limit=3), store, device="cpu")
    sizes = counted(monkeypatch)
    prunus.evaluate("tiny", replace(PLAN, seed=1), store, device="cpu")
    prunus.evaluate("tiny", replace(PLAN, aa_control=True), store, device="cpu")
    assert len(sizes) == 1 + 2
    begun(monkeypatch, torch="1.0")
    with sqlite3.connect(store) as connection:  # a part of the other's rows, which were computed otherwise
        connection.execute("DELETE FROM sample WHERE problem_id = (SELECT min(problem_id) FROM sample)")
    prunus.evaluate("tiny", PLAN, store, device="cpu")
    assert len(sizes) == 4


@pytest.mark.parametrize(
    ("command", "program", "counts", "fast"),
    [
        (
            "vllm serve {model} --port {port} --data-parallel-size 8 --max_num_seqs=4 --api-key mine",
            "vllm",
            (),
            ("--data-parallel-size 8", "--max_num_seqs 4"),
        ),
        ("vllm serve {model} --port {port} --kv-cache-dtype fp8", "vllm", ("--kv-cache-dtype fp8",), ()),
        ("vllm serve --enforce-eager {model} --port {port}", "vllm", ("--enforce-eager",), ()),
        (
            "/opt/llama-server -m {gguf} --alias {name} --port {port} -c 16384 -np 8 -ngl -1",
            "llama.cpp",
            (),
            ("-c 16384", "-ngl -1", "-np 8"),
        ),
        ("llama-server -m {gguf} --port {port} -ctk q4_0 -cb", "llama.cpp", ("-ctk q4_0",), ("-cb",)),
        ("llama-server -m other.gguf --port {port} {model}", "llama.cpp", ("-m other.gguf",), ()),
        (
            "python -m sglang.launch_server --model-path {model} --port {port} --tp 2 --new x",
            "sglang",
            ("--new x",),
            ("--tp 2",),
        ),
        ("python mine.py {model} {port}", "another", ("python mine.py",), ()),
        ("env A=1 vllm serve {model} --port {port}", "another", ("--port", "env A=1 vllm serve"), ()),
    ],
)
def test_settings_of_a_command_count_unless_they_only_cost_speed(command, program, counts, fast):
    assert read_command(command) == (program, counts, fast)


def test_everything_counts_for_an_exact_serving(monkeypatch):
    def of(backend: str, environment: dict[str, str] | None = None, **engine: Any) -> Serving:
        return Serving.of(backend, EngineOptions(exact=True, **engine), environment or {})

    monkeypatch.setattr("prunus.settings.serving.version", {"torch": "2", "transformers": "5"}.__getitem__)
    versions_of.cache_clear()
    assert of("hf").to_json() == {"exact": {"args": {}, "words": [], "versions": {"torch": "2", "transformers": "5"}}}
    assert of("hf").label == "exact, transformers 5, torch 2" and of("hf") != Serving.of("hf", EngineOptions(), {})
    monkeypatch.setattr(
        "prunus.settings.serving.versions_of", lambda backend: {"vllm": "1"} if backend == "vllm" else {}
    )
    cached, not_cached, parallel = (
        of("vllm", args={"kv_cache_dtype": "fp8", **args})
        for args in ({}, {"enable_prefix_caching": False}, {"tensor_parallel_size": 2})
    )
    assert len({one.digest for one in (cached, not_cached, parallel)}) == 3
    assert not_cached.label == "kv_cache_dtype fp8, exact, enable_prefix_caching False, vllm 1"
    assert (
        parallel.exact
        and parallel.exact.args == {"tensor_parallel_size": 2}
        and parallel.args == {"kv_cache_dtype": "fp8"}
    )
    two, one = (of("openai", serve=f"llama-server -m {{gguf}} --port {{port}} -np {slots}") for slots in (2, 1))
    assert two != one and two.label == "exact, -np 2"
    threads = of("openai", {"LLAMA_ARG_THREADS": "2"}, serve="llama-server -m {gguf} --port {port} -np 1")
    assert threads != one and threads.exact and threads.exact.words == ("-np 1", "LLAMA_ARG_THREADS 2")
    for made in (not_cached, two, threads):
        assert Serving.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert "secret" not in str(of("vllm", args={"api_key": "secret"}).to_json())
    with pytest.raises(PrunusError, match="exact is for an engine that is started here"):
        EngineOptions(exact=True, url="http://a/v1")


def test_an_exact_serving_needs_what_it_names():
    versions_of.cache_clear()
    if find_spec("vllm") is None:
        with pytest.raises(PrunusError, match="exact needs the version of vllm, which is not installed here"):
            Serving.of("vllm", EngineOptions(exact=True), {})
    else:
        assert versions_of("vllm")["vllm"]


def test_a_serving_is_part_of_the_id_and_an_empty_one_is_not():
    def of(backend: str = "vllm", environment: dict[str, str] | None = None, **engine: Any) -> Serving:
        return Serving.of(backend, EngineOptions(**engine), environment or {})

    empty = of(args={"max_num_seqs": 4, "tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "port": 1})
    assert not empty and empty.to_json() == {} and empty.label == ""
    fp8, e5m2 = (of(args={"kv_cache_dtype": kind}) for kind in ("fp8", "fp8_e5m2"))
    assert fp8 != e5m2 and fp8.digest != e5m2.digest and fp8.label == "kv_cache_dtype fp8"
    assert of(args={"a_flag_of_tomorrow": False})
    assert of(serving="KV q4_0").label == "KV q4_0" and of("hf", serving="x") == of(
        "openai", url="http://a/v1", serving="x"
    )
    assert not of(environment={"VLLM_LOGGING_LEVEL": "INFO"}) and of(environment={"VLLM_ATTENTION_BACKEND": "X"})
    assert not of("openai", {"VLLM_ATTENTION_BACKEND": "X"}, url="http://a/v1"), "of a server elsewhere it says nothing"
    assert of("hf", {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"})
    llama = {"serve": "llama-server -m {gguf} --port {port}"}
    assert of("openai", {"LLAMA_ARG_CACHE_TYPE_K": "q4_0"}, **llama) and not of(
        "openai", {"LLAMA_ARG_THREADS": "2"}, **llama
    )
    for one in (fp8, of("openai", serve="llama-server -m {gguf} --port {port} -ctk q8_0")):
        assert Serving.from_json(json.loads(json.dumps(one.to_json()))) == one


LONGROPE = {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}}


@pytest.mark.parametrize(
    ("config", "has"),
    [
        ({}, False),
        ({"rope_scaling": None}, False),
        ({"rope_scaling": {"rope_type": "yarn", "type": "yarn", "factor": 4.0}}, False),
        (LONGROPE, True),
        ({"rope_scaling": {"type": "su"}}, True),
        ({"rope_parameters": {"rope_type": "longrope"}}, True),
        ({"text_config": {"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}}, True),
    ],
)
def test_longrope_is_found_in_the_configuration(model, config, has):
    change(model / "config.json", **config)
    assert has_longrope(model) == has and not has_longrope(model.parent)


@pytest.mark.slow
def test_the_longest_sequence_counts_for_longrope_only(model, tmp_path, monkeypatch):
    """Engines take the long or the short factors by it."""
    monkeypatch.chdir(tmp_path)

    def ids(backend: str, engine: str) -> set[str]:
        plan = f'[eval]\ntasks = ["tiny"]\nlimit = 2\nbudgets = [4]\nengine = "{backend}"\n'
        Path("study.toml").write_text(f'models = ["model"]\n{plan}[engine]\n{engine}\n')
        (opened,) = open_models(read_study("study.toml"))
        return {cell.run_id for cell in opened.cells}

    server = "llama-server -m {gguf} --port {port}"
    pairs = [
        ("vllm", "args = {max_model_len = 1024}", "args = {max_model_len = 2048}"),
        ("openai", f"serve = '{server}'", f"serve = '{server} -c 2048'"),
        ("openai", f"serve = '{server}'", f"serve = '{server} -np 2'"),
    ]
    assert all(ids(backend, one) == ids(backend, other) for backend, one, other in pairs)
    change(model / "config.json", **LONGROPE)
    assert all(ids(backend, one).isdisjoint(ids(backend, other)) for backend, one, other in pairs)
    llama = EngineOptions(serve=server)
    for longrope in (False, True):
        assert bool(Serving.of("openai", llama, {"LLAMA_ARG_CTX_SIZE": "4096"}, longrope)) == longrope
        assert not Serving.of("openai", llama, {"LLAMA_ARG_THREADS": "2"}, longrope)


@pytest.mark.thorough
def test_a_server_of_longrope_with_another_longest_sequence_does_not_continue_a_run(model, store):
    change(model / "config.json", **LONGROPE)

    def evaluated(context: int) -> str:
        with serving(server := Server(tiny(), TOKENIZER, name="model", context=context)):
            return prunus.evaluate(model, OF_SERVER, store, options=EngineOptions(url=server.url)).run_id

    run = evaluated(2048)
    lose_rows(store)
    with pytest.raises(PrunusError, match="the longest sequence is 1024, not 2048"):
        evaluated(1024)
    assert evaluated(2048) == run


@pytest.mark.slow
def test_two_settings_never_share_a_row(store):
    """As `kv_cache_dtype` and `-ctk` did, whose rows stood under one id."""
    ids = {
        prunus.evaluate("tiny", PLAN, store, device="cpu", options=EngineOptions(serving=name)).run_id
        for name in (None, "a", "b")
    }
    assert len(ids) == 3 and len(runs(store)) == 3


ASKED = ({}, {"repetition_penalty": 1.05}, {"repetition_penalty": 1.3}, {"min_p": 0.05, "presence_penalty": 1})


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["hf", "openai"])
def test_two_requests_never_share_a_row(backend, store):
    plan = PLAN if backend == "hf" else OF_SERVER
    with serving(Server(tiny(), TOKENIZER)) as server:
        url = None if backend == "hf" else server.url
        for request in (*ASKED, *ASKED):  # the second time all rows are there
            prunus.evaluate("tiny", plan, store, device="cpu", options=EngineOptions(url=url, request=request))
    with Store(store) as opened:
        assert all(opened.keys(run.run_id) for run in runs(store)) and len(runs(store)) == len(ASKED)
    assert [label_of(run) for run in runs(store)] == [
        "dense",
        "dense · repetition_penalty 1.05",
        "dense · repetition_penalty 1.3",
        "dense · min_p 0.05, presence_penalty 1.0",
    ]
    compared = compare(store)
    assert compared.to_json()["base"]["recipe"] == [], "the dense model without settings is the base"


@pytest.mark.slow
def test_a_run_is_not_continued_by_another_request(store):
    asked = EngineOptions(request={"repetition_penalty": 1.3})
    run = prunus.evaluate("tiny", PLAN, store, device="cpu", options=asked).run_id
    lose_rows(store)
    with Store(store) as opened:
        left = opened.keys(run)
    assert prunus.evaluate("tiny", PLAN, store, device="cpu").run_id != run
    with Store(store) as opened:
        assert opened.keys(run) == left
    assert prunus.evaluate("tiny", PLAN, store, device="cpu", options=asked).run_id == run
    with Store(store) as opened:
        assert opened.keys(run) > left


def test_an_empty_request_adds_nothing_and_equal_ones_are_equal():
    def of(**request: Any) -> Serving:
        return Serving.of("hf", EngineOptions(request=request), {})

    assert not of() and of().to_json() == {}
    assert of(presence_penalty=1, min_p=0.1) == of(min_p=0.1, presence_penalty=1.0)
    assert of(presence_penalty=1).digest == of(presence_penalty=1.0).digest != of(presence_penalty=0.5).digest
    assert Serving.from_json(json.loads(json.dumps(of(min_p=0.1).to_json()))) == of(min_p=0.1)


@pytest.mark.parametrize(
    ("backend", "request_", "words"),
    [
        ("hf", {"temperature": 0.5}, "'temperature' is set by prunus, as the plan says"),
        ("vllm", {"logit_bias": {}}, "'logit_bias' is set by prunus"),
        ("openai", {"n_predict": 4}, "'n_predict' is set by prunus"),
        ("vllm", {"min_p": 0.1, "stop": ["x"]}, "'stop' is set by prunus"),
        ("hf", {"repetition": 1.1}, "'repetition' is not known; did you mean 'repetition_penalty'"),
        ("hf", {"frequency_penalty": 1.0}, "the engine hf does not take the request field 'frequency_penalty'"),
        ("vllm", {"dry_multiplier": 1.0}, "the engine vllm does not take the request field 'dry_multiplier'"),
        ("hf", {"min_p": "0.1"}, "'min_p' must be a number, not '0.1'"),
        ("hf", {"min_p": True}, "'min_p' must be a number, not True"),
        ("hf", {"min_p": 1.5}, "min_p must lie in [0, 1], not 1.5"),
        ("hf", {"repetition_penalty": 0}, "repetition_penalty must be above 0, not 0"),
        ("openai", {"repeat_last_n": 0.5}, "'repeat_last_n' must be a whole number, not 0.5"),
    ],
)
def test_a_request_that_cannot_be_heeded_is_refused(backend, request_, words, store):
    url = "http://localhost:1" if backend == "openai" else None
    with pytest.raises(PrunusError) as error:
        plan = replace(PLAN, engine=backend)
        prunus.evaluate("tiny", plan, store, device="cpu", options=EngineOptions(url=url, request=request_))
    assert words in str(error.value) and "\n" not in str(error.value) and not store.exists()


def test_the_request_of_a_study_is_part_of_its_cells(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def ids(engine: str) -> set[str]:
        text = 'models = ["model"]\n[eval]\ntasks = ["tiny"]\nlimit = 2\nbudgets = [4]\n'
        Path("study.toml").write_text(f"{text}[engine]\n{engine}\n")
        (opened,) = open_models(read_study("study.toml"))
        return {cell.run_id for cell in opened.cells}

    plain, penalised = ids(""), ids("request = { repetition_penalty = 1.1 }")
    assert plain == ids("request = {}") and penalised and plain.isdisjoint(penalised)
    with pytest.raises(PrunusError, match="'top_k' is set by prunus"):
        ids("request = { top_k = 5 }")


def test_a_request_is_refused_for_tasks_of_the_harness(store):
    plan = EvalPlan(tasks=("lm_eval:x",))
    with pytest.raises(PrunusError, match="request is not for tasks of lm-evaluation-harness"):
        prunus.evaluate("tiny", plan, store, device="cpu", options=EngineOptions(request={"min_p": 0.1}))


def test_the_settings_that_only_cost_speed_are_published():
    page = Path(__file__).parents[2] / "docs" / "runs.md"
    text = page.read_text()
    (shared,) = re.findall(r"\((.+/facts\.py)\)", text)
    for engine in (engine for engine in ENGINES.values() if engine.speed):
        line = next(line for line in text.splitlines() if line.startswith(f"| {engine.name} |"))
        examples, link = line.split("|")[2:4]
        assert set(re.findall("`([a-z_]+)`", examples)) < engine.speed, engine.name
        listed = "".join((page.parent / file).read_text() for file in (*re.findall(r"\((.+)\)", link), shared))
        assert all(f'"{name}"' in listed for name in engine.speed | engine.variables), engine.name
        assert engine.of_length <= engine.speed


@pytest.mark.slow
def test_a_study_makes_its_variants_anew_for_another_configuration(model, tmp_path, monkeypatch):
    """Found here: their files had the weights' checksum in their names only, and calibration runs the whole model."""
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(
        'models = ["model"]\n[eval]\ntasks = ["tiny"]\nlimit = 2\nbudgets = [4]\n[[prune]]\nmethod = "magnitude"\n'
    )

    def variant() -> Any:
        (opened,) = open_models(read_study("study.toml"))
        return opened, opened.variants[1]

    opened, first = variant()
    make_variant(opened, first, Path("out"), "cpu", keep=False)
    assert is_made(Path("out"), first)
    change(model / "config.json", rms_norm_eps=0.5)
    changed, second = variant()
    assert second.key == first.key and not is_made(Path("out"), second)
    assert {cell.run_id for cell in changed.cells}.isdisjoint(cell.run_id for cell in opened.cells)
    make_variant(changed, second, Path("out"), "cpu", keep=False)
    assert is_made(Path("out"), second) and not is_made(Path("out"), first)


@pytest.mark.slow
def test_chains_of_another_setting_do_not_go_on_with_unfinished_traces(tmp_path, monkeypatch):
    """Found here: the journal was of weights and plan alone."""
    recipe = prunus.TraceRecipe(tasks=("tiny-train",), limit=2, chain_tokens=2)
    monkeypatch.setattr("prunus.evaluation.traces.filter_chains", lambda *_: [])
    with pytest.raises(PrunusError, match="none of 2 chains passes"):
        prunus.traces("tiny", tmp_path / "own.jsonl", recipe, device="cpu")
    with pytest.raises(PrunusError, match=r"unfinished work of another run \(serving none, here {'name': 'a'}\)"):
        prunus.traces("tiny", tmp_path / "own.jsonl", recipe, device="cpu", options=EngineOptions(serving="a"))
