"""What 4 and 8 bits cost SmolLM2, beside llm-compressor and auto-round: `python benchmarks/quantise.py FOLDER`.

All calibrate on the same 16 x 512 tokens; perplexity is on the held-out text of benchmarks/quality.py, by the same code
for every folder. Each cell is a process with one thread: CPU seconds cover loading, calibrating, quantising and saving,
without imports; the peak of memory includes them. SparseGPT is there for its time.

Two ways to the same bytes are compared, too, for which no engine has a format: 3 bits, and 4 bits of those weights that
are not zero, beside a bit of each that says whether it is. 3 bits are simulated: the folder holds them in 4.

FOLDER keeps the models. Each finished cell is one line of benchmarks/quantise.jsonl; delete a line to measure it again.
--table prints the table. Several such processes may run at a time, with other --only or --seed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any

from finished import add_line, read_lines
from pruning import CACHE, MODEL, PEER, SEQLEN, cpu_seconds, install, memory, prepare

RESULTS, SEEDS, SAMPLES = Path(__file__).with_suffix(".jsonl"), 3, 16
GPTQ: dict[str, dict[str, Any]] = {
    "GPTQ W4 g64": {"bits": 4, "group": "64"},
    "GPTQ W4 g32": {"bits": 4, "group": "32"},
    "GPTQ W8A8": {"bits": 8},
}
OURS = GPTQ | {
    "GPTQ W4 g64, recovered": {"bits": 4, "group": "64", "recover": True},
    "SparseGPT 50 %": {"method": "sparsegpt", "sparsity": 0.5, "propagation": "true_sequential"},
    **{name.replace("GPTQ", "RTN"): settings | {"method": "rtn"} for name, settings in GPTQ.items()},
    "GPTQ 3 bits g64": {"bits": 4, "group": "64"},
    "25 % zeros, W4 g64": {"bits": 4, "group": "64", "zeros": 0.25},
    "50 % zeros, W4 g64": {"bits": 4, "group": "64", "zeros": 0.5},
}
THEIRS: dict[str, dict[str, Any]] = {
    "llm-compressor GPTQ W4 g64": {},
    "llm-compressor GPTQ W4 g64, observer mse": {"observer": "memoryless_mse"},
}
AUTO_ROUND, AUTO_ROUND_AT, AUTO_ROUND_PACKAGE = "auto-round W4 g64", CACHE / "auto-round", "auto-round==0.15.1"
ORDER = (
    "GPTQ W4 g64", "GPTQ W4 g64, recovered", "llm-compressor GPTQ W4 g64", "SparseGPT 50 %", "GPTQ W8A8", "GPTQ W4 g32",
    "llm-compressor GPTQ W4 g64, observer mse", *(name for name in OURS if name.startswith("RTN")), AUTO_ROUND,
    "GPTQ 3 bits g64", "25 % zeros, W4 g64", "50 % zeros, W4 g64",
)  # fmt: skip


def ours(settings: dict[str, Any], calibration: str, out: Path) -> None:
    """Quantise or prune once with Prunus."""
    import prunus

    data: dict[str, Any] = {"calibration": calibration, "sequences": SAMPLES, "seqlen": SEQLEN}
    if settings.get("method") == "rtn":
        data = {}
    if zeros := settings.get("zeros"):
        pruning = prunus.PruneRecipe(method="sparsegpt", sparsity=zeros, **data)
        rest = {key: value for key, value in settings.items() if key != "zeros"}
        prunus.apply_steps(MODEL, out, (pruning, prunus.QuantizeRecipe(**rest, **data)))
    elif "bits" in settings:
        prunus.quantize(MODEL, out, prunus.QuantizeRecipe(**settings, **data))
    else:
        prunus.prune(MODEL, out, prunus.PruneRecipe(**settings, **data))


def of_3_bits() -> None:
    """Let every grid in this process have 3 bits."""
    from prunus.pruning import quantize
    from prunus.pruning.bits import grid

    grid.LEAST[3] = grid.LEAST[4]
    quantize.Grid = lambda _, *rest: grid.Grid(3, *rest)  # pyright: ignore


def theirs(settings: dict[str, Any], calibration: str, out: Path) -> None:
    """Quantise once with llm-compressor, in its own environment."""
    from compressed_tensors.quantization import (  # pyright: ignore[reportMissingImports]
        QuantizationArgs,
        QuantizationScheme,
    )
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers.gptq import GPTQModifier  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = token_ids(calibration)
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="bfloat16")
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=64, **settings)
    groups = {"all": QuantizationScheme(targets=["Linear"], weights=weights)}
    recipe = GPTQModifier(config_groups=groups, ignore=["re:.*lm_head"])
    oneshot(model=model, dataset=data, recipe=[recipe], max_seq_length=SEQLEN, num_sequences=len(rows))
    model.save_pretrained(out, save_compressed=True)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(out)


def auto_round(settings: dict[str, Any], calibration: str, out: Path) -> None:
    """Quantise once with auto-round's defaults, in its own environment; what it writes are the rounded weights."""
    from auto_round import AutoRound  # pyright: ignore[reportMissingImports]
    from torch import tensor
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [tensor([row]) for row in token_ids(calibration)]
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="bfloat16")
    data: dict[str, Any] = {"dataset": rows, "nsamples": len(rows), "seqlen": SEQLEN}
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    AutoRound(model, tokenizer, **settings, **data, device_map="cpu").quantize_and_save(str(out), format="fake")
    (inner,) = out.iterdir()
    for file in inner.iterdir():
        file.rename(out / file.name)


def token_ids(calibration: str) -> list[list[int]]:
    """The sequences of a file."""
    return [json.loads(line)["token_ids"] for line in Path(calibration).read_text().splitlines()]


def program(name: str) -> tuple[str, str, Any, dict[str, Any]]:
    """Its Python, a module whose import is not counted, the function, and its settings."""
    if name in OURS:
        return sys.executable, "prunus.pruning.quantize", ours, OURS[name]
    if name == AUTO_ROUND:
        settings = {"bits": 4, "group_size": 64, "sym": True}
        return str(AUTO_ROUND_AT / "bin/python"), "auto_round", auto_round, settings
    return str(PEER / "bin/python"), "llmcompressor.modifiers.gptq", theirs, THEIRS[name]


def worker(name: str, calibration: str, out: Path) -> None:
    """Run one cell in this process, and print its cost as the last line."""
    import torch

    torch.set_num_threads(1)
    _, module, function, settings = program(name)
    import_module(module)
    import_module("transformers.models.llama.modeling_llama")
    if "3 bits" in name:
        of_3_bits()
    before = cpu_seconds()
    function(settings, calibration, out)
    print(json.dumps({"cpu_s": round(cpu_seconds() - before, 1), "peak_mb": round(memory("VmHWM"))}))


def measure(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Make a cell's model in a process of its own, and measure its perplexity."""
    import quality

    import prunus
    from prunus.disk import partial_folder

    out = folder / f"{name}-{seed}".replace(" ", "-").replace("%", "")
    for old in (out, partial_folder(out)):
        shutil.rmtree(old, ignore_errors=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [program(name)[0], __file__, "--worker", name, str(quality.text(f"calibration-{seed}")), str(out)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = prunus.perplexity(out, quality.text("held_out"), seqlen=SEQLEN).perplexity
    return {"name": name, "seed": seed, "perplexity": found} | json.loads(done.stdout.strip().splitlines()[-1])


def table(lines: list[dict[str, Any]]) -> str:
    """A row per name: the perplexity of each seed, and means of the costs."""
    rows = ["| | perplexity | mean | CPU s | peak MB |", "|---|---|---:|---:|---:|"]
    for name in dict.fromkeys(line["name"] for line in lines):
        of = [line for line in lines if line["name"] == name]
        each = [line["perplexity"] for line in of]
        costs = [f"{mean(line[cost] for line in of):.0f}" if cost in of[0] else "" for cost in ("cpu_s", "peak_mb")]
        rows.append(f"| {name} | {', '.join(f'{p:.2f}' for p in each)} | {mean(each):.2f} | {' | '.join(costs)} |")
    return "\n".join(rows)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--only", action="append", choices=("dense", *ORDER))
    parser.add_argument("--seed", action="append", type=int, choices=range(SEEDS), help="default: all")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Begin no cell after this time.")
    parser.add_argument("--table", action="store_true", help="Only print the table.")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        name, calibration, out = asked.worker
        worker(name, calibration, Path(out))
        return
    if not asked.table:
        if asked.folder is None:
            parser.error("give FOLDER or --table")
        until = time.monotonic() + 60 * asked.minutes
        run(asked.folder, asked.only or ("dense", *ORDER), asked.seed or range(SEEDS), until)
    print(table(read_lines(RESULTS)))


def run(folder: Path, names: Sequence[str], seeds: Sequence[int], until: float) -> None:
    """Measure the cells of these names that have no line yet."""
    import quality
    import torch

    import prunus

    torch.set_num_threads(1)
    prepare(peer=any(name in THEIRS for name in names))
    quality.prepare()
    if AUTO_ROUND in names:
        install(AUTO_ROUND_PACKAGE, AUTO_ROUND_AT)
    folder.mkdir(parents=True, exist_ok=True)
    finished = {(line["name"], line["seed"]) for line in read_lines(RESULTS)}
    for seed in seeds:
        for name in names:
            once = name == "dense" or name.startswith("RTN")
            if (name, seed) in finished or (once and seed) or time.monotonic() > until:
                continue
            if name == "dense":
                found = prunus.perplexity(MODEL, quality.text("held_out"), seqlen=SEQLEN).perplexity
                line = {"name": name, "seed": seed, "perplexity": found}
            else:
                line = measure(name, seed, folder)
            add_line(RESULTS, line)
            print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
