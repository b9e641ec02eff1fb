"""A quantised original (FP8, MXFP4) as a plain checkpoint in bfloat16, written block by block.

transformers' own conversion mapping reads the stored numbers and their scales; its reverse without a quantiser gives
the names and shapes of the plain checkpoint. Memory holds one block.
"""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.quantizers.auto import AutoHfQuantizer

from prunus.checkpoint.architecture import Architecture
from prunus.checkpoint.files import DEQUANTISED, INDEX, MANIFEST, MANIFEST_FORMAT, find_tensors, versions
from prunus.checkpoint.names import Names
from prunus.checkpoint.partial import check_space, check_target, copy_companions, disk_errors, replace_folder
from prunus.checkpoint.safetensors_file import READABLE, read_header, write_file, write_text
from prunus.checkpoint.source import check_folder, load_config, read_object, resolve
from prunus.errors import PrunusError
from prunus.progress import Steps

# What stands for a quantised tensor beside, or at the end of, its own name.
_SCALES, _BLOCKS = re.compile(r"_(scale_inv|scales)$"), "_blocks"


def dequantize(model: str | Path, out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a model in FP8 or MXFP4 (folder or hub id) in bfloat16 to the folder out, which can be pruned; a summary.

    The same numbers as transformers' from_pretrained with `dequantize`. Two to four times the original's disk is taken.
    Tensors that transformers does not load, such as heads for several tokens at once, stay behind. Wrong input raises
    PrunusError and leaves nothing behind.
    """
    started = time.monotonic()
    folder, target = resolve(model), Path(out)
    check_folder(folder)
    check_target(folder, target, overwrite)
    quantisation = read_object(folder / "config.json").get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    if not isinstance(quantisation, dict) or method not in DEQUANTISED:
        raise PrunusError(f"{folder} is not in {' or '.join(DEQUANTISED)}; there is nothing to make bfloat16 of")
    config: Any = load_config(folder)
    tensors = find_tensors(folder)
    del config.quantization_config
    architecture = Architecture(config, torch.bfloat16)
    quantizer = AutoHfQuantizer.from_config({**quantisation, "dequantize": True}, pre_quantized=True)
    names = Names(architecture.model, tensors, quantizer)
    plain = Names(architecture.model, [n.removesuffix(_BLOCKS) for n in tensors if not _SCALES.search(n)])
    if strange := next((stored for stored in tensors.values() if stored.dtype not in READABLE), None):
        raise PrunusError(f"{strange.file} holds {strange.dtype}, which cannot be read")
    whole = list(architecture.model.state_dict())
    prefixes = [architecture.block_prefix(index) for index in range(len(architecture.layers))]
    outside = [name for name in whole if not name.startswith(tuple(prefixes))]
    parts = [[name for name in whole if name.startswith(prefix)] for prefix in prefixes] + [outside]
    needed = 2 * sum(tensor.numel() for tensor in architecture.model.state_dict().values())
    check_space(target.absolute(), needed)

    def read(name: str) -> Tensor:
        return tensors[name].read()

    unfinished = target.resolve().parent / f"{target.name}.dequantizing"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with disk_errors(unfinished, needed), Steps("dequantizing", len(parts), unit="parts") as steps:
            unfinished.mkdir(parents=True)
            for number, part in enumerate(parts, 1):
                found = names.read(part, read)
                for name, tensor in found.items():
                    origin = names.origin(name)
                    if origin is not None and origin.converter is not None and tensor.is_floating_point():
                        found[name] = tensor.to(torch.bfloat16)
                file = unfinished / f"model-{number:05d}-of-{len(parts):05d}.safetensors"
                write_file(file, plain.as_stored(found, read), sync=False)
                steps.advance()
            _write_rest(folder, unfinished, str(model), method)
        replace_folder(unfinished, target, overwrite)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    left = [name for name in names.unknown if not _SCALES.search(name)]
    warnings = [f"{len(left)} tensors that transformers does not load stay behind, such as '{left[0]}'"] if left else []
    return {
        "out": str(target),
        "from": method,
        "blocks": len(prefixes),
        "seconds": time.monotonic() - started,
        "warnings": warnings,
    }


def _write_rest(folder: Path, unfinished: Path, name: str, method: str) -> None:
    """Index, config.json, manifest, and what goes with the weights."""
    copy_companions(folder, unfinished)
    weight_map = {n: file.name for file in sorted(unfinished.glob("*.safetensors")) for n in read_header(file)}
    total = sum(file.stat().st_size for file in unfinished.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_text(unfinished / INDEX, json.dumps(index, indent=2) + "\n")
    config = read_object(folder / "config.json")
    del config["quantization_config"]
    write_text(unfinished / "config.json", json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n")
    origin = {"name": name, "checksum": ""}
    step = {"action": "dequantize", "recipe": {"method": method}, "versions": versions(), "source": origin}
    manifest = {"prunus": versions()["prunus"], "format": MANIFEST_FORMAT, "history": [{**step, "warnings": []}]}
    write_text(unfinished / MANIFEST, json.dumps(manifest, indent=1) + "\n")
