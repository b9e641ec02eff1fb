"""prunus gguf: the file against the library `gguf` and the model's own tensors, with and without --like."""

import json
import shutil
import sys
from typing import Any, cast

import gguf
import numpy as np
import pytest
import torch
from gguf_models import (
    SPECIAL,
    TEMPLATE,
    VOCABULARY,
    halves_to_pairs,
    make_gguf_model,
    metadata_in,
    tensors_in,
)
from safetensors.torch import load_file, save_file

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import EngineFolder
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.backends.hf import load_model
from prunus.recipes import DropRecipe, EvalPlan, ExpertsRecipe, GgufRecipe, PruneRecipe, QuantizeRecipe, WidthRecipe
from prunus.step import step_kind
from prunus.store.labels import step_label
from prunus.studies.file import read_entries

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models
HEADS, KV_HEADS = 4, 2
# llama.cpp's names of the Linears of a block.
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def plain(folder):
    """The float32 values of a folder's tensors, by name."""
    return {name: stored.read().float().numpy() for name, stored in Checkpoint(folder).tensors.items()}


def in_llama_cpp(folder):
    """What a GGUF of a Llama must hold: by llama.cpp's names, in its order of rows."""
    found = {}
    for name, values in plain(folder).items():
        stem, _, kind = name.rpartition(".")
        if stem in OUTER:
            found[f"{OUTER[stem]}.{kind}"] = values
            continue
        _, _, block, local = stem.split(".", 3)
        if local in ("self_attn.q_proj", "self_attn.k_proj"):
            values = halves_to_pairs(values, HEADS if local == "self_attn.q_proj" else KV_HEADS)
        found[f"blk.{block}.{(NAMES | NORMS)[local]}.{kind}"] = values
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a random Llama, and its GGUF file in 8 bits, as another program would have made it."""
    folder = tmp_path_factory.mktemp("gguf")
    make_gguf_model("llama", folder / "dense", "llama-bpe")
    (folder / "text.txt").write_text("Some words. " * 200)
    write_foreign(folder / "dense", folder / "like.gguf")
    return folder


def write_foreign(folder, path, wrong=None, arch="llama", **metadata):
    """A GGUF of a Llama in Q8_0 by the library alone. wrong: changes its tensors."""
    tensors = in_llama_cpp(folder)
    if wrong is not None:
        wrong(tensors)
    writer = gguf.GGUFWriter(path, arch)
    sizes = {"block_count": 3, "feed_forward_length": 192, "embedding_length": 128, "attention.head_count": HEADS}
    for key, value in {**sizes, "attention.head_count_kv": KV_HEADS, **metadata}.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_string("general.license", "of another program")
    writer.add_string("general.name", "Foreign")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_file_type(7)
    for name, values in tensors.items():
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            quantised = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_f16_holds_the_weights_in_llama_cpps_order(llama, tmp_path):
    told = prunus.gguf(llama / "dense", tmp_path / "out.gguf")
    found, expected = tensors_in(tmp_path / "out.gguf"), in_llama_cpp(llama / "dense")
    assert found.keys() == expected.keys() and told.tensors == len(found)
    for name, values in expected.items():
        exact = values if values.ndim == 1 else values.astype(np.float16).astype(np.float32)
        assert np.array_equal(found[name], exact), name
    said = metadata_in(tmp_path / "out.gguf")
    assert said["general.architecture"] == "llama" and said["general.file_type"] == 1
    assert (said["llama.block_count"], said["llama.feed_forward_length"]) == (3, 192)
    assert (said["llama.attention.head_count"], said["llama.attention.head_count_kv"]) == (HEADS, KV_HEADS)
    assert said["llama.rope.dimension_count"] == 32 and said["llama.context_length"] == 512
    assert json.loads(said["prunus.manifest"])["history"][-1]["recipe"] == GgufRecipe(type="f16").to_json()


@pytest.mark.slow
def test_q8_0_is_the_librarys(llama, tmp_path):
    told = prunus.gguf(llama / "dense", tmp_path / "out.gguf", GgufRecipe(type="q8_0"))
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    for one in reader.tensors:
        values = in_llama_cpp(llama / "dense")[one.name]
        kind = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
        assert one.tensor_type == kind and np.array_equal(one.data, gguf.quants.quantize(values, kind)), one.name
    (step,) = json.loads(metadata_in(tmp_path / "out.gguf")["prunus.manifest"])["history"]
    sizes, nbytes = step["bytes"], {one.name: int(one.n_bytes) for one in reader.tensors}
    assert (
        sizes["after"]
        == sum(nbytes.values())
        == step_kind("gguf").nbytes(GgufRecipe(type="q8_0"), Checkpoint(llama / "dense"))
    )
    assert (sizes["embeddings"], sizes["head"]) == (nbytes["token_embd.weight"], nbytes["output.weight"])
    assert sizes["quantised"] == 16 * sizes["scales"] and told.size == "569.3 kB"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_q4_0_takes_the_integers_of_quantize_exactly(kind, tmp_path):
    """What the file holds is integers times scales, bit for bit; nothing is rounded again."""
    make_gguf_model(kind, tmp_path / "dense", moe_intermediate_size=64) if kind != "llama" else make_gguf_model(
        kind, tmp_path / "dense"
    )
    prunus.quantize(tmp_path / "dense", tmp_path / "w4", QuantizeRecipe(bits=4, group="32", method="rtn"))
    told = prunus.gguf(tmp_path / "w4", tmp_path / "out.gguf", GgufRecipe(type="q4_0"))
    found, stored = tensors_in(tmp_path / "out.gguf"), load_file(tmp_path / "w4" / "model.safetensors")
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    exact = 0
    for name in stored:
        linear = name.removesuffix(".weight_packed")
        if linear == name:
            continue
        word, scale = stored[name].numpy().view(np.uint32), stored[f"{linear}.weight_scale"].float().numpy()
        code = ((word[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15).reshape(len(word), -1).astype(int) - 8
        values = (code * np.repeat(scale, 32, 1)).astype(np.float32)
        _, _, block, local = linear.split(".", 3)
        if "experts" in local:
            _, _, expert, matrix = local.split(".")
            theirs = f"blk.{block}.ffn_{matrix.removesuffix('_proj')}_exps.weight"
            ours = found[theirs][int(expert)]
        else:
            theirs = f"blk.{block}.{NAMES[local]}.weight"
            ours = found[theirs]
            if kind == "llama" and local in ("self_attn.q_proj", "self_attn.k_proj"):
                values = halves_to_pairs(values, HEADS if local == "self_attn.q_proj" else KV_HEADS)
        assert kinds[theirs] == "Q4_0" and np.array_equal(ours, values), name
        exact += 1
    assert exact >= 21 and told.exact == 21 and not told.warnings
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    if kind == "qwen3_moe":
        assert kinds["blk.0.ffn_gate_inp.weight"] == "F32"
        said = metadata_in(tmp_path / "out.gguf")
        assert (said["qwen3moe.expert_count"], said["qwen3moe.expert_used_count"]) == (8, 2)


@pytest.mark.slow
def test_q4_0_of_plain_weights_is_rounded_as_quantize_rounds(llama, tmp_path):
    told = prunus.gguf(llama / "dense", tmp_path / "plain.gguf", GgufRecipe(type="q4_0"))
    assert told.exact == 0 and "21 tensors are rounded to nearest" in told.warnings[-1]
    prunus.quantize(llama / "dense", tmp_path / "w4", QuantizeRecipe(bits=4, group="32", method="rtn"))
    prunus.gguf(tmp_path / "w4", tmp_path / "codes.gguf", GgufRecipe(type="q4_0"))
    ours, theirs = tensors_in(tmp_path / "plain.gguf"), tensors_in(tmp_path / "codes.gguf")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


CHANGES = {
    "dense": {},
    "narrowed": {"feed_forward_length": 96},
    "dropped": {"block_count": 2},
    "pruned": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_like_a_file_of_the_dense_model(change, llama, tmp_path):
    """The metadata is the file's but for counts; the weights are those of the model, as without it."""
    made = tmp_path / "made"
    match change:
        case "dense":
            made = llama / "dense"
        case "narrowed":
            prunus.width(llama / "dense", made, WidthRecipe(method="random", fit=False, keep=0.5))
        case "dropped":
            prunus.drop(llama / "dense", made, DropRecipe(blocks="1,"))
        case "pruned":
            prunus.prune(llama / "dense", made, PruneRecipe(method="magnitude", sparsity=0.5))
    prunus.gguf(made, tmp_path / "like.gguf", GgufRecipe(like=str(llama / "like.gguf")))
    prunus.gguf(made, tmp_path / "alone.gguf")
    ours, theirs = tensors_in(tmp_path / "like.gguf"), tensors_in(tmp_path / "alone.gguf")
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    before, after = metadata_in(llama / "like.gguf"), metadata_in(tmp_path / "like.gguf")
    expected = before | {f"llama.{key}": value for key, value in CHANGES[change].items()} | {"general.file_type": 1}
    assert {key: after[key] for key in expected if not key.startswith("GGUF.")} == {
        key: value for key, value in expected.items() if not key.startswith("GGUF.")
    }
    assert after["tokenizer.ggml.tokens"] == ["a", "b"] and after["general.license"] == "of another program"


def swap(first, second):
    def change(tensors):
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return change


def unordered(tensors):
    tensors["blk.1.attn_q.weight"] = tensors["blk.1.attn_q.weight"][::-1].copy()


def one_row(tensors):
    tensors["blk.2.ffn_up.weight"] = tensors["blk.2.ffn_up.weight"].copy()
    tensors["blk.2.ffn_up.weight"][7] *= 1.2


def absent(tensors):
    del tensors["blk.0.ffn_norm.weight"]


def not_a_number(tensors):
    tensors["blk.0.attn_norm.weight"] = np.full(128, np.nan, np.float32)


def more(tensors):
    tensors["blk.0.attn_sinks.weight"] = np.ones(4, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (swap("blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"), r"blk\.0\.ffn_(up|gate)\.weight of .* is not model\.l"),
        (swap("blk.0.attn_v.weight", "blk.2.attn_v.weight"), r"blk\.0\.attn_v\.weight of .* is not model\.layers\.0"),
        (unordered, r"blk\.1\.attn_q\.weight of .* is not model\.layers\.1\.self_attn\.q_proj\.weight"),
        (one_row, r"blk\.2\.ffn_up\.weight of .* differ by (17|18|19|20) % in a row, more than Q8_0 rounds"),
        (absent, r"lacks blk\.0\.ffn_norm\.weight, which model\.layers\.0\.post_attention_layernorm\.weight"),
        (not_a_number, r"blk\.0\.attn_norm\.weight of .* is not model\.layers\.0\.input_layernorm\.weight"),
        (more, r"has a tensor blk\.0\.attn_sinks\.weight, which .* lacks"),
    ],
    ids=["swapped", "of another block", "other rows", "one row", "absent", "NaN", "more"],
)
def test_a_file_with_a_wrong_tensor_is_refused_by_the_tensors_name(wrong, message, llama, tmp_path):
    write_foreign(llama / "dense", tmp_path / "wrong.gguf", wrong)
    with pytest.raises(PrunusError, match=message):
        prunus.gguf(llama / "dense", tmp_path / "out.gguf", GgufRecipe(like=str(tmp_path / "wrong.gguf")))
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.gguf"]


@pytest.mark.slow
def test_experts_that_were_removed(tmp_path):
    make_gguf_model("qwen3_moe", tmp_path / "dense")
    prunus.gguf(tmp_path / "dense", tmp_path / "dense.gguf")
    prunus.experts(tmp_path / "dense", tmp_path / "cut", ExpertsRecipe(method="random", keep=0.5))
    prunus.gguf(tmp_path / "cut", tmp_path / "cut.gguf", GgufRecipe(like=str(tmp_path / "dense.gguf")))
    assert metadata_in(tmp_path / "cut.gguf")["qwen3moe.expert_count"] == 4
    found, own = tensors_in(tmp_path / "cut.gguf"), plain(tmp_path / "cut")
    for number in range(4):
        ours = own[f"model.layers.1.mlp.experts.{number}.down_proj.weight"].astype(np.float16)
        assert np.array_equal(found["blk.1.ffn_down_exps.weight"][number], ours)
    assert np.array_equal(found["blk.1.ffn_gate_inp.weight"], own["model.layers.1.mlp.gate.weight"])


@pytest.mark.slow
def test_gemma_has_norms_with_one_more_and_windows_by_number(tmp_path):
    make_gguf_model("gemma3_text", tmp_path / "dense", "gemma")
    prunus.gguf(tmp_path / "dense", tmp_path / "alone.gguf", GgufRecipe(type="q8_0"))
    prunus.gguf(tmp_path / "dense", tmp_path / "like.gguf", GgufRecipe(type="q8_0", like=str(tmp_path / "alone.gguf")))
    own = plain(tmp_path / "dense")
    for path in ("alone.gguf", "like.gguf"):
        found = tensors_in(tmp_path / path)
        assert "output.weight" not in found  # llama.cpp takes the embeddings
        assert np.array_equal(found["blk.0.attn_norm.weight"], own["model.layers.0.input_layernorm.weight"] + 1)
        assert np.array_equal(found["blk.2.attn_q_norm.weight"], own["model.layers.2.self_attn.q_norm.weight"] + 1)
    make_gguf_model("gemma3_text", tmp_path / "far", "gemma", sliding_window=64, num_hidden_layers=12)
    prunus.gguf(tmp_path / "far", tmp_path / "far.gguf")
    prunus.drop(tmp_path / "far", tmp_path / "less", DropRecipe(blocks="3,"))
    with pytest.raises(PrunusError, match=r"other kinds of blocks than llama\.cpp, where every 6th sees all tokens"):
        prunus.gguf(tmp_path / "less", tmp_path / "out.gguf")
    with pytest.raises(PrunusError, match="tells kinds of blocks by their numbers, which no longer fit"):
        prunus.gguf(tmp_path / "less", tmp_path / "out.gguf", GgufRecipe(like=str(tmp_path / "far.gguf")))


@pytest.mark.slow
def test_a_head_that_is_stored_though_tied_is_not_loaded(tmp_path):
    make_gguf_model("llama", tmp_path / "dense", tie_word_embeddings=True)
    before = prunus.gguf(tmp_path / "dense", tmp_path / "first.gguf")
    tensors = load_file(tmp_path / "dense" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    after = prunus.gguf(tmp_path / "dense", tmp_path / "second.gguf")
    assert (before.before, before.size) == (after.before, after.size)
    tensors["lm_head.weight"][-1, -1] += 1  # transformers computes with this head, llama.cpp and vLLM do not
    save_file(tensors, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PrunusError, match=r"ties 'lm_head.weight' to 'model.embed_tokens.weight', but they are stored"):
        prunus.gguf(tmp_path / "dense", tmp_path / "third.gguf")
    with pytest.raises(PrunusError, match=r"set tie_word_embeddings to false, or leave out the first one$"):
        prunus.prune(tmp_path / "dense", tmp_path / "pruned", PruneRecipe(method="magnitude"))
    with pytest.raises(PrunusError, match=r"ties 'lm_head.weight' to 'model.embed_tokens.weight', but they are stored"):
        load_model(tmp_path / "dense")  # as `eval` does


@pytest.mark.slow
def test_the_slowed_rotation_of_llama_3(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    make_gguf_model(
        "llama", tmp_path / "m", "llama-bpe", rope_parameters=rope | {"original_max_position_embeddings": 64}
    )
    prunus.gguf(tmp_path / "m", tmp_path / "m.gguf")
    (found,) = [values for name, values in tensors_in(tmp_path / "m.gguf").items() if name == "rope_freqs.weight"]
    waves = 2 * np.pi * 10000.0 ** (np.arange(0, 32, 2) / 32)
    assert np.all(found[waves < 64 / 4] == 1) and np.allclose(found[waves > 64], 8)
    assert np.all(np.diff(found) > -1e-5)
    prunus.gguf(tmp_path / "m", tmp_path / "again.gguf", GgufRecipe(like=str(tmp_path / "m.gguf")))
    assert np.array_equal(tensors_in(tmp_path / "again.gguf")["rope_freqs.weight"], found)


@pytest.mark.slow
def test_the_tokenizer(llama, tmp_path):
    prunus.gguf(llama / "dense", tmp_path / "out.gguf")
    said, content = metadata_in(tmp_path / "out.gguf"), json.loads((llama / "dense" / "tokenizer.json").read_text())
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "llama-bpe")
    assert len(tokens) == len(kinds) == VOCABULARY and all(tokens[n] == t for t, n in content["model"]["vocab"].items())
    assert said["tokenizer.ggml.merges"] == [" ".join(pair) for pair in content["model"]["merges"]]
    of = {token: gguf.TokenType(kind).name for token, kind in zip(tokens, kinds, strict=True)}
    assert {of[token] for token in SPECIAL} == {"CONTROL"} and of["<think>"] == "USER_DEFINED" and of["e"] == "NORMAL"
    assert of[f"[PAD{VOCABULARY - 1}]"] == "UNUSED"
    assert said["tokenizer.ggml.eos_token_id"] == tokens.index("<|im_end|>")
    assert not said["tokenizer.ggml.add_bos_token"] and said["tokenizer.chat_template"] == TEMPLATE


@pytest.mark.slow
def test_a_folder_for_evaluations(llama, tmp_path):
    """It has the facts of a model that an engine reads; Prunus's own engine and other steps refuse it in a line."""
    prunus.prune(llama / "dense", tmp_path / "pruned", PruneRecipe(method="magnitude", sparsity=0.5))
    prunus.gguf(tmp_path / "pruned", tmp_path / "out", GgufRecipe(type="q4_0"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.gguf", "prunus.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    model = EngineFolder(tmp_path / "out")
    assert [step["action"] for step in model.manifest.data["history"]] == ["prune", "gguf"]
    assert (model.quantisation, model.blocks, model.vocabulary) == ("gguf 4-bit", 3, VOCABULARY)
    assert model.parameters == Checkpoint(llama / "dense").parameters
    assert model.nbytes == model.manifest.data["history"][-1]["bytes"]["after"]
    assert step_label(model.manifest.history[-1]) == "GGUF Q4_0"
    other = prunus.gguf(tmp_path / "pruned", tmp_path / "other", GgufRecipe(type="q8_0"))
    assert EngineFolder(other.out).checksum() != model.checksum()
    for refused in (
        lambda: prunus.prune(tmp_path / "out", tmp_path / "no", PruneRecipe(method="magnitude")),
        lambda: prunus.gguf(tmp_path / "out", tmp_path / "no.gguf"),
        lambda: prunus.perplexity(tmp_path / "out", llama / "text.txt", seqlen=64),
    ):
        with pytest.raises(PrunusError, match=r"quantised \(gguf\)|comes from gguf|model\.safetensors") as error:
            refused()
        assert "\n" not in str(error.value)
    for backend in ("hf", "vllm"):
        plan = EvalPlan(tasks=("tiny",), budgets=(8,), profile="s1", engine=cast(Any, backend))
        with pytest.raises(PrunusError, match=r"only llama\.cpp reads: take the engine llama.cpp"):
            prunus.evaluate(tmp_path / "out", plan, tmp_path / "no.db", device="cpu")
    facts = prunus.inspect(tmp_path / "out")
    assert facts.stored == "gguf" and [row.action for row in facts.history] == ["prune", "gguf"]


@pytest.mark.slow
def test_inspect_a_file(llama, tmp_path, capsys):
    prunus.gguf(llama / "dense", tmp_path / "out.gguf", GgufRecipe(type="q4_0"))
    facts = prunus.inspect(tmp_path / "out.gguf")
    assert isinstance(facts, prunus.GgufFacts)
    assert facts.family == "llama" and facts.history[0].recipe == {"type": "q4_0"}
    assert facts.weight_bytes == (facts.history[0].bytes or {})["after"] == sum(row.bytes for row in facts.types)
    assert {row.type for row in facts.types} == {"F32", "Q8_0", "Q4_0"}
    main(["inspect", str(tmp_path / "out.gguf")])
    assert "GGUF" in capsys.readouterr().out
    (tmp_path / "out.gguf").write_bytes((tmp_path / "out.gguf").read_bytes()[:200])
    with pytest.raises(PrunusError, match="damaged or not a GGUF file"):
        prunus.inspect(tmp_path / "out.gguf")


def broken(folder, edit):
    """Change a folder's config.json, or its tokenizer.json."""
    for name in ("config.json", "tokenizer.json"):
        content = json.loads((folder / name).read_text())
        edit(content)
        (folder / name).write_text(json.dumps(content))


def with_split(content):
    if "pre_tokenizer" in content:
        content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\d+"}


def with_act(content):
    if "hidden_act" in content:
        content["hidden_act"] = "relu"


@pytest.mark.slow
def test_the_dense_model_may_be_elsewhere(llama, tmp_path):
    shutil.copytree(llama / "dense", tmp_path / "dense")
    prunus.prune(tmp_path / "dense", tmp_path / "pruned", PruneRecipe(method="magnitude", sparsity=0.5))
    (tmp_path / "dense").rename(tmp_path / "moved")
    recipe = GgufRecipe(like=str(llama / "like.gguf"))
    with pytest.raises(PrunusError, match=r"does not exist.*; give --dense MODEL"):
        prunus.gguf(tmp_path / "pruned", tmp_path / "out.gguf", recipe)
    prunus.gguf(tmp_path / "pruned", tmp_path / "out.gguf", recipe, dense=tmp_path / "moved")
    with pytest.raises(PrunusError, match="--dense is for --like"):
        prunus.gguf(tmp_path / "pruned", tmp_path / "no.gguf", dense=tmp_path / "moved")


@pytest.mark.slow
def test_without_the_package(llama, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(PrunusError, match=r"need the package gguf: pip install '\.\[gguf\]'"):
        prunus.gguf(llama / "dense", tmp_path / "out.gguf")


@pytest.mark.slow
def test_bad_input_is_one_line_and_leaves_nothing(llama, tmp_path):
    dense, out = llama / "dense", tmp_path / "out.gguf"
    make_gguf_model("llama", tmp_path / "odd", intermediate_size=80)
    make_gguf_model("gpt_neox", tmp_path / "neox")
    prunus.quantize(dense, tmp_path / "w4", QuantizeRecipe(bits=4, group="64", method="rtn"))
    prunus.quantize(dense, tmp_path / "w8", QuantizeRecipe(bits=8, method="rtn"))
    for name, edit in (("split", with_split), ("act", with_act)):
        shutil.copytree(dense, tmp_path / name)
        broken(tmp_path / name, edit)
    weights = load_file(dense / "model.safetensors")
    shutil.copytree(dense, tmp_path / "large")
    save_file(
        {n: t * 1e6 if n == "lm_head.weight" else t for n, t in weights.items()}, tmp_path / "large/model.safetensors"
    )
    like = str(llama / "like.gguf")
    make_gguf_model("llama", tmp_path / "four", num_hidden_layers=4)
    (tmp_path / "text.gguf").write_text("no GGUF file at all, but some text")
    cases = [
        (tmp_path / "odd", {"type": "q8_0"}, "rows of 80 weights, and Q8_0 needs a multiple of 32: take --type f16"),
        (
            tmp_path / "w4",
            {"type": "q4_0"},
            r"4 bits in groups of 64, and Q4_0 .* `prunus quantize --bits 4 --group 32`",
        ),
        (tmp_path / "w8", {"type": "q4_0"}, r"8 bits with a scale per row, and Q4_0 holds 4 bits"),
        (tmp_path / "neox", {}, r"gpt_neox, of which Prunus knows no GGUF form: give --like .* convert_hf_to_gguf\.py"),
        (tmp_path / "split", {}, r"splits words in a way of its own, which GGUF cannot express: give --like"),
        ("tiny", {}, r"splits words in a way of its own"),
        (tmp_path / "act", {}, "has hidden_act = relu, which llama.cpp does not compute"),
        (tmp_path / "large", {}, r"lm_head\.weight has weights that float16 cannot hold: take --type q8_0"),
        (tmp_path / "four", {"like": like}, r"like\.gguf has 3 blocks and .*four 4: it is of another model"),
        (dense, {"like": str(tmp_path / "absent.gguf")}, "absent.gguf cannot be read: No such file"),
        (dense, {"like": str(tmp_path / "text.gguf")}, "damaged or not a GGUF file"),
    ]
    there = {path.name for path in tmp_path.iterdir()}
    for model, settings, message in cases:
        with pytest.raises(PrunusError, match=message) as error:
            prunus.gguf(model, out, GgufRecipe(**settings))
        assert "\n" not in str(error.value)
        assert {path.name for path in tmp_path.iterdir()} == there, message
    for unknown in ("q5_k", "Q5_K"):
        with pytest.raises(PrunusError, match=rf"type '{unknown}' is not known; did you mean 'q5_k_m'\?"):
            GgufRecipe(type=cast(Any, unknown))
    prunus.gguf(dense, out)
    with pytest.raises(PrunusError, match="exists; choose another output or add --overwrite"):
        prunus.gguf(dense, out)
    prunus.gguf(dense, out, GgufRecipe(type="q8_0"), overwrite=True)
    assert metadata_in(out)["general.file_type"] == 7


@pytest.mark.slow
def test_the_command(llama, tmp_path, capsys):
    command = ["gguf", str(llama / "dense"), str(tmp_path / "out.gguf"), "--type", "q8_0"]
    main([*command, "--dry-run"])
    assert "would write" in capsys.readouterr().err and not list(tmp_path.iterdir())
    main(command)
    assert "architecture: llama" in capsys.readouterr().err
    assert torch.tensor(metadata_in(tmp_path / "out.gguf")["general.file_type"]) == 7
    with pytest.raises(SystemExit) as ended:
        main(["gguf", str(tmp_path / "absent"), str(tmp_path / "no.gguf")])
    assert ended.value.code == 2 and [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.slow
def test_quantize_may_come_before_it_and_nothing_after(llama, tmp_path):
    steps = [QuantizeRecipe(bits=4, group="32", method="rtn"), GgufRecipe(type="q4_0")]
    told = prunus.apply_steps(llama / "dense", tmp_path / "out", steps)
    assert isinstance(told, prunus.GgufMade) and told.exact == 21 and (tmp_path / "out" / "model.gguf").exists()
    with pytest.raises(PrunusError, match=r"before it \(w4-g32-rtn\)$"):  # dequantize reads no GGUF file
        prunus.quantize(tmp_path / "out", tmp_path / "no", steps[0])
    (tmp_path / "one.gguf").write_text("what is replaced")
    with pytest.raises(PrunusError, match=r"one\.gguf exists; choose another output or add --overwrite"):
        prunus.apply_steps(llama / "dense", tmp_path / "one.gguf", steps)
    prunus.apply_steps(llama / "dense", tmp_path / "one.gguf", steps, overwrite=True)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "out" / "model.gguf").read_bytes()
    with pytest.raises(PrunusError, match="nothing comes after gguf: put quantize before it"):
        prunus.apply_steps(llama / "dense", tmp_path / "no", steps[::-1])


@pytest.mark.slow
def test_a_chain_is_foreseen_with_the_shapes_of_earlier_steps(llama, tmp_path):
    steps = [WidthRecipe(method="random", fit=False, keep=0.5), GgufRecipe(type="q8_0", like=str(llama / "like.gguf"))]
    ahead = prunus.plan(llama / "dense", steps, tmp_path / "out")
    assert ahead.would_write == str(tmp_path / "out") and not list(tmp_path.iterdir())
    prunus.apply_steps(llama / "dense", tmp_path / "out", steps)
    assert metadata_in(tmp_path / "out" / "model.gguf")["llama.feed_forward_length"] == 96
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_type_may_be_written_as_llama_cpp_writes_it(tmp_path, capsys):
    plain = GgufRecipe(type="q4_k_m", calibration="tiny")
    assert GgufRecipe(type=cast(Any, "Q4_K_M"), calibration="tiny") == plain
    assert GgufRecipe.from_json({"type": "Q4_K_M", "calibration": "tiny"}).hash == plain.hash
    for tables in ('[[gguf]]\ntype = ["Q4_K_M"]\n', '[[chain]]\nsteps = [{ gguf = { type = "Q4_K_M" } }]\n'):
        (tmp_path / "forms.toml").write_text(tables)
        (entry,) = read_entries(tmp_path / "forms.toml", {"calibration": "tiny"})
        assert entry.steps == (plain,)
    with pytest.raises(SystemExit):
        main(["gguf", "tiny", str(tmp_path / "out"), "--type", "Q8_0"])
    assert "the tokenizer of tiny splits words" in capsys.readouterr().err, "it came past the check of the type"
