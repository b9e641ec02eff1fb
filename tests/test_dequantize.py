"""Quantised originals in bfloat16: the numbers that transformers makes of them, and a model that can be pruned."""

import json
from typing import Any

import pytest
import torch
from random_models import make_random_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

import prunus
from prunus.checkpoint.files import Checkpoint
from prunus.errors import PrunusError

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


def test_the_numbers_are_those_of_transformers_and_can_be_pruned(tmp_path, quantised):
    folder, asked = quantised
    with pytest.raises(PrunusError, match=r"is quantised; run `prunus dequantize .* OUT` and use OUT"):
        Checkpoint(folder)
    told = prunus.dequantize(folder, tmp_path / "plain")
    assert told["from"] in ("fp8", "mxfp4") and told["warnings"] == []
    expected = AutoModelForCausalLM.from_pretrained(folder, quantization_config=asked, dtype=torch.bfloat16)
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
    assert made.dtype == torch.bfloat16 and made.manifest["history"][0]["action"] == "dequantize"
    prunus.prune(tmp_path / "plain", tmp_path / "out", prunus.PruneRecipe(method="magnitude", sparsity=0.5))
    assert prunus.inspect(tmp_path / "out")["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_other_models_are_refused(tmp_path):
    make_random_model("llama", tmp_path / "model")
    with pytest.raises(PrunusError, match="is not in fp8 or mxfp4"):
        prunus.dequantize(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
