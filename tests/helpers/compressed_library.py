"""What the library compressed-tensors makes of some matrices and of a model's configuration, as recorded in tests/data.

Run with a Python that has the library (that of vLLM has it), it writes the recording again:
python tests/helpers/compressed_library.py
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RECORDED = Path(__file__).parents[1] / "data" / "compressed_tensors"
# name: format, settings of weights, (outputs, inputs), dtype of scales
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, int], torch.dtype]] = {
    "w4-g32": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, (6, 96), torch.bfloat16),
    "w4-row": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}, (5, 20), torch.float16),
    "w4-zero": (
        "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}, (11, 64),
        torch.bfloat16,
    ),
    "w4-order": (
        "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": "group"}, (4, 64),
        torch.bfloat16,
    ),
    "w8-g32": ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32}, (4, 64), torch.float32),
    "w8-row": ("int-quantized", {"num_bits": 8, "strategy": "channel"}, (7, 24), torch.bfloat16),
    "w8-zero": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}, (7, 24), torch.float32),
    "w8-whole": ("int-quantized", {"num_bits": 8, "strategy": "tensor"}, (3, 16), torch.bfloat16),
}  # fmt: skip
CONFIGS = {"w4": ("W4A16", {"group_size": 64}), "w8": ("W8A8", {})}


def compressed() -> dict[str, Tensor]:
    """{case/tensor: value}: the tensors that the library writes, and `weight` as it reads them again."""
    quantization = import_module("compressed_tensors.quantization")
    registry = import_module("compressed_tensors.compressors").BaseCompressor
    found: dict[str, Tensor] = {}
    for seed, (name, (form, settings, shape, dtype)) in enumerate(CASES.items()):
        args = quantization.QuantizationArgs(**settings)
        scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args, format=form)
        draw = torch.Generator().manual_seed(seed)
        weight = torch.randn(shape, generator=draw).to(dtype)
        groups = {"group": shape[1] // 32, "channel": 1, "tensor": 1}[settings["strategy"]]
        rows = 1 if settings["strategy"] == "tensor" else shape[0]
        top = 2 ** settings["num_bits"] / 5
        scale = ((torch.rand(rows, groups, generator=draw) + 0.5) / top).to(dtype)
        state = {"weight": weight, "weight_scale": scale if rows > 1 else scale.flatten()}
        if name == "w4-g32":
            state["weight_scale"][1] *= -1
        if not args.symmetric:
            low = 4 if args.num_bits == 4 else 100
            state["weight_zero_point"] = torch.randint(-low, low, scale.shape, generator=draw).to(torch.int8)
        if name == "w4-order":
            state["weight_g_idx"] = (torch.randperm(shape[1], generator=draw) % groups).int()
        compressor = registry.get_value_from_registry(form)
        written = compressor.compress(dict(state), scheme)
        read = compressor.decompress(dict(written), scheme)
        kept = {key: value.contiguous() for key, value in written.items()}
        found |= {f"{name}/{key}": value for key, value in kept.items()} | {f"{name}/read": read["weight"].contiguous()}
    return found


def configs() -> dict[str, Any]:
    """The quantization_config that the library makes of a model with one quantised Linear and another that is not."""
    quantization = import_module("compressed_tensors.quantization")
    preset = import_module("compressed_tensors.quantization.quant_scheme").preset_name_to_scheme
    found = {}
    for name, (scheme_name, changes) in CONFIGS.items():
        scheme = preset(scheme_name, ["Linear"])
        form = "pack-quantized" if name == "w4" else "int-quantized"
        weights = scheme.weights.model_copy(update=changes)
        scheme = scheme.model_copy(update={"weights": weights, "format": form})
        settings = quantization.QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
        model = nn.ModuleDict({"q_proj": nn.Linear(64, 8), "lm_head": nn.Linear(8, 8)})
        quantization.apply_quantization_config(model, settings)
        model["q_proj"].quantization_status = quantization.QuantizationStatus.COMPRESSED
        made = quantization.QuantizationConfig.from_pretrained(model, format=[form])
        found[name] = json.loads(made.model_dump_json())
    return found


if __name__ == "__main__":
    RECORDED.mkdir(exist_ok=True)
    save_file(compressed(), RECORDED / "matrices.safetensors")
    (RECORDED / "configs.json").write_text(json.dumps(configs(), indent=1) + "\n")
