"""Cost on a GPU: pruning a model of 8 billion weights, and the speed at which vLLM decodes it dense and pruned.

`python benchmarks/gpu.py` prints the card, writes a checkpoint of the shape of Qwen3-8B with random weights (16.4 GB;
`--blocks 2` a small one), prunes it by Magnitude, Wanda and SparseGPT on the GPU, each in a process of its own, and
decodes with vLLM, if that is installed. Needs 50 GB of free disk; everything is deleted at the end. Without a CUDA
GPU it ends with a message and status 2.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scale import METHODS, make, model_bytes


def card() -> str | None:
    """Return the GPU and its driver; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(0)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB; torch {torch.__version__}, CUDA {torch.version.cuda}"


def prune(options: dict[str, Any]) -> dict[str, Any]:
    """Prune on the GPU. seconds: from reading the first weight to writing the last; memory: torch's peak."""
    import torch

    import prunus

    folder = Path(options["folder"])
    recipe = prunus.PruneRecipe(
        method=options["method"],
        sparsity=0.5,
        calibration=str(folder / "calibration.jsonl"),
        sequences=options["sequences"],
        seqlen=options["seqlen"],
    )
    torch.zeros(1, device="cuda")  # so that the start of CUDA is not counted
    started = time.monotonic()
    found = prunus.prune(folder / "model", folder / options["method"], recipe, device="cuda", overwrite=True)
    seconds = time.monotonic() - started
    return {"seconds": seconds, "memory": torch.cuda.max_memory_allocated(), "sparsity": found.sparsity}


def decode(options: dict[str, Any]) -> dict[str, Any]:
    """Return vLLM's output tokens per second with all rows at once; with random weights, stops are ignored."""
    vllm: Any = import_module("vllm")
    choose = random.Random(0)
    rows = [{"prompt_token_ids": [choose.randrange(1000, 100_000) for _ in range(128)]} for _ in range(options["rows"])]
    sampling = vllm.SamplingParams(temperature=1.0, seed=0, max_tokens=options["tokens"], ignore_eos=True)
    engine = vllm.LLM(
        model=options["model"],
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=256 + options["tokens"],
        enable_prefix_caching=False,
    )
    engine.generate(rows[:8], vllm.SamplingParams(max_tokens=8, ignore_eos=True, detokenize=False), use_tqdm=False)
    sampling.detokenize = False
    started = time.monotonic()
    found = engine.generate(rows, sampling, use_tqdm=False)
    seconds = time.monotonic() - started
    return {"rate": sum(len(row.outputs[0].token_ids) for row in found) / seconds, "version": vllm.__version__}


WORKERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"make": make, "prune": prune, "decode": decode}


def in_own_process(worker: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a job in its own process, which frees the GPU; it prints JSON as its last line."""
    command = [sys.executable, __file__, "--worker", json.dumps([worker, options])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ)
    if done.returncode:
        sys.exit(f"{worker} failed; its output is above")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("gpu"), help="for models, deleted at the end (./gpu)")
    parser.add_argument("--blocks", type=int, default=36, help="fewer make a smaller model")
    parser.add_argument("--sequences", type=int, default=128, help="calibration sequences")
    parser.add_argument("--seqlen", type=int, default=2048, help="tokens of each")
    parser.add_argument("--rows", type=int, default=256, help="sequences that vLLM decodes at once")
    parser.add_argument("--tokens", type=int, default=1024, help="decoded of each")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker, options = json.loads(arguments.worker)
        print(json.dumps(WORKERS[worker](options)))
        return
    name = card()
    if name is None:
        print("no CUDA GPU here: nothing is measured", file=sys.stderr)
        sys.exit(2)
    folder = arguments.folder.resolve()
    if folder.exists():
        sys.exit(f"{folder} already exists; delete it or choose another --folder")
    options = vars(arguments) | {"folder": str(folder), "family": "qwen3"}
    try:
        measure(name, options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(name: str, options: dict[str, Any], folder: Path) -> None:
    """Measure everything and print two tables."""
    size = model_bytes(options)
    folder.mkdir(parents=True)
    if (free := shutil.disk_usage(folder).free) < 3 * size:
        sys.exit(f"{folder}: {3 * size / 1e9:.0f} GB of free disk are needed, {free / 1e9:.0f} are available")
    print(f"{name}\n{size / 1e9:.1f} GB of weights, {options['sequences']} x {options['seqlen']} calibration tokens\n")
    in_own_process("make", options)
    print("| method | seconds | GPU memory, GB | sparsity |\n|---|---|---|---|", flush=True)
    for method in METHODS:
        found = in_own_process("prune", options | {"method": method})
        cells = f"{found['seconds']:.0f} | {found['memory'] / 1e9:.1f} | {100 * found['sparsity']:.1f} %"
        print(f"| {method} | {cells} |", flush=True)
        if method != "wanda":
            shutil.rmtree(folder / method)
    if find_spec("vllm") is None:
        print("\nvLLM is not installed: pip install '.[vllm]' to measure decoding", file=sys.stderr)
        return
    rates = {}
    for shown in ("model", "wanda"):
        found = in_own_process("decode", options | {"model": str(folder / shown)})
        rates[shown] = found["rate"]
    print(f"\nvLLM {found['version']}, {options['rows']} rows of {options['tokens']} tokens\n")
    print("| weights | output tokens/s | of dense |\n|---|---|---|")
    for shown, rate in rates.items():
        print(f"| {'dense' if shown == 'model' else 'Wanda 50 %'} | {rate:,.0f} | {rate / rates['model']:.2f} |")


if __name__ == "__main__":
    main()
