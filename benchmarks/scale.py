"""Cost of pruning a model of 8 billion weights on a small machine: time, memory, and share of the machine's limits.

`python benchmarks/scale.py` writes a checkpoint of the shape of Qwen3-8B with random weights (16.4 GB, a file per
block, one in memory at a time), measures the machine's disk and matrix products, then prunes by Magnitude, Wanda and
SparseGPT, each in its own process, and deletes everything. It needs 33 GB of free disk (8 GB with `--blocks 2`), and
ends with a message where there is less.

`--family qwen3_moe` does the same with the shape of Qwen3-30B-A3B (128 experts of 768, 8 per token; 2.5 GB of disk for
each block and 2.5 GB more). Its 48 blocks need 123 GB; `--blocks 2` has the same memory and the same seconds per block.
`--method experts` is `prunus experts` with its defaults: a quarter of the experts is removed, by REAP. `--method width`
is `prunus width` with its defaults: a quarter of the channels is removed, by OBS.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

HIDDEN, FEED, HEADS, KEY_VALUE_HEADS, HEAD, VOCABULARY = 4096, 12288, 32, 8, 128, 151936
QUERY, KEY = HEADS * HEAD, KEY_VALUE_HEADS * HEAD
# Shapes (O, I) of the Linears of a block, grouped by the input that they share.
LINEARS = {
    "attention": [(QUERY, HIDDEN), (KEY, HIDDEN), (KEY, HIDDEN)],
    "output": [(HIDDEN, QUERY)],
    "mlp": [(FEED, HIDDEN), (FEED, HIDDEN)],
    "down": [(HIDDEN, FEED)],
}
MOE_HIDDEN, MOE_FEED, EXPERTS, CHOSEN, MOE_KEY = 2048, 768, 128, 8, 512
WEIGHT_BYTES = 2
PROBE = 2_000_000_000  # bytes of the file that measures the disk's speed
MARGIN = 500_000_000
METHODS = ("magnitude", "wanda", "sparsegpt")


class Cost(NamedTuple):
    """Operations that a run needs by its shapes: in bfloat16 (running blocks) and in float32 (everything else)."""

    half: float = 0
    single: float = 0


class Ceiling(NamedTuple):
    """Limits of this machine: bytes per second of the disk, operations per CPU second of matrix products.

    CPU seconds are used so that other processes do not lower the limit.
    """

    read: float
    write: float
    copy: float
    half: float
    single: float


class Group(NamedTuple):
    """Linears that read the same input. copies: how many such groups a block has (experts); chosen: per token."""

    shapes: list[tuple[int, int]]
    copies: int = 1
    chosen: int = 1


def groups_of(options: dict[str, Any]) -> list[Group]:
    """Return the groups of a block, in the order of a forward pass."""
    if options["family"] == "qwen3":
        return [Group(shapes) for shapes in LINEARS.values()]
    attention = [(QUERY, MOE_HIDDEN), (MOE_KEY, MOE_HIDDEN), (MOE_KEY, MOE_HIDDEN)]
    first = Group([(MOE_FEED, MOE_HIDDEN)] * 2, EXPERTS, CHOSEN)
    last = Group([(MOE_HIDDEN, MOE_FEED)], EXPERTS, CHOSEN)
    return [Group(attention), Group([(MOE_HIDDEN, QUERY)]), first, last]


def weights_of(groups: list[Group]) -> int:
    """Return the number of weights."""
    return sum(group.copies * rows * columns for group in groups for rows, columns in group.shapes)


def hidden_of(options: dict[str, Any]) -> int:
    """Return the hidden size."""
    return HIDDEN if options["family"] == "qwen3" else MOE_HIDDEN


def model_bytes(options: dict[str, Any]) -> int:
    """Return the size of the checkpoint; norms and routers are negligible."""
    return WEIGHT_BYTES * (options["blocks"] * weights_of(groups_of(options)) + 2 * VOCABULARY * hidden_of(options))


def cost(options: dict[str, Any]) -> Cost:
    """Return the operations of a run: forward passes; half of XᵀX; factors of the inverse; updates of weights."""
    if options["method"] == "magnitude":
        return Cost()
    groups = groups_of(options)
    used = [sum(group.chosen * rows * columns for rows, columns in group.shapes) for group in groups]
    blocks, length = options["blocks"], options["seqlen"]
    tokens = options["sequences"] * length
    seen = tokens * (2 * sum(used[:-1]) + 2 * QUERY * length)  # attention is causal: half of T x T
    whole = seen + tokens * 2 * used[-1]
    if options["method"] == "experts":  # a score is of what an expert gives out, in the last block too
        return Cost(blocks * whole)
    if options["method"] == "width":  # in float32; whole blocks on both streams, narrow ones on the narrow stream
        last = groups[-1]
        rows, feed = last.shapes[0]
        kept = 0.75 * feed
        narrow = (blocks - 1) * (whole - 0.25 * tokens * 2 * (used[-2] + used[-1]))
        sums = last.chosen * tokens * (feed**2 + 2 * rows * feed)
        obs = feed**3 + 2 * rows * feed**2 + feed**2 * (feed + rows) / 2  # the inverse, a first fit, and the updates
        fit = 4 * rows * feed**2 + kept**3 / 3 + 2 * rows * kept**2  # with its error
        return Cost(0, blocks * (2 * whole + sums + last.copies * (obs + fit)) + narrow)
    passes = {"pruned": blocks * seen + (blocks - 1) * whole}.get(options["propagation"], (blocks - 1) * whole + seen)
    if options["method"] != "sparsegpt" and options["update"] == "none":
        return Cost(passes)
    products = sum(tokens * group.chosen * group.shapes[0][1] ** 2 for group in groups)
    factors = sum(group.copies * 2 / 3 * group.shapes[0][1] ** 3 for group in groups)
    updates = sum(group.copies * rows * columns**2 for group in groups for rows, columns in group.shapes)
    return Cost(passes, blocks * (products + factors + updates))


def make(options: dict[str, Any]) -> dict[str, Any]:
    """Write the checkpoint and the calibration tokens; config.json comes last and marks it as complete."""
    import torch
    from transformers import Qwen3Config, Qwen3MoeConfig

    from prunus.checkpoint.architecture import skeleton
    from prunus.checkpoint.model_folder import INDEX
    from prunus.checkpoint.resolve import tiny_folder
    from prunus.checkpoint.safetensors_file import write_file

    folder, blocks = Path(options["folder"]) / "model", options["blocks"]
    folder.mkdir(parents=True)
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": blocks,
        "num_attention_heads": HEADS,
        "head_dim": HEAD,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    if options["family"] == "qwen3":
        config: Any = Qwen3Config(
            hidden_size=HIDDEN,
            intermediate_size=FEED,
            num_key_value_heads=KEY_VALUE_HEADS,
            architectures=["Qwen3ForCausalLM"],
            **common,
        )
    else:
        config = Qwen3MoeConfig(
            hidden_size=MOE_HIDDEN,
            moe_intermediate_size=MOE_FEED,
            num_experts=EXPERTS,
            num_experts_per_tok=CHOSEN,
            num_key_value_heads=MOE_KEY // HEAD,
            norm_topk_prob=True,
            architectures=["Qwen3MoeForCausalLM"],
            **common,
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton(config, torch.bfloat16).state_dict().items()}
    for name in [name for name in shapes if ".experts." in name]:  # published checkpoints have a tensor per expert
        start, _, last = name.rpartition(".")
        _, rows, columns = shapes.pop(name)
        each = {"down_proj": rows} if last == "down_proj" else {"gate_proj": rows // 2, "up_proj": rows // 2}
        for expert in range(EXPERTS):
            shapes |= {f"{start}.{expert}.{part}.weight": (outputs, columns) for part, outputs in each.items()}
    shards: dict[str, list[str]] = {}
    for name in shapes:
        shard = name.rpartition("layers.")[2].partition(".")[0] if "layers." in name else name.removesuffix(".weight")
        shards.setdefault(f"model-{shard}.safetensors", []).append(name)
    torch.manual_seed(0)
    for file, names in shards.items():
        tensors = {name: torch.ones(shapes[name], dtype=torch.bfloat16) for name in names}
        for tensor in tensors.values():
            if tensor.ndim == 2:  # of this size, outputs are about as large as inputs, so hidden states stay finite
                tensor.normal_(0, tensor.shape[1] ** -0.5)
        write_file(folder / file, tensors)
    weight_map = {name: file for file, names in shards.items() for name in names}
    total = sum((folder / file).stat().st_size for file in shards)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    for name in ("tokenizer.json", "tokenizer_config.json"):  # any tokenizer works, since calibration is token ids
        shutil.copyfile(tiny_folder() / name, folder / name)
    choose = random.Random(0)
    rows = [[choose.randrange(VOCABULARY) for _ in range(options["seqlen"])] for _ in range(options["sequences"])]
    calibration = folder.parent / "calibration.jsonl"
    calibration.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    config.save_pretrained(folder)
    return {"bytes": total}


def measure_ceiling(options: dict[str, Any]) -> dict[str, Any]:
    """Return the Ceiling, measured with one large file and with products of 4096 x 4096 matrices."""
    import torch

    from prunus.checkpoint.precision import use_fast_products

    torch.set_num_threads(options["threads"])
    probe, twin = Path(options["folder"]) / "probe", Path(options["folder"]) / "twin"
    data = os.urandom(1 << 24)
    found = {"write": timed(lambda: write(probe, data, PROBE)), "read": timed(lambda: read(probe))}
    found["copy"] = timed(lambda: copy(probe, twin))
    rates = {name: probe.stat().st_size / seconds for name, seconds in found.items()}
    for path in (probe, twin):
        path.unlink()
    for name, dtype in (("half", torch.bfloat16), ("single", torch.float32)):
        product, input_NI = torch.nn.Linear(4096, 4096, bias=False, dtype=dtype), torch.randn(4096, 4096).to(dtype)
        use_fast_products(product)  # the layout of a block's Linears
        with torch.no_grad():
            seconds = min(timed(lambda: product(input_NI), time.process_time) for _ in range(5))  # noqa: B023  at once
        rates[name] = 2 * 4096**3 / seconds
    return Ceiling(**rates)._asdict()


def timed(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that a call takes."""
    started = clock()
    function()
    return clock() - started


def write(path: Path, data: bytes, size: int) -> None:
    """Write a file of about `size` bytes to the disk, and drop it from the page cache."""
    with path.open("wb") as stream:
        for _ in range(size // len(data)):
            stream.write(data)
        settle(stream.fileno())


def read(path: Path) -> None:
    """Read a whole file."""
    with path.open("rb", buffering=0) as stream:
        while stream.read(1 << 22):
            pass
        settle(stream.fileno())


def copy(path: Path, target: Path) -> None:
    """Copy a file to the disk."""
    shutil.copyfile(path, target)
    with target.open("rb") as stream:
        settle(stream.fileno())


def settle(file: int) -> None:
    """Flush a file to the disk and drop it from the page cache."""
    os.fsync(file)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Run Prunus once in this process; return its cost: seconds, bytes of memory, bytes read and written."""
    import torch

    import prunus

    torch.set_num_threads(options["threads"])
    import_module("prunus.pruning.prune.prune")
    import_module(f"transformers.models.{options['family']}.modeling_{options['family']}")
    folder = Path(options["folder"])
    on = {
        "calibration": str(folder / "calibration.jsonl"),
        "sequences": options["sequences"],
        "seqlen": options["seqlen"],
    }
    before, moved, cpu, started = memory("VmRSS"), transferred(), cpu_seconds(), time.monotonic()
    if options["method"] == "experts":
        summary = prunus.experts(folder / "model", folder / "out", prunus.ExpertsRecipe(**on), overwrite=True)
    elif options["method"] == "width":
        recipe = prunus.WidthRecipe(**on)
        summary = prunus.width(folder / "model", folder / "out", recipe, offload=options["offload"], overwrite=True)
    else:
        recipe = prunus.PruneRecipe(
            method=options["method"],
            sparsity=0.5,
            propagation=options["propagation"],
            update=options["update"],
            **on,
        )
        summary = prunus.prune(folder / "model", folder / "out", recipe, offload=options["offload"], overwrite=True)
    after = transferred()
    return {
        "wall": time.monotonic() - started,
        "cpu": cpu_seconds() - cpu,
        "peak": memory("VmHWM"),
        "growth": memory("VmHWM") - before,
        "read": after["rchar"] - moved["rchar"],
        "written": after["wchar"] - moved["wchar"],
        "warnings": summary.warnings,
    }


def memory(which: str) -> float:
    """Return resident bytes: VmRSS is current, VmHWM the peak (ru_maxrss would include the parent process)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) * 1024


def transferred() -> dict[str, int]:
    """Return the bytes that this process has read (rchar) and written (wchar), from disk or page cache."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(count) for name, count in (line.split(": ") for line in lines)}


def cpu_seconds() -> float:
    """Return the CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


WORKERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"make": make, "ceiling": measure_ceiling, "run": run}


def in_own_process(worker: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a job in its own process, which prints JSON as its last line."""
    environment = os.environ | {"OMP_NUM_THREADS": str(options["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--worker", json.dumps([worker, options])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{worker} failed; its output is above")
    return json.loads(done.stdout.strip().splitlines()[-1])


def prepare(folder: Path, options: dict[str, Any]) -> None:
    """Write the checkpoint unless an earlier run with --keep left it; end with a message if the disk is too small."""
    existing = folder / "model" / "config.json"
    found = json.loads(existing.read_text()) if existing.exists() else {}
    there = (found.get("model_type"), found.get("num_hidden_layers")) == (options["family"], options["blocks"])
    if (folder / "model").exists() and not there:
        sys.exit(f"{folder / 'model'} is another model or unfinished; delete it or choose another --folder")
    size = model_bytes(options)
    needed = size * (1 if there else 2) + max(0, 2 * PROBE - size) + MARGIN
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        sys.exit(f"{folder}: {needed / 1e9:.1f} GB of disk are needed, {free / 1e9:.1f} are free; try --blocks 2")
    if not there:
        print(f"writing {size / 1e9:.1f} GB of random weights to {folder / 'model'}", file=sys.stderr)
        in_own_process("make", options)


def show_ceiling(ceiling: Ceiling, options: dict[str, Any]) -> None:
    """Print a line about the machine."""
    disk = f"disk: read {ceiling.read / 1e9:.2f}, write {ceiling.write / 1e9:.2f}, copy {ceiling.copy / 1e9:.2f} GB/s"
    products = f"matrix products: bfloat16 {ceiling.half / 1e9:.0f}, float32 {ceiling.single / 1e9:.0f} GFLOP per CPU s"
    size = model_bytes(options)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {options['threads']} threads; {products}; {disk}")
    print(f"the model: {options['blocks']} blocks, {size / 1e9:.1f} GB; copying it: {size / ceiling.copy:.0f} s\n")
    print("| run | wall s | CPU s | peak RSS, GB | over imports, GB | read, GB | written, GB ", end="")
    print("| TFLOP bf16 | TFLOP fp32 | least CPU s | share | least wall s | share |\n|" + "---|" * 13, flush=True)


def show_run(found: dict[str, Any], options: dict[str, Any], ceiling: Ceiling) -> None:
    """Print a row of the table.

    Least CPU: all operations at the speed of matrix products. Least wall: that, plus all bytes at the disk's speed.
    """
    parts = [options["method"]] + ["offload"] * options["offload"]
    parts += [options[key] for key in ("propagation", "update") if options[key] not in ("pruned", "none")]
    name, needed = ", ".join(parts), cost(options)
    cpu = needed.half / ceiling.half + needed.single / ceiling.single
    wall = cpu / options["threads"] + found["read"] / ceiling.read + found["written"] / ceiling.write
    cells = [f"{found['wall']:.0f}", f"{found['cpu']:.0f}"]
    cells += [f"{found[key] / 1e9:.2f}" for key in ("peak", "growth")]
    cells += [f"{found[key] / 1e9:.1f}" for key in ("read", "written")]
    cells += [f"{needed.half / 1e12:.1f}", f"{needed.single / 1e12:.1f}"]
    cells += [f"{cpu:.0f}", f"{100 * cpu / found['cpu']:.0f} %", f"{wall:.0f}", f"{100 * wall / found['wall']:.0f} %"]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for warning in found["warnings"]:
        print(f"{name}: {warning}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("scale"), help="for the model and results (./scale)")
    parser.add_argument("--family", choices=("qwen3", "qwen3_moe"), default="qwen3", help="whose shape")
    parser.add_argument(
        "--blocks", type=int, help="default: 36, or 48; fewer make a smaller model; memory stays the same"
    )
    parser.add_argument("--method", action="append", help=f"default: {', '.join(METHODS)}")
    parser.add_argument("--sequences", type=int, default=8, help="calibration sequences")
    parser.add_argument("--seqlen", type=int, default=512, help="tokens of each")
    parser.add_argument("--propagation", default="pruned", help="as for prunus prune")
    parser.add_argument("--update", default="none", help="as for prunus prune")
    parser.add_argument("--offload", action="store_true", help="as for prunus prune")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the model for the next call")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker, options = json.loads(arguments.worker)
        print(json.dumps(WORKERS[worker](options)))
        return
    options = vars(arguments) | {"folder": str(arguments.folder.resolve())}
    options["blocks"] = arguments.blocks or {"qwen3": 36, "qwen3_moe": 48}[arguments.family]
    folder = Path(options["folder"])
    created = not folder.exists()
    try:
        prepare(folder, options)
        ceiling = Ceiling(**in_own_process("ceiling", options))
        show_ceiling(ceiling, options)
        for method in arguments.method or METHODS:
            chosen = options | {"method": method}
            for path in (folder / "model").iterdir():  # every run starts with an empty page cache
                with path.open("rb") as stream:
                    settle(stream.fileno())
            show_run(in_own_process("run", chosen), chosen, ceiling)
            shutil.rmtree(folder / "out")
    finally:
        if not arguments.keep:
            for part in ("model", "out", "out.partial"):
                shutil.rmtree(folder / part, ignore_errors=True)
            (folder / "calibration.jsonl").unlink(missing_ok=True)
            if created:
                with contextlib.suppress(OSError):
                    folder.rmdir()


if __name__ == "__main__":
    main()
