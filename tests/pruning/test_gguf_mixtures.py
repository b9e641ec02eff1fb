"""prunus gguf in llama.cpp's mixtures: which form a tensor has, its bytes, and the importance of inputs."""

import json
import shutil
import sys
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf_models import make_gguf_model, metadata_in, tensors_in
from safetensors.torch import load_file, save_file

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import tiny_folder
from prunus.errors import PrunusError
from prunus.pruning.bits.gguf_importance import relative
from prunus.pruning.bits.gguf_mixture import GGML_TYPES, Shape, form_in_mixture
from prunus.pruning.bits.gguf_tensors import packed
from prunus.recipes import GgufRecipe, QuantizeRecipe
from prunus.recipes.gguf import MIXTURES
from prunus.step import step_kind

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models
# A model of Llama's kind with rows of 256 has 10 blocks, of which llama.cpp gives 0, 3, 6, 8 and 9 more bits.
BLOCKS, MORE = 10, (0, 3, 6, 8, 9)
CALIBRATION = {"calibration": "text.txt", "sequences": 2, "seqlen": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model of two blocks, and a text."""
    return made(tmp_path_factory, 2)


def made(tmp_path_factory, blocks):
    folder = tmp_path_factory.mktemp("mixtures")
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": blocks}
    make_gguf_model("llama", folder / "model", "llama-bpe", **sizes)
    (folder / "text.txt").write_text("Some words, and 1 + 1. " * 200)
    return folder


def written(folder, path, recipe, **ways):
    """The reader of the file that is written, and the step in its manifest."""
    reader = gguf.GGUFReader(prunus.gguf(folder, path, recipe, **ways).out)
    return reader, json.loads(metadata_in(path)["prunus.manifest"])["history"][-1]


def in_mixture(name, row, type, block=0, **changes):
    usual = {"blocks": 32, "heads_per_key": 4, "experts": 0, "tied": False, "values": range(32), "weighted": True}
    return form_in_mixture(name, block, row, type, Shape(**usual | changes))


# By llama.cpp's own output for these files: Llama 3 8B (32 blocks, 4 heads for a key) and others.
@pytest.mark.parametrize(
    ("name", "row", "type", "more", "form"),
    [
        ("blk.0.attn_v.weight", 4096, "q4_k_m", {}, "Q6_K"),
        ("blk.4.attn_v.weight", 4096, "q4_k_m", {"block": 4}, "Q4_K"),
        ("blk.6.attn_v.weight", 4096, "q5_k_m", {"block": 6}, "Q6_K"),
        ("blk.27.ffn_down.weight", 14336, "q4_k_m", {"block": 27}, "Q6_K"),
        ("blk.28.ffn_down.weight", 14336, "q4_k_m", {"block": 28}, "Q6_K"),
        ("blk.26.ffn_down.weight", 14336, "q4_k_m", {"block": 26}, "Q4_K"),
        ("blk.0.ffn_down_exps.weight", 1024, "q4_k_m", {"experts": 64}, "Q6_K"),
        ("blk.0.ffn_gate.weight", 4096, "q4_k_m", {}, "Q4_K"),
        ("blk.0.attn_v.weight", 4096, "iq4_xs", {}, "Q5_K"),
        ("blk.0.attn_v.weight", 4096, "iq4_xs", {"heads_per_key": 3}, "IQ4_XS"),
        ("blk.3.ffn_down.weight", 4096, "iq4_xs", {"block": 3, "weighted": False}, "Q5_K"),
        ("blk.4.ffn_down.weight", 4096, "iq4_xs", {"block": 4, "weighted": False}, "IQ4_XS"),
        ("blk.3.ffn_down.weight", 4096, "iq4_xs", {"block": 3}, "IQ4_XS"),
        ("blk.0.attn_k.weight", 4096, "q4_k_m", {"experts": 8}, "Q8_0"),
        ("blk.4.attn_v.weight", 4096, "q4_k_m", {"block": 4, "experts": 8}, "Q8_0"),
        ("blk.4.attn_output.weight", 4096, "q4_k_m", {"block": 4, "experts": 8}, "Q5_K"),
        ("blk.4.attn_output.weight", 4096, "q5_k_m", {"block": 4, "experts": 8}, "Q5_K"),
        ("blk.40.attn_v.weight", 8192, "q4_k_m", {"block": 40, "blocks": 80, "values": range(80)}, "Q5_K"),
        ("output.weight", 4096, "q4_k_m", {"block": None}, "Q6_K"),
        ("output.weight", 576, "q4_k_m", {"block": None}, "Q8_0"),
        ("token_embd.weight", 4096, "q4_k_m", {"block": None}, "Q4_K"),
        ("token_embd.weight", 4096, "q4_k_m", {"block": None, "tied": True}, "Q6_K"),
        ("token_embd.weight", 896, "iq4_xs", {"block": None, "tied": True}, "Q8_0"),
        ("blk.4.ffn_gate.weight", 896, "q4_k_m", {"block": 4}, "Q5_0"),
        ("blk.4.ffn_gate.weight", 896, "q5_k_m", {"block": 4}, "Q5_1"),
        ("blk.4.ffn_gate.weight", 896, "q6_k", {"block": 4}, "Q8_0"),
        ("blk.4.ffn_gate.weight", 896, "iq4_xs", {"block": 4}, "IQ4_NL"),
        ("blk.4.ffn_gate.weight", 100, "iq4_xs", {"block": 4}, "F16"),
    ],
)
def test_the_form_of_a_tensor_is_llama_cpps(name, row, type, more, form):
    assert in_mixture(name, row, type, **more) == form


def test_sizes_of_forms_are_the_librarys():
    for form, kind in GGML_TYPES.items():
        weights, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[form]]
        assert (kind.weights, kind.nbytes) == (weights, nbytes), form


@pytest.mark.parametrize("form", [form for form, kind in GGML_TYPES.items() if kind.scales])
def test_packed_rows_are_read_by_another_package(form):
    """By gguf, whose own error is that of the form: half a step of 4 to 8 bits, on rows that several threads pack."""
    rng = np.random.default_rng(0)
    rows, steps = rng.normal(size=(200, 512)).astype(np.float32), 2 ** int(form.removeprefix("I")[1])
    importance = rng.random(512).astype(np.float32) + 0.1
    kind = gguf.GGMLQuantizationType[form]
    errors = {}
    for given in (None, importance):
        values = gguf.quants.dequantize(packed(rows, form, given), kind)
        assert values.shape == rows.shape and np.abs(values - rows).max() < 12 / steps
        errors[given is None] = float((np.square(values - rows) * importance).sum())
    assert errors[False] < errors[True] or form == "Q8_0"


@pytest.mark.slow
def test_a_mixture_is_written_as_planned(tmp_path_factory, tmp_path, monkeypatch):
    monkeypatch.chdir(made(tmp_path_factory, BLOCKS))
    recipe = GgufRecipe(type="q4_k_m", **CALIBRATION)
    reader, step = written("model", tmp_path / "out.gguf", recipe)
    forms = {one.name: one.tensor_type.name for one in reader.tensors}
    for block in range(BLOCKS):
        more = "Q6_K" if block in MORE else "Q4_K"
        assert forms[f"blk.{block}.attn_v.weight"] == forms[f"blk.{block}.ffn_down.weight"] == more, block
        assert forms[f"blk.{block}.attn_q.weight"] == "Q4_K" and forms[f"blk.{block}.attn_norm.weight"] == "F32"
    assert (forms["token_embd.weight"], forms["output.weight"]) == ("Q4_K", "Q6_K")
    nbytes = sum(int(one.n_bytes) for one in reader.tensors)
    assert step["bytes"]["after"] == nbytes == step_kind("gguf").nbytes(recipe, Checkpoint("model"))
    assert step["format"] == {"name": "gguf", "bits": 4, "group": 32} and step["versions"]["libgguf"] == "0.2.2"
    said = metadata_in(tmp_path / "out.gguf")
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_K_M and said["general.quantization_version"] == 2
    assert said["quantize.imatrix.dataset"] == "text.txt" and said["quantize.imatrix.chunks_count"] == 2
    assert said["quantize.imatrix.entries_count"] == 7 * BLOCKS and step["calibration"]["sequences"] == 2
    before = tensors_in(tmp_path / "out.gguf")
    prunus.gguf("model", tmp_path / "f32.gguf")
    for name, values in tensors_in(tmp_path / "f32.gguf").items():
        assert np.abs(values - before[name]).max() <= np.abs(values).max() / (4 if values.ndim > 1 else 1e9), name


@pytest.mark.slow
@pytest.mark.thorough("q4_k_m")
@pytest.mark.parametrize("type", MIXTURES)
def test_the_same_seed_gives_the_same_bytes_by_pass_or_by_statistics(model, tmp_path, monkeypatch, type):
    monkeypatch.chdir(model)
    if not (model / "stats").exists():
        prunus.stats("model", "stats", **CALIBRATION)
    recipe = GgufRecipe(type=type, **CALIBRATION)
    prunus.gguf("model", tmp_path / "a.gguf", recipe)
    prunus.gguf("model", tmp_path / "b.gguf", recipe)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    reader, step = written("model", tmp_path / "c.gguf", GgufRecipe(type=type), stats="stats")
    by_pass = {one.name: one.data.tobytes() for one in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert {one.name: one.data.tobytes() for one in reader.tensors} == by_pass
    assert step["recipe"] == recipe.to_json() and metadata_in(tmp_path / "c.gguf")["quantize.imatrix.file"] == "stats"
    plain, _ = written("model", tmp_path / "d.gguf", GgufRecipe(type=type))
    differ = {one.name for one in plain.tensors if one.data.tobytes() != by_pass[one.name]}
    assert differ == {one.name for one in plain.tensors if one.name.startswith("blk.") and "_norm" not in one.name}


@pytest.mark.slow
def test_more_important_inputs_have_smaller_errors(model, tmp_path, monkeypatch):
    """The embeddings of some channels are 30 times larger: what is rounded minds them more than without."""
    monkeypatch.chdir(model)
    shutil.copytree("model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    for name in [name for name in weights if name.endswith("input_layernorm.weight")]:
        weights[name][::8] *= 30
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    errors = {}
    for calibration in ({}, CALIBRATION):
        prunus.gguf(tmp_path / "model", tmp_path / "out.gguf", GgufRecipe(type="q4_k_m", **calibration), overwrite=True)
        off = tensors_in(tmp_path / "out.gguf")["blk.1.attn_v.weight"]
        off = off - weights["model.layers.1.self_attn.v_proj.weight"].float().numpy()
        errors[bool(calibration)] = float(np.square(off[:, ::8]).sum())
    assert errors[True] < 0.7 * errors[False]


@pytest.mark.slow
def test_experts_have_their_own_importance(tmp_path):
    make_gguf_model("qwen3_moe", tmp_path / "m", hidden_size=256, moe_intermediate_size=256, num_hidden_layers=1)
    (tmp_path / "text.txt").write_text("Some words, and 1 + 1. " * 400)
    given = {"calibration": str(tmp_path / "text.txt"), "sequences": 8, "seqlen": 64}
    reader, step = written(tmp_path / "m", tmp_path / "m.gguf", GgufRecipe(type="q4_k_m", **given))
    prunus.stats(tmp_path / "m", tmp_path / "stats", **given)
    stats, down = load_file(tmp_path / "stats"), "model.layers.0.mlp.experts.{}.down_proj"
    (one,) = (each for each in reader.tensors if each.name == "blk.0.ffn_down_exps.weight")
    block, linears = Checkpoint(tmp_path / "m").read_block(0), Checkpoint(tmp_path / "m").linears(0)
    assert one.tensor_type.name == "Q6_K"  # the first block of llama.cpp's eighths is also the last
    names = [linear.name for linear in linears if linear.name.endswith("down_proj")]
    assert len(names) == one.data.shape[0] > 1
    for number, name in enumerate(names):
        rows = block[f"{name}.weight"].float().numpy()
        alone = packed(rows, "Q6_K", relative(stats[f"{down.format(number)}.norm"]))
        assert np.array_equal(one.data[number], alone), number
    kinds = {each.name: each.tensor_type.name for each in reader.tensors}
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32" and kinds["blk.0.ffn_gate_exps.weight"] == "Q4_K"
    assert step["bytes"]["after"] == sum(int(each.n_bytes) for each in reader.tensors)


@pytest.mark.slow
def test_rows_that_fit_no_form_have_another(tmp_path):
    """128 and 192 weights are multiples of 32 alone; 100 of nothing."""
    make_gguf_model("qwen2", tmp_path / "m", intermediate_size=100, tie_word_embeddings=True)
    for type, form in (("q4_k_m", "Q5_0"), ("q5_k_m", "Q5_1"), ("q6_k", "Q8_0"), ("iq4_xs", "IQ4_NL")):
        recipe = replace(GgufRecipe(), type=type)
        reader, _ = written(tmp_path / "m", tmp_path / f"{type}.gguf", recipe)
        kinds = {one.name: one.tensor_type.name for one in reader.tensors}
        assert kinds["blk.1.attn_q.weight"] == form and kinds["blk.1.ffn_down.weight"] == "F16"
        assert kinds["token_embd.weight"] == "Q8_0" and "output.weight" not in kinds


@pytest.mark.slow
def test_what_was_quantised_before_can_be_mixed(model, tmp_path):
    prunus.quantize(model / "model", tmp_path / "w4", QuantizeRecipe(bits=4, group="32", method="rtn"))
    reader, _ = written(tmp_path / "w4", tmp_path / "w4.gguf", GgufRecipe(type="q4_k_m"))
    assert {one.tensor_type.name for one in reader.tensors} == {"F32", "Q4_K", "Q6_K"}


def test_recipes_without_weights_of_inputs_have_no_calibration():
    assert GgufRecipe(type="q8_0", calibration="traces:x.jsonl", seed=3) == GgufRecipe(type="q8_0")
    assert GgufRecipe(type="q4_0", calibration="c4", sequences=3).to_json() == GgufRecipe(type="q4_0").to_json()
    content = step_kind("gguf").content(GgufRecipe(type="q4_0", calibration="c4"), Checkpoint(tiny_folder()))
    assert content == {"action": "gguf", "type": "q4_0"}
    assert GgufRecipe.from_json(GgufRecipe(type="q6_k", calibration="c4", seed=1).to_json()).seed == 1


@pytest.mark.parametrize(
    ("recipe", "ways", "says"),
    [
        (GgufRecipe(type="q8_0"), {"stats": "stats"}, "type q8_0 needs no statistics; leave --stats out"),
        (
            GgufRecipe(type="q4_k_m"),
            {"stats": "none"},
            "none cannot be read: No such file or directory; `prunus stats` writes such a file",
        ),
        (GgufRecipe(type="q4_k_m", calibration="gone.txt"), {}, "gone.txt"),
    ],
)
def test_wrong_calibration_is_told(model, tmp_path, monkeypatch, recipe, ways, says):
    monkeypatch.chdir(model)
    with pytest.raises(PrunusError, match=says):
        prunus.gguf("model", tmp_path / "out.gguf", recipe, **ways)
    assert not (tmp_path / "out.gguf").exists()


def test_libgguf_is_named_where_it_is_missing(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "libgguf", None)
    with pytest.raises(PrunusError, match=r"libgguf: pip install '\.\[gguf\]'"):
        prunus.gguf(model / "model", tmp_path / "out.gguf", GgufRecipe(type="q6_k"))
    prunus.gguf(model / "model", tmp_path / "out.gguf", GgufRecipe(type="q8_0"))


@pytest.mark.slow
def test_weights_that_no_form_holds_are_named(model, tmp_path):
    shutil.copytree(model / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(PrunusError, match=r"layers.1.mlp.up_proj.weight has weights that float16 cannot hold"):
        prunus.gguf(tmp_path / "model", tmp_path / "out.gguf", GgufRecipe(type="iq4_xs"))
    assert not (tmp_path / "out.gguf").exists()


def test_an_input_that_was_never_active_still_counts():
    assert relative(torch.tensor([0.0, 1.0, 1.0])).tolist() == pytest.approx([1e-6, 1.5, 1.5])
    assert relative(torch.zeros(2)).tolist() == [1, 1]
