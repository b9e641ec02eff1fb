"""Originals in FP8 and MXFP4, read in bfloat16: the numbers of transformers, by every command, block by block."""

import json
import weakref
from importlib.metadata import version
from typing import Any

import models
import pytest
import torch
from random_models import make_random_model
from safetensors.torch import load_file, save_file
from small_study import write_study
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.foreign_weights import Dequantised, Quantisation, plain_tensors
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.safetensors_file import read_header
from prunus.checkpoint.writer import Partial
from prunus.errors import PrunusError
from prunus.studies.cells import open_model
from prunus.studies.file import read_study

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def in_fp8(tensors):
    """Matrices of blocks as 8-bit floats with one scale, as DeepSeek's checkpoints have them."""
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.bfloat16() if "e_score" not in name else tensor
        if tensor.ndim == 2 and "layers" in name and "gate.weight" not in name:
            scale = tensor.abs().max() / 448
            found[name] = (tensor / scale).to(torch.float8_e4m3fn)
            blocks = [-(-size // 128) for size in tensor.shape]
            found[name + "_scale_inv"] = scale.expand(*blocks).contiguous().float()
    return found


def in_mxfp4(tensors):
    """Experts as two numbers of 4 bits a byte and a scale for 32, as gpt-oss has them; drawn, not rounded."""
    generator, found = torch.Generator().manual_seed(0), {}
    for name, tensor in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = tensor.shape
            shape = (experts, outputs, inputs // 32)
            found[name + "_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
            found[name + "_scales"] = torch.randint(118, 126, shape, generator=generator).to(torch.uint8)
        else:
            found[name] = tensor.bfloat16()
    return found


@pytest.fixture(params=["deepseek_v3", "gpt_oss"])
def quantised(tmp_path, request):
    """A folder in FP8 or MXFP4, and how transformers is asked for plain numbers."""
    folder, fp8 = tmp_path / "model", request.param == "deepseek_v3"
    make_random_model(request.param, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(in_fp8(tensors) if fp8 else in_mxfp4(tensors), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": FP8 if fp8 else MXFP4}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, (FineGrainedFP8Config if fp8 else Mxfp4Config)(dequantize=True)


def read_by_transformers(folder, asked):
    try:
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=asked, dtype=torch.bfloat16)
    except AttributeError:
        if version("transformers") == models.read_data()["transformers"]:
            raise
        pytest.skip("this transformers (as 5.16 does) fails to read FP8 at all")


@pytest.mark.slow
def test_written_plain_the_numbers_are_those_of_transformers(tmp_path, quantised):
    folder, asked = quantised
    told = prunus.dequantize(folder, tmp_path / "plain")
    assert told.quantisation in ("fp8", "mxfp4") and "in bfloat16" in told.warnings[0]
    expected = read_by_transformers(folder, asked)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", dtype=torch.bfloat16, output_loading_info=True
    )
    model, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, theirs = model.state_dict(), expected.state_dict()
    assert set(ours) == set(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name].to(ours[name].dtype)), name
    made = Checkpoint(tmp_path / "plain")
    assert made.dtype == torch.bfloat16 and made.quantised is None
    (step,) = made.manifest.data["history"]
    source = {"name": str(folder), "checksum": ModelFolder(folder).checksum(), "dequantised": told.quantisation}
    assert (step["action"], step["source"]) == ("dequantize", source)


def tensors_of(folder):
    return {name: stored.read() for name, stored in Checkpoint(folder).tensors.items()}


@pytest.mark.thorough
def test_every_command_reads_an_original_as_it_is(tmp_path, quantised):
    """What each command makes of it is what it makes of the model in bfloat16."""
    folder, plain = quantised[0], tmp_path / "in-bfloat16"
    prunus.dequantize(folder, plain)
    rows = [torch.randint(3, 120, (24,), generator=torch.Generator().manual_seed(1)).tolist() for _ in range(4)]
    text = tmp_path / "rows.jsonl"
    text.write_text("\n".join(json.dumps({"token_ids": row}) for row in rows))
    common = {"calibration": str(text), "sequences": 4, "seqlen": 24}
    wanda, found = prunus.PruneRecipe(method="wanda", sparsity=0.5, **common), {}
    dense = prunus.PruneRecipe(method="wanda", sparsity=0.5, propagation="dense")
    for name, model in (("original", folder), ("plain", plain)):
        out = tmp_path / name
        prunus.prune(model, out / "wanda", wanda)
        prunus.drop(model, out / "drop", prunus.DropRecipe(blocks="1,"))
        prunus.stats(model, out / "stats.safetensors", **common)
        prunus.prune(model, out / "saved", dense, stats=out / "stats.safetensors")
        prunus.experts(model, out / "experts", prunus.ExpertsRecipe(keep=0.5, **common), device="cpu")
        measured = prunus.perplexity(model, text, seqlen=24).nll
        found[name] = [tensors_of(out / made) for made in ("wanda", "drop", "saved", "experts")], measured
    for ours, theirs in zip(found["original"][0], found["plain"][0], strict=True):
        assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found["original"][1] == found["plain"][1]
    step = Checkpoint(tmp_path / "original/wanda").manifest.data["history"][0]
    method, checksum = ModelFolder(folder).quantised, ModelFolder(folder).checksum()
    assert step["source"] == {"name": str(folder), "checksum": checksum, "dequantised": method}
    assert f"the model's {method} weights are read and written in bfloat16" in step["warnings"][0]
    told, planned = prunus.inspect(folder), prunus.plan(folder, wanda, tmp_path / "no")
    assert told.stored == f"{method}, read in bfloat16" and not told.to_json()["refused"]
    assert any("in bfloat16" in line for line in planned.warnings)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(tmp_path, quantised, monkeypatch):
    folder = quantised[0]
    magnitude = prunus.PruneRecipe(method="magnitude", sparsity=0.5)
    for name, make in (
        ("plain", lambda out: prunus.dequantize(folder, out)),
        ("pruned", lambda out: prunus.prune(folder, out, magnitude)),
    ):
        make(tmp_path / name / "unbroken")
        write, done = Partial.write_block, []

        def break_off(self, index, *args, write=write, done=done):
            done.append(index)
            if done == [0, 1, 2]:
                raise KeyboardInterrupt
            write(self, index, *args)

        monkeypatch.setattr(Partial, "write_block", break_off)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / name / "resumed")
        make(tmp_path / name / "resumed")
        monkeypatch.undo()
        assert done == [0, 1, 2, 2, 3], "blocks 0 and 1 were there"
        one, other = (tensors_of(tmp_path / name / which) for which in ("unbroken", "resumed"))
        assert set(one) == set(other) and all(torch.equal(one[tensor], other[tensor]) for tensor in one)


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_fp8_in_its_other_forms(tmp_path):
    """One scale for all, exponents as scales, two 4-bit numbers in a byte, rectangles that do not divide a matrix."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)

    def bytes_of(*shape, low=0, high=256):
        return torch.randint(low, high, shape, generator=generator).to(torch.uint8)

    fours, exponents = bytes_of(6, 32), bytes_of(6, 2, low=120, high=130)
    stored = {
        "a.weight": numbers(6, 64),
        "a.weight_scale_inv": torch.tensor(0.37),
        "a.activation_scale": torch.tensor(1.0),
        "b.weight": numbers(6, 64),
        "b.scale": exponents,
        "c.weight": fours.view(torch.int8),
        "c.scale": exponents.clone(),
        "d.weight": numbers(576, 300),
        "d.weight_scale_inv": torch.rand(5, 3, generator=generator) + 0.5,
        "e": numbers(2, 6, 64),
        "e_scale_inv": torch.rand(2, 1, 1, generator=generator) + 0.5,
        "q_norm.scale": torch.ones(4),
    }
    save_file(stored, tmp_path / "model.safetensors")
    found = plain_tensors(read_header(tmp_path / "model.safetensors"), Quantisation("fp8", (128, 128)))
    assert set(found) == {"a.weight", "b.weight", "c.weight", "d.weight", "e", "q_norm.scale"}
    values = [0.0, 0.5, 1, 1.5, 2, 3, 4, 6]
    nibbles = [[half for byte in row for half in (byte & 15, byte >> 4)] for row in fours.tolist()]
    scale = (2.0 ** (exponents.float() - 127)).repeat_interleave(32, 1)
    by_hand = {
        "a.weight": stored["a.weight"].float() * 0.37,
        "b.weight": stored["b.weight"].float() * scale,
        "c.weight": torch.tensor([[values[n & 7] * (-1) ** (n >> 3) for n in row] for row in nibbles]) * scale,
        "d.weight": stored["d.weight"].float()
        * stored["d.weight_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)[:576, :300],
        "e": stored["e"].float() * stored["e_scale_inv"],
    }
    for name, expected in by_hand.items():
        assert found[name].shape == tuple(expected.shape) and found[name].nbytes == 2 * expected.numel()
        assert torch.equal(found[name].read(), expected.bfloat16()), name
        assert b"".join(found[name].chunks()) == expected.bfloat16().contiguous().view(torch.uint8).numpy().tobytes()
    assert torch.equal(found["d.weight"].read_rows([5, 570]), by_hand["d.weight"].bfloat16()[[5, 570]])


def test_an_original_is_never_whole_in_memory(tmp_path, quantised, monkeypatch):
    """Quantised tensors are read block after block, and a block is gone when the next is read."""
    folder, read, alive, most = quantised[0], Dequantised.read, {}, []

    def note(self):
        tensor = read(self)
        block = next(int(part) for part in next(iter(self.parts)).split(".") if part.isdigit())
        alive.setdefault(block, []).append(weakref.ref(tensor))
        most.append(sum(any(one() is not None for one in refs) for refs in alive.values()))
        return tensor

    monkeypatch.setattr(Dequantised, "read", note)
    prunus.prune(folder, tmp_path / "out", prunus.PruneRecipe(method="magnitude", sparsity=0.5))
    assert len(alive) > 1 and max(most) <= 2


@pytest.mark.parametrize("shape", [(), (0, 4), (4, 0)])
def test_scales_of_a_single_number_or_of_none_are_refused(shape, tmp_path):
    numbers = torch.zeros(shape).to(torch.float8_e4m3fn)
    save_file({"a.weight": numbers, "a.weight_scale_inv": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(PrunusError, match="do not match its shape"):
        plain_tensors(read_header(tmp_path / "model.safetensors"), Quantisation("fp8"))


def scales_in(folder):
    return next(name for name in load_file(folder / "model.safetensors") if name.endswith(("_scale_inv", "_scales")))


def wrong_scales(folder):
    name = scales_in(folder)
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].repeat(7, 1)}))


def no_scales(folder):
    name = scales_in(folder)
    edit_tensors(folder, lambda tensors: tensors.pop(name))


def not_a_number(folder):
    name = scales_in(folder).removesuffix("_scale_inv")
    edit_tensors(folder, lambda tensors: tensors[name].view(torch.uint8)[0, 0].fill_(0x7F))


@pytest.mark.parametrize("quantised", ["deepseek_v3"], indirect=True)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (wrong_scales, "the scales of '.*', .* do not match its shape"),
        (no_scales, "is F8_E4M3; only F32, F16, BF16 can be pruned"),
        (not_a_number, "holds NaN or infinity"),
    ],
)
def test_a_damaged_original_is_refused(tmp_path, quantised, damage, says):
    damage(quantised[0])
    with pytest.raises(PrunusError, match=says):
        prunus.prune(quantised[0], tmp_path / "out", prunus.PruneRecipe(method="magnitude", sparsity=0.5))
    assert not list(tmp_path.glob("out*"))


def test_other_models_are_refused(tmp_path):
    make_random_model("llama", tmp_path / "model")
    with pytest.raises(PrunusError, match="is not in fp8, mxfp4 or compressed-tensors"):
        prunus.dequantize(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quantised", ["gpt_oss"], indirect=True)
def test_what_cannot_work_on_an_original_says_so(tmp_path, quantised):
    study = read_study(write_study(tmp_path / "study", recipes='[[prune]]\nmethod = "magnitude"\n'))
    with pytest.raises(PrunusError, match="/model' is in mxfp4, whose weights cannot be swapped: run `prunus dequant"):
        open_model(study, study.models[0], quantised[0])
