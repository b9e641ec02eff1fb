"""Prunus compared with llm-compressor on one model and one thread: CPU seconds, memory, perplexity.

`python benchmarks/pruning.py` fetches SmolLM2-135M-Instruct into .cache and installs llm-compressor into a virtual
environment of its own there (1.4 GB). Both prune to 50 % on the same 64 x 512 tokens; perplexity is on the same
held-out text. CPU seconds cover loading, calibrating, pruning and saving, without imports. Each run is a process, and
adds a line to --rows, of which the table is printed.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from math import exp, expm1
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from docstrings import docstrings
from finished import add_line

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
MODEL, PEER, WORK = CACHE / "smollm2", CACHE / "llmcompressor", CACHE / "benchmark"
PEER_PACKAGE, PEER_BYTES = "llmcompressor==0.14.0.1", 2_000_000_000
SAMPLES, SEQLEN, HELD_OUT, ROUNDS = 64, 512, 16, 7
T_95 = 2.131  # quantile of Student's t with HELD_OUT - 1 degrees of freedom
OURS = {
    "magnitude": ("magnitude", "pruned", 0.5),
    "wanda, two passes (pruned)": ("wanda", "pruned", 0.5),
    "wanda, one pass (dense)": ("wanda", "dense", 0.5),
    "wanda, one pass (true_sequential)": ("wanda", "true_sequential", 0.5),
    "sparsegpt, two passes (pruned)": ("sparsegpt", "pruned", 0.5),
    "sparsegpt, one pass (true_sequential)": ("sparsegpt", "true_sequential", 0.5),
}
THEIRS = {"llm-compressor wanda": "WandaPruningModifier", "llm-compressor sparsegpt": "SparseGPTModifier"}


def write_tokens() -> None:
    """Write token ids for calibration, and held-out ones from other documents."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    ids = [i for text in docstrings() for i in tokenizer.encode(text + "\n\n", add_special_tokens=False).ids]
    rows = [ids[i : i + SEQLEN] for i in range(0, (SAMPLES + 1 + HELD_OUT) * SEQLEN, SEQLEN)]
    for name, chosen in (("calibration", rows[:SAMPLES]), ("held_out", rows[SAMPLES + 1 :])):
        (WORK / f"{name}.jsonl").write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in chosen))


def cpu_seconds() -> float:
    """Return the CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def memory(which: str) -> float:
    """Return resident MB: VmRSS is current, VmHWM the peak. ru_maxrss would include the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) * 1024 / 1e6


def prune_ours(method: str, propagation: str, sparsity: float, out: Path) -> None:
    """Prune once with Prunus."""
    import prunus

    recipe = prunus.PruneRecipe.from_json(
        {
            "method": method,
            "sparsity": sparsity,
            "propagation": propagation,
            "calibration": str(WORK / "calibration.jsonl"),
            "sequences": SAMPLES,
            "seqlen": SEQLEN,
        }
    )
    prunus.prune(MODEL, out, recipe, overwrite=True)


def prune_theirs(modifier: str, out: Path) -> None:
    """Prune once with llm-compressor, in its own environment."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]  # of the other environment
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers import pruning  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [json.loads(line)["token_ids"] for line in (WORK / "calibration.jsonl").read_text().splitlines()]
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="bfloat16")
    recipe = getattr(pruning, modifier)(sparsity=0.5, ignore=["re:.*lm_head"])
    oneshot(model=model, dataset=data, recipe=[recipe], max_seq_length=SEQLEN, num_sequences=SAMPLES)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(out)


PRUNE: dict[str, Callable[..., None]] = {"ours": prune_ours, "theirs": prune_theirs}


def worker(kind: str, arguments: Any, out: Path) -> None:
    """Do one job in this process and print its cost as the last line."""
    import torch

    torch.set_num_threads(1)
    if kind == "losses":
        print(json.dumps({"losses": losses(out)}))
        return
    if kind == "copying":
        print(json.dumps(against_copying(out)))
        return
    if kind == "ours":
        import_module("prunus.pruning.prune.prune")
    else:
        import_module("llmcompressor.modifiers.pruning")
    import_module("transformers.models.llama.modeling_llama")
    before, cpu, started = memory("VmRSS"), cpu_seconds(), time.monotonic()
    PRUNE[kind](*arguments, out)
    print(
        json.dumps(
            {
                "cpu": cpu_seconds() - cpu,
                "wall": time.monotonic() - started,
                "peak": memory("VmHWM"),
                "growth": memory("VmHWM") - before,
            }
        )
    )


def losses(model: Path) -> list[float]:
    """Return nats per token of each held-out sequence; the exponential of their mean is the perplexity."""
    import torch

    from prunus.checkpoint.checkpoint import Checkpoint
    from prunus.pruning.perplexity import find_head, load_model, negative_log_likelihood

    network = load_model(Checkpoint(model), torch.device("cpu"))
    head = find_head(network)
    rows = [json.loads(line)["token_ids"] for line in (WORK / "held_out.jsonl").read_text().splitlines()]
    with torch.inference_mode():
        return [negative_log_likelihood(network, head, torch.tensor([row])) / (len(row) - 1) for row in rows]


def against(ours: list[float], theirs: list[float]) -> str:
    """Return how much our perplexity exceeds theirs, with a paired 95 % t interval over held-out sequences."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    half = T_95 * stdev(differences) / len(differences) ** 0.5
    low, middle, high = (100 * expm1(mean(differences) + part) for part in (-half, 0, half))
    return f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]"


def measure(name: str, kind: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """A line for the rows: the costs of one worker, and the losses of its output."""
    out = WORK / hashlib.sha256(name.encode()).hexdigest()[:8]
    python = str(PEER / "bin/python") if kind == "theirs" else sys.executable
    result = {"name": name} | run_worker(python, kind, arguments, out)
    result["losses"] = run_worker(sys.executable, "losses", (), out)["losses"]
    shutil.rmtree(out)
    print(f"{name}: {result}", file=sys.stderr, flush=True)
    return result


def run_worker(python: str, kind: str, arguments: tuple[Any, ...], out: Path) -> dict[str, Any]:
    """Run a worker and return the JSON of its last line."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [python, __file__, "--worker", json.dumps([kind, arguments, str(out)])]
    done = subprocess.run(command, env=environment, cwd=WORK, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def prepare(peer: bool) -> None:
    """Fetch the model, write the tokens and install llm-compressor."""
    WORK.mkdir(parents=True, exist_ok=True)
    if not (MODEL / "config.json").exists():
        subprocess.run([sys.executable, ROOT / "scripts/fetch_model.py", "smollm2", MODEL], check=True)
    write_tokens()
    if peer:
        install(PEER_PACKAGE, PEER)


def install(package: str, folder: Path) -> None:
    """Make an environment with a package, unless the folder has one."""
    if not (folder / "bin/python").exists():
        if (free := shutil.disk_usage(CACHE).free) < PEER_BYTES:
            sys.exit(f"{package} needs {PEER_BYTES / 1e9:.0f} GB of disk, {free / 1e9:.1f} are free")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", package], check=True)


def against_copying(out: Path) -> dict[str, dict[str, float]]:
    """Return median seconds of Magnitude and of copying the model's files, alternating, each until all is on disk."""
    import prunus
    from prunus.checkpoint import safetensors_file

    def copy() -> None:
        shutil.copytree(MODEL, out)
        for path in out.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())

    def prune() -> None:
        safetensors_file.forget()  # as in its own process
        prunus.prune(MODEL, out, prunus.PruneRecipe(method="magnitude", sparsity=0.5))

    ways = {"copy": copy, "magnitude": prune}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for name in ("magnitude", *tuple(ways) * ROUNDS):
        os.sync()
        cpu, started = cpu_seconds(), time.monotonic()
        ways[name]()
        found[name].append((time.monotonic() - started, cpu_seconds() - cpu))
        shutil.rmtree(out)
    del found["magnitude"][0]  # imports
    return {
        name: dict(zip(("wall", "cpu"), map(median, zip(*costs, strict=True)), strict=True))
        for name, costs in found.items()
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown of the lines: costs beside those of llm-compressor with the same method, and perplexity."""
    shown = ["| run | CPU s | relative | peak RSS, MB | relative | perplexity | above llm-compressor's, % |"]
    shown.append("|---|" + "---:|" * 6)
    peers = {line["name"].split()[-1]: line for line in lines if line["name"] in THEIRS}
    for line in lines:
        name, cells = line["name"], [""] * 4
        if "cpu" in line:
            peer = peers.get(name.split(",")[0], line if name in THEIRS else None)
            for place, (cost, digits) in enumerate({"cpu": 1, "peak": 0}.items()):
                relative = "" if peer is None else f"{line[cost] / peer[cost]:.2f}"
                cells[2 * place : 2 * place + 2] = f"{line[cost]:.{digits}f}", relative
        peer = peers.get(name.split(",")[0])
        beside = "" if peer is None else against(line["losses"], peer["losses"])
        shown.append("| " + " | ".join([name, *cells, f"{exp(mean(line['losses'])):.2f}", beside]) + " |")
    return "\n".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("ours", "theirs"), action="append", help="default: both")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; more than one costs a few more CPU seconds"
    )
    parser.add_argument("--rows", type=Path, help="add a line for each run, as in benchmarks/pruning.jsonl")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        kind, rest, out = json.loads(arguments.worker)
        worker(kind, rest, Path(out))
        return
    parts = arguments.only or ["ours", "theirs"]
    prepare("theirs" in parts)
    jobs: list[tuple[str, str, tuple[Any, ...]]] = []
    if "theirs" in parts:
        jobs += [(name, "theirs", (modifier,)) for name, modifier in THEIRS.items()]
    if "ours" in parts:
        jobs += [(name, "ours", settings) for name, settings in OURS.items()]
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    if "ours" in parts:
        for name, cost in run_worker(sys.executable, "copying", (), WORK / "copy").items():
            print(f"{name}: {cost['wall']:.2f} s, {cost['cpu']:.2f} CPU s")
    lines = [added(arguments.rows, {"name": "dense"} | run_worker(sys.executable, "losses", (), MODEL))]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        lines += pool.map(lambda job: added(arguments.rows, measure(*job)), jobs)
    print(table(lines))


def added(rows: Path | None, line: dict[str, Any]) -> dict[str, Any]:
    """The line with losses to six digits, which is added to the file, if there is one."""
    line = line | {"losses": [round(loss, 6) for loss in line["losses"]]}
    add_line(rows, line)
    return line


if __name__ == "__main__":
    main()
