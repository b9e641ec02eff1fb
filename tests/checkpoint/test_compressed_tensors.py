"""Folders of compressed-tensors: every bit as the library writes and reads it, and read by every command."""

import json
from importlib import import_module

import compressed_library
import pytest
import torch
from compressed_library import CASES, RECORDED
from random_models import make_random_model
from safetensors.torch import load_file, save_file

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.compressed_tensors import Format, packed_words
from prunus.checkpoint.foreign_weights import Quantisation, plain_tensors
from prunus.checkpoint.loader import load_whole
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.safetensors_file import entry_of, read_header
from prunus.errors import PrunusError
from prunus.recipes import PruneRecipe, QuantizeRecipe, RecoverRecipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models
CONFIGS = json.loads((RECORDED / "configs.json").read_text())
ROWS = [torch.randint(3, 128, (24,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(6)]


def recorded(case):
    """The tensors that the library wrote, and the weight that it reads from them."""
    own = load_file(RECORDED / "matrices.safetensors").items()
    found = {name.removeprefix(f"{case}/"): tensor for name, tensor in own if name.startswith(f"{case}/")}
    return {f"x.{kind}": tensor for kind, tensor in found.items() if kind != "read"}, found["read"]


def test_the_library_still_makes_what_is_recorded():
    """Only where it is installed."""
    pytest.importorskip("compressed_tensors")
    made, before = compressed_library.compressed(), load_file(RECORDED / "matrices.safetensors")
    assert made.keys() == before.keys() and all(torch.equal(made[name], before[name]) for name in made)
    assert compressed_library.configs() == CONFIGS


def test_every_matrix_of_the_library_is_read_bit_by_bit_as_the_library_reads_it(tmp_path):
    """By groups, by row, whole, with zero points and in another order; in the dtype of the scales."""
    for case in CASES:
        tensors, read = recorded(case)
        save_file(tensors, tmp_path / "one.safetensors")
        plain = plain_tensors(read_header(tmp_path / "one.safetensors"), Quantisation("compressed-tensors"))
        assert list(plain) == ["x.weight"], case
        assert torch.equal(plain["x.weight"].read(), read) and plain["x.weight"].read().dtype == read.dtype, case
        assert b"".join(plain["x.weight"].chunks()) == read.view(torch.uint8).numpy().tobytes(), case
        assert torch.equal(plain["x.weight"].read_rows([2, 0]), read[[2, 0]]), case


@pytest.mark.parametrize(
    ("case", "form"), [("w4-g32", Format(4, 32)), ("w4-row", Format(4, None, "F16")), ("w8-row", Format(8, None))]
)
def test_integers_and_scales_are_written_bit_by_bit_as_the_library_writes_them(case, form):
    tensors, read = recorded(case)
    scale_OG = tensors["x.weight_scale"]
    full_OI = scale_OG.float().repeat_interleave(read.shape[1] // scale_OG.shape[1], 1)
    code_OI = (read.float() / full_OI).round().to(torch.int8)
    made = form.tensors("x", code_OI, scale_OG)
    assert made.keys() == tensors.keys()
    assert all(torch.equal(made[name], tensors[name]) and made[name].dtype == tensors[name].dtype for name in made)
    assert {name: entry_of(tensor) for name, tensor in made.items()} == form.entries("x", tuple(read.shape))


def test_the_settings_are_those_of_the_library():
    assert (
        Format(4, 64).settings(["lm_head"]) == CONFIGS["w4"] and Format(8, None).settings(["lm_head"]) == CONFIGS["w8"]
    )


def test_all_16_integers_go_into_words_with_the_first_in_the_lowest_bits():
    ((low, high),) = packed_words(torch.arange(-8, 8, dtype=torch.int8)[None]).tolist()
    assert low == 0x76543210 and high & 0xFFFFFFFF == 0xFEDCBA98


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A model in W4A16 and one in W8A8 of another program: rounded here by plain scales, without a manifest."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in ROWS))
    make_random_model("qwen3", folder / "dense", num_hidden_layers=2)
    for name, form in (("w4", Format(4, 32)), ("w8", Format(8, None))):
        tensors = {key: tensor.bfloat16() for key, tensor in load_file(folder / "dense/model.safetensors").items()}
        made = dict(tensors)
        for key, tensor in tensors.items():
            if key.endswith("_proj.weight"):
                groups = tensor.view(len(tensor), -1, form.group or tensor.shape[1]).float()
                scale = (groups.abs().amax(-1) / (2 ** (form.bits - 1) - 0.5)).bfloat16()
                code = (
                    (groups / scale.float()[..., None]).round().clamp(-(2 ** (form.bits - 1)), 2 ** (form.bits - 1) - 1)
                )
                del made[key]
                made |= form.tensors(key.removesuffix(".weight"), code.view(tensor.shape).to(torch.int8), scale)
        (folder / name).mkdir()
        save_file(made, folder / name / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "dense/config.json").read_text()) | {"dtype": "bfloat16"}
        config["quantization_config"] = {"version": "0.11.0", "sparsity_config": {}, **form.settings(["lm_head"])}
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def same(one, other):
    ours, theirs = ({name: t.read() for name, t in Checkpoint(folder).tensors.items()} for folder in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w4", "w8"])
def test_every_command_reads_a_folder_of_another_program(others, tmp_path, name):
    """What it makes of it is what it makes of the same weights in bfloat16."""
    folder, plain, rows = others / name, tmp_path / "plain", others / "rows.jsonl"
    told = prunus.dequantize(folder, plain)
    assert told.quantisation == "compressed-tensors" and "are read and written in bfloat16" in told.warnings[0]
    assert Checkpoint(plain).quantised is None and Checkpoint(plain).dtype == torch.bfloat16
    same(folder, plain)
    recipe = PruneRecipe(method="wanda", sparsity=0.5, calibration=str(rows), sequences=6, seqlen=24)
    for model in (folder, plain):
        prunus.prune(model, tmp_path / f"{model.name}-pruned", recipe, device="cpu")
    same(tmp_path / f"{name}-pruned", tmp_path / "plain-pruned")
    (step,) = Checkpoint(tmp_path / f"{name}-pruned").manifest.data["history"]
    assert step["source"] == {
        "name": str(folder), "checksum": ModelFolder(folder).checksum(), "dequantised": "compressed-tensors",
    }  # fmt: skip
    assert prunus.perplexity(folder, rows, seqlen=24) == prunus.perplexity(plain, rows, seqlen=24)
    facts = prunus.inspect(folder)
    assert facts.stored == f"int{name[1]}, read in bfloat16" and not facts.to_json()["refused"]
    assert facts.weight_bytes == sum(tensor.nbytes for tensor in ModelFolder(folder).stored.values())
    trained = RecoverRecipe.like(recipe, epochs=1, step_tokens=24)
    prunus.recover(tmp_path / f"{name}-pruned", tmp_path / "recovered", trained, device="cpu")
    with pytest.raises(PrunusError, match=r"is quantised already .compressed-tensors.: give the model"):
        prunus.quantize(folder, tmp_path / "again", QuantizeRecipe(method="rtn"))
    assert not (tmp_path / "again").exists()


def test_transformers_logits_are_ours(others):
    """Only where the library is installed. With W8A8 transformers rounds activations too, so weights are compared."""
    pytest.importorskip("compressed_tensors")
    load = import_module("transformers").AutoModelForCausalLM.from_pretrained
    ids = torch.tensor(ROWS[:2])
    for name in ("w4", "w8"):
        ours, theirs = load_whole(Checkpoint(others / name), torch.bfloat16).eval(), load(others / name)
        with torch.no_grad():
            expected = theirs(ids).logits
            assert name == "w8" or torch.equal(ours(ids).logits, expected)
        weights = theirs.state_dict()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in ours.state_dict().items())


def changed(others, folder, change):
    """A copy of the W4 folder with another config and other tensors."""
    folder.mkdir()
    config = json.loads((others / "w4/config.json").read_text())
    tensors = load_file(others / "w4/model.safetensors")
    change(config["quantization_config"], tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


Q = "model.layers.0.self_attn.q_proj"
WRONG = {
    "floats": (lambda c, _: c["config_groups"]["group_0"]["weights"].update(type="float"), "integers of 4 or 8 bits"),
    "3 bits": (lambda c, _: c["config_groups"]["group_0"]["weights"].update(num_bits=3), "integers of 4 or 8 bits"),
    "format": (lambda c, _: c["config_groups"]["group_0"].update(format="nvfp4-pack-quantized"), "format nvfp4"),
    "blocks": (lambda c, _: c["config_groups"]["group_0"]["weights"].update(strategy="block"), "scales by block"),
    "rotated": (lambda c, _: c.update(transform_config={"config_groups": {"R1": {}}}), "rotated weights"),
    "nothing": (lambda c, _: c.update(config_groups={}), "no groups of Linears"),
    "scales": (lambda _, t: t.update({f"{Q}.weight_scale": torch.ones(64, 3).bfloat16()}), "do not match its numbers"),
    "shape": (lambda _, t: t.update({f"{Q}.weight_shape": torch.tensor([64, 640])}), "do not match its numbers"),
    "no scales": (lambda _, t: t.pop(f"{Q}.weight_scale"), "lacks the tensor"),
    "no shape": (lambda _, t: t.pop(f"{Q}.weight_shape"), "do not match its numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_refused_in_one_line(others, tmp_path, case):
    change, says = WRONG[case]
    folder = changed(others, tmp_path / "model", change)
    with pytest.raises(PrunusError, match=says) as error:
        Checkpoint(folder)
    assert "\n" not in str(error.value)


def test_scales_of_activations_are_left_out(others, tmp_path):
    def add(_, tensors):
        tensors[f"{Q}.input_scale"] = torch.ones(1)
        tensors[f"{Q}.output_scale"] = torch.ones(1)

    folder = changed(others, tmp_path / "model", add)
    same(folder, others / "w4")
    scales = {f"{Q}.input_scale", f"{Q}.output_scale"}
    assert scales <= ModelFolder(folder).stored.keys() and not scales & Checkpoint(folder).tensors.keys()
