"""Models that another program runs: any type, any quantisation, or only a tokenizer and a server."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from babbling import babble
from completions_server import Server, serving
from safetensors.torch import save_file
from scripted_backend import ScriptedBackend
from tiny_chains import TOKENIZER

import prunus
from prunus.checkpoint.model_folder import EngineFolder
from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation.backends.vllm import dtype_for
from prunus.evaluation.provenance import open_for
from prunus.recipes import EvalPlan, TraceRecipe
from prunus.settings.engines import EngineOptions
from prunus.store.labels import label
from prunus.store.store import Store

PLAN = EvalPlan(tasks=("tiny",), limit=3, budgets=(0, 6), engine="openai", profile="tiny")
INT4 = {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}
FP8 = {"weights": {"num_bits": 8, "type": "float"}}
# Names of tables, and the quantization_config that files of these formats have.
QUANTISED: dict[str, Mapping[str, Any]] = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    "awq 4-bit": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "gptq 8-bit": {"quant_method": "gptq", "bits": 8, "group_size": 128, "desc_act": False, "sym": True},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "nvfp4": {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float"}}},
    },
    "int4": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": INT4}},
    "fp8 of compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {"group_0": FP8}},
    "nvfp4 of ModelOpt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "bitsandbytes 4-bit": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "exl3": {"quant_method": "exl3"},
}


def made(folder: Path, model_type: str = "qwen3_moe", **config: Any) -> Path:
    """A folder as an engine reads it: a configuration, the tiny reasoner's tokenizer, and tensors of any shape."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_folder() / name, folder / name)
    sizes = {"vocab_size": 368, "max_position_embeddings": 2048, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **sizes, **config}))
    weights = torch.full((4, 4), len(str(config)), dtype=torch.int32)
    save_file({"model.layers.0.experts.0.w.qweight": weights, "scale": torch.ones(4)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", QUANTISED)
def test_any_quantisation_is_opened_for_engines_and_tables_name_it(tmp_path, name):
    folder = made(tmp_path / "m", quantization_config=QUANTISED[name])
    for backend in ("vllm", "openai"):
        found = open_for(backend, folder)
        assert found.quantisation == name.partition(" of ")[0]
        assert (found.context, found.blocks) == (2048, 2) and len(found.checksum()) == 64
    assert dtype_for(folder, "cpu") == "auto"


def test_quantisation_that_is_not_in_its_usual_place(tmp_path):
    older = made(tmp_path / "older", compression_config={"format": "int-quantized", "config_groups": {"g": INT4}})
    assert EngineFolder(older).quantisation == "int4"
    beside = made(tmp_path / "beside")
    (beside / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    assert EngineFolder(beside).quantisation == "nvfp4" and EngineFolder(beside).quantised == "modelopt"


def test_models_that_transformers_does_not_know_and_files_without_an_index(tmp_path):
    """Their own code is not run, and their configuration may have the language model as a part."""
    inner = {"num_hidden_layers": 7, "max_position_embeddings": 99, "vocab_size": 400}
    folder = made(tmp_path / "m", "llama9", auto_map={"AutoConfig": "own.Config"}, text_config=inner)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    save_file({"more": torch.ones(3)}, folder / "model-2.safetensors")
    found = open_for("vllm", folder)
    assert (found.blocks, found.context, found.parameters) == (7, 99, 16 + 4 + 3)
    assert found.quantisation is None and not (tmp_path / "ran").exists()
    assert load_tokenizer(folder).encode("7*3=") == TOKENIZER.encode("7*3=")
    with pytest.raises(PrunusError, match="needs its own code, which prunus never runs"):
        open_for("hf", folder)


def evaluated(server: Server, store: Path, model: str | Path, plan: EvalPlan = PLAN, **engine: Any) -> str:
    with serving(server):
        return prunus.evaluate(model, plan, store, options=EngineOptions(url=server.url, **engine)).run_id


def babbling(**settings: Any) -> Server:
    return Server(ScriptedBackend(babble), TOKENIZER, **settings)


@pytest.mark.slow
def test_quantised_and_dense_runs_are_compared_on_one_server(tmp_path):
    store = tmp_path / "results.db"
    for name, config in (("bf16", {}), ("int8", {"quantization_config": QUANTISED["gptq 8-bit"]})):
        folder = made(tmp_path / name, "llama9", **config)
        evaluated(babbling(name=name), store, folder)
    compared = prunus.compare(store, "bf16").to_json()
    assert [other["model"] for other in compared["others"]] == ["int8"] and not compared["others"][0]["warnings"]
    with Store(store) as opened:
        assert label(opened.find_run("int8").model.manifest.history) == "gptq 8-bit"


@pytest.mark.slow
def test_a_study_of_dense_models_takes_any_model(tmp_path):
    folder = made(tmp_path / "m", "llama9", quantization_config=QUANTISED["awq 4-bit"])
    server = babbling(name="m")
    with serving(server):
        text = f'models = ["{folder}"]\n[eval]\ntasks = ["tiny"]\nlimit = 2\nbudgets = [0, 6]\nengine = "openai"\n'
        (tmp_path / "s.toml").write_text(text + f'profile = "tiny"\n[engine]\nurl = "{server.url}"\n')
        done = prunus.study(tmp_path / "s.toml", out=tmp_path / "out").to_json()
    assert done["cells"] == 1
    with Store(done["store"]) as opened:
        [run] = opened.runs()
        assert len(opened.samples(run.run_id)) == 4 and label(run.model.manifest.history) == "awq 4-bit"


@pytest.mark.slow
def test_a_server_and_a_tokenizer_are_enough(tmp_path):
    """The run's id follows from what the server tells of the model, not from its address, context or version."""
    store = tmp_path / "results.db"
    first = evaluated(babbling(name="org/big"), store, "org/big", tokenizer="tiny")
    assert evaluated(babbling(name="org/big", context=4096), store, "org/big", tokenizer="tiny") == first
    named = evaluated(babbling(name="other"), store, "org/big", tokenizer="tiny", served_model="other")
    with Store(store) as opened:
        runs = {run.run_id: run for run in opened.runs()}
        assert set(runs) == {first, named} and runs[first].model.name == "org/big"
        assert len(opened.samples(first)) == 6 and runs[first].model.parameters is None
    prunus.report(store, tmp_path / "report.html", base=first)
    assert "unknown parameters" in (tmp_path / "report.html").read_text()
    with pytest.raises(PrunusError, match="does not serve 'small' but org/big"):
        evaluated(babbling(name="org/big"), store, "small", tokenizer="tiny")


@pytest.mark.slow
def test_a_gguf_behind_llama_cpp_is_labelled_by_its_bits(tmp_path):
    meta = {"n_params": 8_000_000, "size": 4_800_000, "n_vocab": 368}
    server = babbling(owner="llamacpp", name="Q4_K_M", meta=meta, ends=frozenset(TOKENIZER.all_special_ids))
    run_id = evaluated(server, tmp_path / "results.db", "Q4_K_M", tokenizer="tiny")
    with Store(tmp_path / "results.db") as opened:
        run = opened.run(run_id)
    assert label(run.model.manifest.history) == "4.8 bits per weight" and run.model.parameters == 8_000_000
    assert run.nbytes == 4_800_000
    banned = {int(token) for body in server.seen for token in body.get("logit_bias", {})}
    assert 367 in banned, "ids that only the model has"


@pytest.mark.slow
def test_traces_need_only_a_tokenizer_too(tmp_path):
    server = babbling(name="org/big")
    recipe = TraceRecipe(tasks=("tiny-train",), limit=2, chain_tokens=6, engine="openai", profile="tiny")
    with serving(server):
        made = prunus.traces(
            "org/big", tmp_path / "t.jsonl", recipe, options=EngineOptions(url=server.url, tokenizer="tiny")
        )
    assert made.chains == 2


class Shifted:
    """The tokenizer of another model: every id has the text of the next one."""

    def __init__(self) -> None:
        self.all_special_ids = TOKENIZER.all_special_ids

    def __len__(self) -> int:
        return len(TOKENIZER)

    def decode(self, ids: list[int], **how: Any) -> str:
        return str(TOKENIZER.decode([(token + 1) % len(TOKENIZER) for token in ids], **how))


@pytest.mark.parametrize("form", ["token_ids", "text"])
def test_a_server_with_another_tokenizer_is_refused(tmp_path, form):
    server = Server(ScriptedBackend(babble), Shifted(), form=form)
    with pytest.raises(PrunusError, match=r"the tokenizer of .* is not that of http://127.0.0.1") as error:
        evaluated(server, tmp_path / "results.db", "tiny")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_stops_of_a_profile_file_are_probed(tmp_path):
    """A stop that no built-in profile has."""
    [word] = TOKENIZER.encode("</think>", add_special_tokens=False)
    text = 'format = 1\nname = "own"\nextends = "tiny"\n[think]\nstops = ["</think>", "="]\nmatch = "token"\n'
    (tmp_path / "own.toml").write_text(text)
    server = babbling()
    evaluated(
        server, tmp_path / "results.db", "tiny", EvalPlan(**{**vars(PLAN), "profile": str(tmp_path / "own.toml")})
    )
    [sign] = TOKENIZER.encode("=", add_special_tokens=False)
    forced = {int(token) for body in server.seen for token, value in body.get("logit_bias", {}).items() if value > 0}
    assert {word, sign} <= forced


def test_a_tokenizer_that_transformers_loads_otherwise_is_read_from_its_file(tmp_path, capsys):
    shutil.copytree(tiny_folder(), tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.json"
    data = json.loads(path.read_text())
    data["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    path.write_text(json.dumps(data))
    config = tmp_path / "m" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    found: Any = load_tokenizer(tmp_path / "m")
    assert "does not load the tokenizer" in capsys.readouterr().err
    assert json.loads(found.backend_tokenizer.to_str())["pre_tokenizer"] == data["pre_tokenizer"]
    assert found.chat_template == TOKENIZER.chat_template
