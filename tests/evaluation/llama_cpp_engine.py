"""llama.cpp itself, on a CPU: it loads what `prunus gguf` writes, computes what transformers does, and is evaluated.

Run by `make test-llama-cpp` in an environment of its own (not collected elsewhere).
"""

import http.client
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forced_and_native import check_pairs, native_rows
from gguf_models import QWEN2, SPLITS, make_gguf_model, texts, write_mamba_gguf, write_mla_gguf
from k_quants import dequantised
from real_llm import ROOT, smollm2
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3Config, MambaConfig

import prunus
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import tiny_folder
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.recipes import DropRecipe, ExpertsRecipe, GgufRecipe, QuantizeRecipe, WidthRecipe
from prunus.recipes.gguf import MIXTURES
from prunus.results.budget_map import budget_map, thinking_of
from prunus.settings.cache_size import CacheSize, cache_size
from prunus.settings.engines import EngineOptions
from prunus.settings.engines.llama_cpp import LLAMA_CPP
from prunus.settings.serving import Serving
from prunus.store.labels import label_of
from prunus.store.store import Store
from prunus.studies.verify import verify

xllamacpp = pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models
SERVE = f"{sys.executable} {ROOT}/scripts/llama_cpp_server.py {{gguf}} --port {{port}} --name {{name}}"
SERVE += " -c 1024 -np 1 -t 1"
TOKENS = 20
NEARLY_TIED = 0.02  # nats: which of two such tokens float16 prefers depends on the CPU


class Client:
    """The server's own endpoints."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)

    def post(self, path: str, **content: Any) -> Any:
        self.connection.request("POST", path, json.dumps(content), {"Content-Type": "application/json"})
        return json.loads(self.connection.getresponse().read())

    def ids(self, text: str) -> list[int]:
        return self.post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]


@contextmanager
def llama_cpp(path: Path, **settings: Any) -> Iterator[Client]:
    """llama.cpp's server with a file, in this process, with one thread. settings: other parameters of it."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(path), 512, 1, False
    for name, value in settings.items():
        setattr(params, name, value)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    yield Client(server.listening_address)
    del server


def differences(folder: Path, path: Path, prompt: list[int]) -> tuple[int, float]:
    """(greedy tokens that transformers in float32 finds worse than another, mean difference of log-probabilities)."""
    theirs, steps = list[int](), dict[int, Any]()
    with llama_cpp(path) as client:
        for n in range(TOKENS):
            asked = {"n_predict": 1, "temperature": 0, "n_probs": 5, "return_tokens": True}
            found = client.post("/completion", prompt=prompt + theirs, **asked)
            theirs += found["tokens"]
            if "completion_probabilities" in found:  # not for a token with a part of a character
                (steps[n],) = found["completion_probabilities"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():  # of llama.cpp's own tokens, so that every position can be compared
        logits = model(torch.tensor([prompt + theirs])).logits[0, len(prompt) - 1 : -1]
    ours = logits.log_softmax(-1)
    off = [abs(top["logprob"] - float(ours[n, top["id"]])) for n, step in steps.items() for top in step["top_logprobs"]]
    behind = ours.max(-1).values - ours[range(TOKENS), theirs]
    assert len(theirs) == TOKENS and len(steps) > TOKENS // 4
    return int((behind > NEARLY_TIED).sum()), sum(off) / len(off)


CASES = {
    "llama": ("llama", "llama-bpe"),
    "mistral": ("mistral", "llama"),
    "qwen2": ("qwen2", "qwen2"),
    "qwen3": ("qwen3", "qwen2"),
    "gemma3": ("gemma3_text", "gemma"),
    "narrowed": ("qwen3", "qwen2"),
    "dropped": ("llama", "smollm"),
    "experts": ("qwen3_moe", "qwen2"),
    "experts cut": ("qwen3_moe", "qwen2"),
}


@pytest.mark.parametrize("way", ["alone", "like"])
@pytest.mark.parametrize("case", CASES)
def test_f16_computes_what_transformers_computes(case, way, tmp_path):
    kind, split = CASES[case]
    make_gguf_model(kind, tmp_path / "dense", split, initializer_range=0.1)
    made = tmp_path / "made"
    match case:
        case "narrowed":
            prunus.width(tmp_path / "dense", made, WidthRecipe(method="random", fit=False, keep=0.5))
        case "dropped":
            prunus.drop(tmp_path / "dense", made, DropRecipe(blocks="1,"))
        case "experts cut":
            prunus.experts(tmp_path / "dense", made, ExpertsRecipe(method="random", keep=0.5))
        case _:
            made = tmp_path / "dense"
    recipe = GgufRecipe()
    if way == "like":
        prunus.gguf(tmp_path / "dense", tmp_path / "dense.gguf", GgufRecipe(type="q8_0"))
        recipe = GgufRecipe(like=str(tmp_path / "dense.gguf"))
    prunus.gguf(made, tmp_path / "made.gguf", recipe)
    wrong, mean = differences(made, tmp_path / "made.gguf", list(range(20, 60)))
    print(case, way, wrong, mean)
    assert wrong == 0 and mean <= 0.005


def test_q4_0_of_codes_is_close_to_the_plain_folder(tmp_path):
    make_gguf_model("llama", tmp_path / "dense", "llama-bpe", initializer_range=0.1)
    prunus.quantize(tmp_path / "dense", tmp_path / "w4", QuantizeRecipe(bits=4, group="32", method="rtn"))
    prunus.gguf(tmp_path / "w4", tmp_path / "w4.gguf", GgufRecipe(type="q4_0"))
    prunus.dequantize(tmp_path / "w4", tmp_path / "plain")
    prompt = list(range(20, 60))
    _, same = differences(tmp_path / "plain", tmp_path / "w4.gguf", prompt)
    _, other = differences(tmp_path / "dense", tmp_path / "w4.gguf", prompt)
    print(same, other)
    assert same < 0.5 * other  # the engine rounds activations to 8 bits


@pytest.mark.parametrize("type", MIXTURES)
@pytest.mark.parametrize(("kind", "width"), [("llama", 256), ("qwen2", 128), ("qwen3_moe", 256)])
def test_mixtures_compute_what_their_tensors_say(kind, width, type, tmp_path):
    """With rows of 256, and with forms that take their place; those of experts lie in one tensor."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "moe_intermediate_size": width}
    if kind != "qwen3_moe":
        del sizes["moe_intermediate_size"]
    make_gguf_model(
        kind, tmp_path / "dense", "llama-bpe" if kind == "llama" else "qwen2", initializer_range=0.1, **sizes
    )
    (tmp_path / "text.txt").write_text("Some words, and 1 + 1. " * 200)
    given: dict[str, Any] = {"calibration": str(tmp_path / "text.txt"), "sequences": 4, "seqlen": 32}
    prunus.gguf(tmp_path / "dense", tmp_path / "made.gguf", GgufRecipe(type=type, **given))
    prompt = list(range(20, 60))
    _, same = differences(
        dequantised(tmp_path / "dense", tmp_path / "made.gguf", tmp_path / "plain"), tmp_path / "made.gguf", prompt
    )
    _, other = differences(tmp_path / "dense", tmp_path / "made.gguf", prompt)
    print(kind, type, same, other)
    # The engine rounds activations to 8 bits: as costly as weights of 6 bits, and tokens may go to other experts.
    assert same < (0.5 if kind == "qwen3_moe" else 0.15)
    assert type == "q6_k" or same < 0.5 * other


@pytest.mark.parametrize("split", [*SPLITS, "llama", "gemma"])
def test_token_ids_are_the_tokenizers(split, tmp_path):
    make_gguf_model("llama", tmp_path / "m", split, num_hidden_layers=1)
    prunus.gguf(tmp_path / "m", tmp_path / "m.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    specials = [token.content for token in tokenizer.added_tokens_decoder.values()]
    with llama_cpp(tmp_path / "m.gguf") as client:
        for number, text in enumerate(texts(2000)):
            if number % 10 == 0:
                text = f"{specials[number // 10 % len(specials)]}{text}"
            assert client.ids(text) == tokenizer(text)["input_ids"], repr(text)
        messages = [{"role": "user", "content": "What is 1 + 1?"}]
        said = client.post("/apply-template", messages=messages)["prompt"]
    assert said == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_smollm2(tmp_path):
    folder = smollm2()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prunus.gguf(folder, tmp_path / "m.gguf")
    prompt = tokenizer("Gravity is the force that pulls objects toward each other. The first person who")["input_ids"]
    wrong, mean = differences(folder, tmp_path / "m.gguf", prompt)
    print(wrong, mean)
    assert wrong == 0 and mean <= 0.005
    with llama_cpp(tmp_path / "m.gguf") as client:
        for text in texts(10_000, seed=2):
            assert client.ids(text) == tokenizer(text)["input_ids"], repr(text)


def make_without_ties(folder: Path) -> None:
    """Write a model whose head's row for a token is the embedding of the token before it."""
    make_gguf_model("qwen3", folder, initializer_range=0.05, tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    embeddings = weights["model.embed_tokens.weight"]
    embeddings.normal_(generator=torch.Generator().manual_seed(0))
    following = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(1))
    weights["lm_head.weight"] = 0.06 * embeddings[following]  # a margin of 5, and other tokens when it samples
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("tied", "equal"), [(False, 12), (True, 6)])
def test_an_evaluation_behind_its_server(tied, equal, tmp_path):
    """Budgets, stops and grades are those of any engine: at least `equal` of 12 greedy rows equal those of hf.

    A random model's chains depend on the prompt, but have near ties, which float16 breaks otherwise on another CPU. The
    other model has none: the next token's row of the head is the embedding of the token before it.
    """
    if tied:
        make_gguf_model("qwen3", tmp_path / "dense", initializer_range=0.1, tie_word_embeddings=True)
    else:
        make_without_ties(tmp_path / "dense")
    prunus.gguf(tmp_path / "dense", tmp_path / "made")
    plan: dict[str, Any] = {"tasks": ("tiny",), "limit": 4, "budgets": (0, 8, 24), "temperature": 0.0, "profile": "s1"}
    rows = {}
    for backend, folder in (("hf", "dense"), ("openai", "made")):
        engine = EngineOptions(serve=SERVE, timeout=120) if backend == "openai" else EngineOptions()
        asked = prunus.EvalPlan(**plan, answer_tokens=8, engine=backend)
        run = prunus.evaluate(tmp_path / folder, asked, tmp_path / "results.db", options=engine, device="cpu").run_id
        with Store(tmp_path / "results.db") as store:
            rows[backend] = [
                (row.problem_id, row.budget, row.ended, row.thinking, row.text, row.correct)
                for row in store.samples(run, texts=True)
            ]
            (found,) = [one for one in store.runs() if one.run_id == run]
    assert len(rows["hf"]) == 12 and sum(a == b for a, b in zip(rows["hf"], rows["openai"], strict=True)) >= equal
    assert len({thinking for *_, thinking, _, _ in rows["hf"]}) >= (8 if tied else len(plan["budgets"]))
    (step,) = found.model.manifest.data["history"]
    assert step["action"] == "gguf" and found.environment.data["server"].startswith("llamacpp")


def test_eval_starts_the_server_of_a_file_or_of_a_folder_with_one(tmp_path, monkeypatch, capsys):
    """Rows of a folder, of its file and of a file elsewhere, of which only the tokenizer is known, are the same."""
    make_without_ties(tmp_path / "dense")
    prunus.gguf(tmp_path / "dense", tmp_path / "made")
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} {ROOT}/scripts/llama_cpp_server.py"
        ' "$2" --name "$4" --port "$6" -c 1024 -np 1 -t 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    (tmp_path / "alone.gguf").write_bytes((tmp_path / "made" / "model.gguf").read_bytes())
    words = ["--task", "tiny", "--limit", "2", "--budgets", "0,8", "--answer-tokens", "8", "--temperature", "0"]
    words += ["--profile", "s1", "--engine", "llama.cpp", "--json"]
    runs, models = [], (["made"], ["made/model.gguf"], ["alone.gguf", "--tokenizer", str(tmp_path / "dense")])
    for number, model in enumerate(models):
        main(["eval", str(tmp_path / model[0]), *model[1:], *words, "--store", str(tmp_path / f"{number}.db")])
        runs.append(json.loads(capsys.readouterr().out)["run"])
    rows = []
    for number, run in enumerate(runs):
        with Store(tmp_path / f"{number}.db") as store:
            rows.append(
                [(row.problem_id, row.budget, row.thinking, row.text) for row in store.samples(run, texts=True)]
            )
            assert store.run(run).plan.data["backend"] == "openai"
    assert runs[0] == runs[1] != runs[2] and len(rows[0]) == 4 and rows[0] == rows[1] == rows[2]
    words = ["--task", "tiny-train", "--limit", "2", "--chain-tokens", "8", *words[6:-1]]
    chains = []
    for number, model in enumerate(models):
        main(["traces", str(tmp_path / model[0]), str(out := tmp_path / f"{number}.jsonl"), *model[1:], *words])
        chains.append([json.loads(line)["token_ids"] for line in out.read_text().splitlines()])
    assert len(chains[0]) == 2 and chains[0] == chains[1] == chains[2]
    with pytest.raises(PrunusError, match=r"--engine llama\.cpp --tokenizer HUB-ID"):
        prunus.evaluate(tmp_path / "alone.gguf", prunus.EvalPlan(("tiny",), engine="llama.cpp"), tmp_path / "r.db")


def test_a_study_of_gguf_files(tmp_path):
    """The dense model is served in float16; a step, and a chain whose Q4_0 are the integers of quantize."""
    make_gguf_model("qwen3", tmp_path / "model", initializer_range=0.1)
    (tmp_path / "study.toml").write_text(f"""
models = ["model"]
[eval]
tasks = ["tiny"]
limit = 3
budgets = [0, 8]
answer_tokens = 8
temperature = 0
profile = "s1"
engine = "openai"
[engine]
serve = "{SERVE}"
[[gguf]]
type = "q8_0"
[[chain]]
steps = [{{ quantize = {{ bits = 4, group = "32", method = "rtn" }} }}, {{ gguf = {{ type = "q4_0" }} }}]
""")
    prunus.study(tmp_path / "study.toml", out=tmp_path / "out", device="cpu")
    with Store(tmp_path / "out" / "results.db") as store:
        runs = {run.model.name: run for run in store.runs()}
        assert all(len(store.samples(run.run_id)) == 6 for run in runs.values())
    assert [*runs] == ["model", "model/gguf-q8_0", "model/w4-g32-rtn-gguf-q4_0"]
    assert len({run.model.checksum for run in runs.values()}) == 3
    assert not list((tmp_path / "out").rglob("served/*"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "GGUF Q8_0" in page and "W4 g32 RTN + GGUF Q4_0" in page
    plan = prunus.EvalPlan(
        tasks=("tiny",), limit=20, budgets=(8,), answer_tokens=8, temperature=0.0, profile="s1", engine="llama.cpp"
    )
    rungs = [GgufRecipe(type="q8_0"), (QuantizeRecipe(bits=4, group="32", method="rtn"), GgufRecipe(type="q4_0"))]
    asked: dict[str, Any] = {"margin": 0.5, "stop_margin": 0.5, "options": EngineOptions(serve=SERVE, timeout=120)}
    store = tmp_path / "found.db"
    found = prunus.find(tmp_path / "model", tmp_path / "small", plan, rungs, store=store, **asked)
    (rung,) = found.to_json()["ladders"]["recipes"]
    assert rung["why"] == "losing all that the original has would be within the margin", "it solves nothing"
    with Store(store) as opened:
        (declared,) = (one.declared for one in opened.searches())
        whole, large = opened.runs()
    prunus.gguf(tmp_path / "model", tmp_path / "f16")
    served = sum(tensor.nbytes for tensor in ModelFolder(tmp_path / "f16").stored.values())
    assert declared["model"]["bytes"] == served == whole.nbytes and declared["model"]["engine"] == "llama.cpp"
    assert declared["ladders"][0]["rungs"][0]["bytes"] == large.nbytes and (large.nbytes or 0) < served
    broken = (tmp_path / "study.toml").read_text().replace('"openai"', '"hf"').partition("[engine]")
    (tmp_path / "hf.toml").write_text(f"{broken[0]}[[gguf]]\ntype = 'f16'\n")
    with pytest.raises(PrunusError, match=r"only llama\.cpp reads GGUF files: take the engine llama.cpp"):
        prunus.study(tmp_path / "hf.toml", out=tmp_path / "no", device="cpu")


def test_servings_of_a_study_never_share_a_row(tmp_path):
    """Types of the cache and a penalty; the bytes of the cache are those of the types."""
    (tmp_path / "study.toml").write_text(f"""
models = ["{smollm2()}"]
[eval]
tasks = ["tiny"]
limit = 2
budgets = [24]
answer_tokens = 8
temperature = 0
profile = "plain"
engine = "openai"
[engine]
serve = "{SERVE}"
timeout = 120
[[serving]]
name = "KV f16"
[[serving]]
name = "KV q4_0"
serve = "{SERVE} -ctk q4_0 -ctv q4_0"
[[serving]]
name = "repeat 2"
request = {{ repeat_penalty = 2 }}
""")
    done = prunus.study(tmp_path / "study.toml", out=tmp_path / "out", device="cpu")
    with Store(done.store) as store:
        runs = {label_of(run): run for run in store.runs()}
        rows = {name: [row.thinking for row in store.samples(run.run_id, texts=True)] for name, run in runs.items()}
    assert [*rows] == ["dense · KV f16", "dense · KV q4_0", "dense · repeat 2"]
    assert all(len(of) == 2 for of in rows.values()) and len({tuple(of) for of in rows.values()}) == 3
    sizes = [run.model.cache.per_token for run in runs.values() if run.model.cache]
    print(rows, sizes)
    assert sizes[1] == sizes[0] * 18 / 64 and sizes[2] == sizes[0], "18 bytes of 32 numbers, and 64"


def test_a_choice_among_its_forms_is_made_and_verified(tmp_path):
    make_without_ties(tmp_path / "dense")
    (tmp_path / "forms.toml").write_text('[[gguf]]\ntype = "q8_0"\n')
    plan = prunus.EvalPlan(
        tasks=("tiny",), limit=40, budgets=(8, 24), answer_tokens=8, profile="s1", engine="openai"
    )  # fmt: skip
    engine = EngineOptions(serve=SERVE.replace("-c 1024 -np 1", "-c {context} -np {slots}"), timeout=120)
    ways = {"engine": "llama.cpp", "options": engine, "forms": tmp_path / "forms.toml", "store": tmp_path / "r.db"}
    choice = prunus.choose(
        tmp_path / "dense", tmp_path / "out", plan, limits=prunus.Limits(memory="2GB", seconds=60.0), **ways
    )
    print(choice, *choice.claims, sep="\n")
    assert choice.chosen is not None and {row.form for row in choice.choices} == {"dense", "gguf-q8_0"}
    data = json.loads((tmp_path / "out" / "choice.json").read_text())
    for cost in data["costs"]["forms"].values():
        assert cost["peak"] > cost["weights"] > 0 and all(one["first"] > 0 < one["last"] for one in cost["times"])
    assert (tmp_path / "out" / "model.gguf").exists()
    assert "{" not in (tmp_path / "out" / "serve.sh").read_text().replace("${PORT", "")
    assert verify(tmp_path / "out" / "choice.json", tmp_path / "r.db").differences == []


# Opens the thinking, and says by what it is ended.
THINKS = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}{%- if m.reasoning_content %}"
    "{{- '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{%- endif %}"
    "{{- m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)


def test_the_native_budget_of_a_server(tmp_path):
    """llama.cpp ends the thinking at every budget but 0, which it takes for none."""
    make_gguf_model("qwen3", tmp_path / "dense", "qwen2", initializer_range=0.1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dense")
    tokenizer.chat_template = THINKS
    tokenizer.save_pretrained(tmp_path / "dense")
    prunus.gguf(tmp_path / "dense", tmp_path / "made", GgufRecipe())
    plan = prunus.EvalPlan(
        ("tiny",), (4, 16), limit=4, engine="openai", control="native", profile="think-tags", answer_tokens=4
    )
    engine = EngineOptions(serve=SERVE, timeout=120)
    run = prunus.evaluate(tmp_path / "made", plan, tmp_path / "rows.db", options=engine, device="cpu").run_id
    with Store(tmp_path / "rows.db") as store:
        rows = store.samples(run, texts=True)
    used = [(row.budget, row.thinking_tokens) for row in rows]  # texts are encoded anew, also bytes without a character
    assert len(rows) == 8 and all(budget / 2 < tokens <= 1.5 * budget + 2 for budget, tokens in used), used
    with pytest.raises(PrunusError, match=r"ignores the request field 'thinking_budget_tokens' \(0\)"):
        prunus.evaluate(tmp_path / "made", replace(plan, budgets=(0, 4)), tmp_path / "no.db", options=engine)


def thinking_tiny(folder: Path) -> None:
    """The built-in reasoner for llama.cpp: a template that opens the thinking, and words split as Qwen2 does.

    GGUF has no name for its own way, which gives the same ids for its problems and chains.
    """
    shutil.copytree(tiny_folder(), folder)
    (folder / "chat_template.jinja").write_text(THINKS)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_map_of_budgets_is_loaded_and_keeps_what_was_measured(tmp_path):
    """In pairs: the chains are those that were measured, to the last token; the answers but behind line breaks.

    There the measured text is without one that llama.cpp writes. Requests come one after the other, since what a slot
    keeps of the one before moves the rounding of the next.
    """
    thinking_tiny(tmp_path / "model")
    prunus.gguf(tmp_path / "model", tmp_path / "made", GgufRecipe())
    plan = prunus.EvalPlan(("tiny",), (8, 40, 128, 512), limit=24, engine="openai")
    serve = SERVE.replace("1024", "2048")
    bare = EngineOptions(serve=serve, timeout=120, concurrency=1)  # ends thinking by another text
    measured = prunus.evaluate(tmp_path / "made", plan, tmp_path / "rows.db", options=bare, device="cpu").run_id
    with Store(tmp_path / "rows.db") as store:
        run, rows = store.run(measured), store.samples(measured, texts=True)
    levels = {f"of_{budget}": budget for budget in plan.budgets}
    made = budget_map("llama.cpp", measured, "tiny", levels, thinking_of(run))
    assert made.options == ("--reasoning-budget-message", "\n")
    assert made.requests == {name: {"thinking_budget_tokens": budget + 1} for name, budget in levels.items()}
    native = replace(plan, control="native", budgets=tuple(made.budgets.values()))
    engine = replace(bare, serve=f"{serve} {shlex.join(made.options or ())}")
    served = prunus.evaluate(tmp_path / "made", native, tmp_path / "native.db", options=engine, device="cpu").run_id
    cut = check_pairs(rows, native_rows(tmp_path / "native.db", served))
    served = prunus.evaluate(tmp_path / "made", native, tmp_path / "bare.db", options=bare, device="cpu").run_id
    bare_rows = native_rows(tmp_path / "bare.db", served)
    pairs = [(row, bare_rows[row.problem_id, row.budget]) for row in cut]
    otherwise = [a.text != b.text for a, b in pairs], [a.correct != b.correct for a, b in pairs]
    print(*map(sum, otherwise))
    assert sum(otherwise[0]) > len(cut) / 2


def test_settings_that_only_cost_speed_leave_rows_and_ids_as_they_are(tmp_path):
    make_without_ties(tmp_path / "dense")
    prunus.gguf(tmp_path / "dense", tmp_path / "made")
    plan = prunus.EvalPlan(
        tasks=("tiny",), limit=6, budgets=(0, 24), answer_tokens=8, temperature=0.0, profile="s1", engine="openai"
    )
    found = list[tuple[str, Any]]()
    for slots in (1, 3):
        engine = EngineOptions(serve=SERVE.replace("-np 1", f"-np {slots}"), timeout=120)
        at = tmp_path / f"{slots}.db"
        run = prunus.evaluate(tmp_path / "made", plan, at, options=engine, device="cpu").run_id
        with Store(at) as store:
            rows = [(row.problem_id, row.budget, row.thinking, row.text) for row in store.samples(run, texts=True)]
        found.append((run, rows))
    assert found[0] == found[1] and len(found[0][1]) == 12
    assert len({Serving.of("openai", EngineOptions(serve=f"{SERVE}{more}")).digest for more in ("", " --new 1")}) == 2


def test_an_engine_that_refuses_the_file_says_why_in_a_line(tmp_path):
    make_gguf_model("qwen3", tmp_path / "dense")
    prunus.gguf(tmp_path / "dense", tmp_path / "made", GgufRecipe(type="q8_0"))
    data = (tmp_path / "made" / "model.gguf").read_bytes()
    (tmp_path / "made" / "model.gguf").write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"))
    plan = prunus.EvalPlan(
        tasks=("tiny",), limit=1, budgets=(8,), answer_tokens=8, engine="openai", profile="s1"
    )  # fmt: skip
    with pytest.raises(PrunusError, match=r"the server ended .*") as error:
        prunus.evaluate(tmp_path / "made", plan, tmp_path / "no.db", options=EngineOptions(serve=SERVE, timeout=120))
    print(error.value)
    assert "attn_q.weight" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 800


MADE_ROOM = re.compile(
    r"llama_kv_cache: size = .*?\( *(\d+) cells, +(\d+) layers.*?K \((\w+)\): +([\d.]+) MiB, V \((\w+)\): +([\d.]+) MiB"
)
STATES = re.compile(
    r"llama_memory_recurrent: size = .*?\( *(\d+) cells.*?R \(f32\): +([\d.]+) MiB, S \(f32\): +([\d.]+)"
)
CELLS, SEQUENCES, MIB = 32768, 64, 1 << 20
LONG: dict[str, Any] = {"n_ctx": CELLS, "verbosity": 10}


def log_of(path: Path, capfd: pytest.CaptureFixture[str], **settings: Any) -> str:
    """What llama.cpp says while it loads a file."""
    capfd.readouterr()
    with llama_cpp(path, **LONG | settings):
        time.sleep(0.5)  # its log has a thread of its own
    return "".join(capfd.readouterr())


def made_room(log: str) -> list[tuple[int, int, float]]:
    """(cells, layers, bytes of a cell in all of them) of each cache that llama.cpp has made last, by its log."""
    found = [(int(m[1]), int(m[2]), (float(m[4]) + float(m[6])) * MIB / int(m[1])) for m in MADE_ROOM.finditer(log)]
    last = max(1, log.count("creating     SWA KV cache") and 2)
    return found[-last:]


def llama_cpp_size(folder: Path, **types: str) -> CacheSize:
    """Ours, of a folder that llama.cpp has in GGUF."""
    words = tuple(f"--cache-type-{part} {kind}" for part, kind in types.items())
    found = ModelFolder(folder).cache_size(Serving(words=words), engine=LLAMA_CPP)
    assert found is not None
    return found


CACHES = [("qwen3", *kinds) for kinds in (("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "f16"), ("q4_0", "q4_0"))]
CACHES += [(case, "q5_1", "q4_0") for case in ("llama", "mistral", "qwen2", "narrowed", "dropped", "experts")]


@pytest.mark.parametrize(("case", "k", "v"), CACHES)
def test_bytes_of_a_cache_are_those_of_its_log(case, k, v, tmp_path, capfd):
    """Of all types of numbers, and of models with fewer heads and blocks."""
    kind, split = CASES[case]
    make_gguf_model(kind, tmp_path / "dense", split)
    made = tmp_path / ("made" if case in ("narrowed", "dropped") else "dense")
    if case == "narrowed":
        prunus.width(tmp_path / "dense", made, WidthRecipe(method="random", fit=False, keep=0.5))
    elif case == "dropped":
        prunus.drop(tmp_path / "dense", made, DropRecipe(blocks="1,"))
    prunus.gguf(made, tmp_path / "made.gguf")
    types = {
        f"cache_type_{part}": xllamacpp.ggml_type[f"GGML_TYPE_{one.upper()}"] for part, one in (("k", k), ("v", v))
    }
    ((cells, _, theirs),) = made_room(log_of(tmp_path / "made.gguf", capfd, **types))
    ours = llama_cpp_size(made, k=k, v=v)
    print(case, k, v, theirs, ours.per_token)
    assert cells == CELLS and round(theirs) == ours.nbytes(100) / 100, "without a window"


def test_windows_take_the_cells_of_their_log(tmp_path, capfd):
    """A window has cells for its tokens and those of a batch of 512."""
    sizes: dict[str, Any] = {"sliding_window": CELLS // 2, "max_position_embeddings": CELLS, "layer_types": None}
    make_gguf_model("gemma3_text", tmp_path / "m", "gemma", num_hidden_layers=6, **sizes)
    prunus.gguf(tmp_path / "m", tmp_path / "m.gguf")
    whole, window = made_room(log_of(tmp_path / "m.gguf", capfd))
    ours = llama_cpp_size(tmp_path / "m")
    print(whole, window, ours)
    assert (whole[0], round(whole[2])) == (CELLS, ours.per_token)
    assert window[0] == CELLS // 2 + 512 and ours.windows == {str(CELLS // 2): pytest.approx(window[2], abs=1)}


def test_latents_and_states_take_the_bytes_of_their_log(tmp_path, capfd):
    make_gguf_model("llama", tmp_path / "m", "llama-bpe")
    prunus.gguf(tmp_path / "m", tmp_path / "m.gguf")
    write_mla_gguf(tmp_path / "mla.gguf", tmp_path / "m.gguf", layers=3, latent=48, rotated=16)
    ((_, _, theirs),) = made_room(log_of(tmp_path / "mla.gguf", capfd))
    config = DeepseekV3Config(num_hidden_layers=3, kv_lora_rank=48, qk_rope_head_dim=16)
    ours = cache_size(config, "f16")
    print(theirs, ours)
    assert ours is not None and round(theirs) == ours.per_token
    write_mamba_gguf(tmp_path / "mamba.gguf", tmp_path / "m.gguf", layers=3, width=64, state=12, kernel=3)
    found = STATES.findall(log_of(tmp_path / "mamba.gguf", capfd, n_parallel=SEQUENCES))[-1]
    config = MambaConfig(num_hidden_layers=3, hidden_size=64, state_size=12, conv_kernel=3)
    ours = cache_size(config, "f16", convolution="f32", recurrent="f32")
    print(found, ours)
    assert ours is not None and int(found[0]) == SEQUENCES
    assert (float(found[1]) + float(found[2])) * MIB == pytest.approx(ours.nbytes(1000, SEQUENCES), abs=0.01 * MIB)
