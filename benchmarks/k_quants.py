"""llama.cpp's mixtures of types, with and without the importance of inputs: `python benchmarks/k_quants.py FOLDER`.

--model: folder of the model; SmolLM2-135M by default. FOLDER keeps the files. Each of three parts prints a table:

perplexity: of the file's tensors, dequantised by the package gguf, in float32, on held-out text; without calibration
    and with that of each seed, at equal bytes. Each line is added to --rows.
logits: llama.cpp's log-probabilities beside those of the dequantised tensors in transformers. Needs xllamacpp.
speed: tokens per second in llama.cpp of all files in FOLDER and of --beside, in turn, three rounds. Needs xllamacpp.
"""

import argparse
import http.client
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any

import gguf
import numpy as np
import torch
from docstrings import docstrings
from finished import add_line
from safetensors.torch import save_file

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.gguf_file import kind_of
from prunus.pruning.bits.gguf_metadata import architecture_of, form_of
from prunus.pruning.bits.gguf_tensors import AS_IS, PLUS_ONE, names_for, tensors_of
from prunus.recipes.gguf import MIXTURES

MODEL = Path(__file__).resolve().parents[1] / ".cache/smollm2"
TYPES, SEEDS, SEQLEN = ("q4_k_m", "iq4_xs", "q5_k_m", "q6_k"), 3, 512
SAMPLES, HELD_OUT, ROUNDS, TOKENS = 4, 8, 3, 32
PROMPT = "def fibonacci(n):\n    "


def write_tokens(model: Path, folder: Path) -> None:
    """Token ids of docstrings, other ones for each seed and for what is held out."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = [i for text in docstrings() for i in tokenizer.encode(text + "\n\n", add_special_tokens=False).ids]
    rows = [ids[at : at + SEQLEN] for at in range(0, (SEEDS * SAMPLES + HELD_OUT) * SEQLEN, SEQLEN)]
    parts = {f"seed-{seed}": rows[seed * SAMPLES : (seed + 1) * SAMPLES] for seed in range(SEEDS)}
    for name, chosen in {**parts, "held_out": rows[SEEDS * SAMPLES :]}.items():
        lines = "".join(json.dumps({"token_ids": row}) + "\n" for row in chosen)
        (folder / f"{name}.jsonl").write_text(lines)


def dequantised(model: Path, file: Path, out: Path) -> Path:
    """A folder like that of model with the weights of a GGUF file of it."""
    source = Checkpoint(model)
    form, theirs = form_of(source, "model"), {one.name: one for one in gguf.GGUFReader(file).tensors}
    tensors = {}
    for piece in tensors_of(source, names_for(source, architecture_of(source))):
        one = theirs[piece.name]
        values = gguf.quants.dequantize(one.data, one.tensor_type).reshape(piece.whole_shape)
        change = form.changes.get(kind_of(piece.name), AS_IS)
        assert change != PLUS_ONE, "a norm of Gemma"
        whole = torch.from_numpy(np.array(values, np.float32))
        for number, rows in enumerate(whole.reshape(len(piece.sources), *piece.shape)):
            if change != AS_IS:
                rows = rows.unflatten(0, (change, -1, 2)).transpose(1, 2).flatten(0, 2)
            tensors[piece.named(source, number)] = rows.contiguous()
    out.mkdir(exist_ok=True)
    for path in model.glob("*.json"):
        if "index" not in path.name:
            shutil.copy(path, out)
    config = json.loads((model / "config.json").read_text()) | {"dtype": "float32", "torch_dtype": "float32"}
    (out / "config.json").write_text(json.dumps(config))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def files(model: Path, folder: Path, types: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, str, Path]]:
    """Yield (type, calibration, file), made where they are missing; statistics are measured once for each seed."""
    for seed in seeds:
        stats = folder / f"seed-{seed}.stats"
        if not stats.exists():
            data: dict[str, Any] = {"sequences": SAMPLES, "seqlen": SEQLEN}
            prunus.stats(model, stats, calibration=f"traces:{folder}/seed-{seed}.jsonl", **data)
    for type in types:
        matrices = [f"seed-{seed}" for seed in seeds if type in MIXTURES]
        for name in [*(["none"] if 0 in seeds else []), *matrices]:
            out = folder / f"{type}-{name}.gguf"
            if not out.exists():
                stats = None if name == "none" else folder / f"{name}.stats"
                prunus.gguf(model, out, prunus.GgufRecipe(type=type), stats=stats)  # pyright: ignore[reportArgumentType]
            yield type, name, out


def perplexity(model: Path, folder: Path, types: Sequence[str], seeds: Sequence[int], rows: Path | None) -> None:
    """Print the perplexity of each file, and add it to the rows."""
    held_out = folder / "held_out.jsonl"
    print("| type | calibration | bytes | perplexity |\n|---|---|---:|---:|")

    def show(type: str, name: str, size: int, shown: Path) -> None:
        found = round(prunus.perplexity(shown, held_out, seqlen=SEQLEN).perplexity, 3)
        print(f"| {type} | {name} | {size:,} | {found:.3f} |", flush=True)
        labels = {"model": model.name, "type": type, "calibration": name}
        add_line(rows, {**labels, "bytes": size, "perplexity": found})

    show("dense", "none", 0, model)
    for type, name, file in files(model, folder, types, seeds):
        show(type, name, file_bytes(file), dequantised(model, file, folder / "plain"))


def file_bytes(file: Path) -> int:
    """The bytes of all tensors."""
    return sum(int(one.n_bytes) for one in gguf.GGUFReader(file).tensors)


@contextmanager
def server(file: Path, threads: int) -> Iterator[Any]:
    """A function that asks llama.cpp's server with this file for a completion."""
    xllamacpp = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(file), 1024, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    running = xllamacpp.Server(params)
    connection = http.client.HTTPConnection(running.listening_address.removeprefix("http://"), timeout=600)

    def ask(**content: Any) -> Any:
        connection.request("POST", "/completion", json.dumps(content), {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())

    yield ask
    del running


def logits(model: Path, folder: Path, types: Sequence[str], threads: int) -> None:
    """Print how far llama.cpp's log-probabilities are from those of the dequantised tensors."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)(PROMPT)["input_ids"]
    print("| type | mean difference of log-probabilities |\n|---|---:|")
    for type in types:
        (file, *_) = sorted(folder.glob(f"*{type}*.gguf"))
        with server(file, threads) as ask:
            asked = ask(prompt=ids, n_predict=TOKENS, temperature=0, n_probs=5, return_tokens=True)
        plain = dequantised(model, file, folder / "plain")
        ours = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
        with torch.no_grad():
            rows = ours(torch.tensor([ids + asked["tokens"]])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        steps = enumerate(asked["completion_probabilities"])
        off = [abs(top["logprob"] - float(rows[n, top["id"]])) for n, step in steps for top in step["top_logprobs"]]
        print(f"| {type} | {mean(off):.4f} |", flush=True)


def speed(folder: Path, beside: Path | None, threads: int) -> None:
    """Print the tokens per second that llama.cpp decodes, in turn, so that other load hits all alike."""
    every = [*([] if beside is None else [beside]), *sorted(folder.glob("*.gguf"))]
    found: dict[Path, list[float]] = {file: [] for file in every}
    for _ in range(ROUNDS):
        for file in every:
            with server(file, threads) as ask:
                ask(prompt=PROMPT, n_predict=1)
                timings = ask(prompt=PROMPT, n_predict=TOKENS, temperature=0, ignore_eos=True)["timings"]
            found[file].append(timings["predicted_per_second"])
    print("| file | MB | tokens per second, each round |\n|---|---:|---|")
    for file, rates in found.items():
        print(f"| {file.name} | {file.stat().st_size / 1e6:,.0f} | {', '.join(f'{rate:.1f}' for rate in rates)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--only", choices=("perplexity", "logits", "speed"))
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(SEEDS))
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.only in (None, "perplexity"):
        write_tokens(given.model, given.folder)
        perplexity(given.model, given.folder, given.types, given.seeds, given.rows)
    if given.only in (None, "logits"):
        logits(given.model, given.folder, given.types, given.threads)
    if given.only in (None, "speed"):
        speed(given.folder, given.beside, given.threads)


if __name__ == "__main__":
    sys.exit(main())
