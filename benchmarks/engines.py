"""Comparisons of engines: hf and vllm on one cell, prefix reuse by count, and the speed of models in other forms.

    python benchmarks/engines.py reuse              tokens of budgets 512 to 8192 with and without prefix reuse
    .venv-vllm/bin/python benchmarks/engines.py cell    hf and vllm in turn (the environment of `make test-vllm`)
    PYTHON benchmarks/engines.py formats MODEL...       prompts and decoding of each MODEL, relative to the first one

`reuse` and `cell` use the tiny reasoner, `cell` also SmolLM2, where `make test` has fetched it. They run on one thread,
measured in CPU seconds. `formats` takes files for llama.cpp (in the environment of `make test-llama-cpp`) and model
folders, which run in vLLM where PYTHON has it, and else in transformers; each is a process of its
own, in turn with the others, in every round.
"""

# ruff: noqa: E402  the settings come before the libraries that read them
import argparse
import gc
import http.client
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

for name, value in {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that its CPU seconds count for this process
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCH_COMPILE_DISABLE": "1",
}.items():
    os.environ.setdefault(name, value)
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import torch
from scripted_backend import ScriptedBackend

from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.evaluation.backends import opened
from prunus.evaluation.budget import Chain, Draw, Rules, force_budgets
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.profiles.markers import encode_markers, encode_prompt
from prunus.evaluation.requests import Sampling
from prunus.evaluation.run import sampled_tokens
from prunus.evaluation.tasks import load_task
from prunus.settings.engines import EngineOptions

SMOLLM2 = Path(__file__).resolve().parents[1] / ".cache" / "smollm2"
PAPER_BUDGETS = (512, 1024, 2048, 4096, 8192)
ROUNDS = 3
PROMPT, DECODED, BATCH = 512, 64, 32  # formats: tokens of a prompt and of a continuation, and rows decoded together
Run = Callable[[list[list[int]], int], object]  # prompts, tokens to decode after each
TOKENIZER = load_tokenizer(tiny_folder())


def reuse() -> None:
    """Print the tokens with and without reuse, counted by a backend that records requests; chain lengths are given."""
    markers = encode_markers(PROFILES["tiny"], TOKENIZER, "strict")
    noise = random.Random(0)
    kinds: dict[str, Callable[[], int]] = {
        "none ends by itself": lambda: 10**9,
        "lengths log-uniform from 256 to 16,384": lambda: int(256 * 64 ** noise.random()),
        "all end within 512": lambda: noise.randrange(50, 500),
    }
    print("| chains | answer tokens | thinking, reuse / apart | all tokens, reuse / apart |\n|---|---|---|---|")
    for kind, length in kinds.items():
        for answer in (100, 300, 1024):
            lengths = [length() for _ in range(200)]
            chains = [Chain([3, n], ("t", str(n), 0), answer + 1) for n in range(len(lengths))]

            def replay(
                prompt: Sequence[int], _seed: int, lengths: list[int] = lengths, answer: int = answer
            ) -> Iterator[int]:
                thinks = len(prompt) == 2
                stop = min(markers.think_stops if thinks else markers.answer_stops)
                for _ in range(lengths[prompt[1]] if thinks else answer):
                    yield 5
                yield stop

            totals = []
            for cut in (True, False):
                found = force_budgets(
                    ScriptedBackend(replay), chains, PAPER_BUDGETS, Rules(markers, Sampling(0.0)), reuse=cut
                )
                totals.append(counted(found, cut))
            thinking, every = (totals[0][n] / totals[1][n] for n in (0, 1))
            print(f"| {kind} | {answer} | {thinking:.2f} | {every:.2f} |")


def counted(draws: list[list[Draw]], cut: bool) -> tuple[int, int]:
    """Return (thinking tokens, all sampled tokens) of these draws."""
    if cut:
        return sum(max(len(draw.thinking) for draw in of_chain) for of_chain in draws), sampled_tokens(draws)
    thinking = sum(len(draw.thinking) for of_chain in draws for draw in of_chain)
    return thinking, thinking + sum(len(draw.answer) for of_chain in draws for draw in of_chain)


def models() -> list[tuple[str, Path]]:
    """Return the tiny reasoner, and SmolLM2 if it has been fetched."""
    return [("tiny", tiny_folder()), *([("SmolLM2", SMOLLM2)] if (SMOLLM2 / "config.json").exists() else [])]


def cell(chains: int) -> None:
    """Print one cell on both engines, alternately; vLLM also without reuse, with only its prefix cache."""
    print("| model | engine | chains | tokens | CPU s | tokens a CPU s | of hf |\n|---|---|---|---|---|---|---|")
    for name, folder in models():
        tokenizer = load_tokenizer(folder)
        profile, budgets, cap = PROFILES["tiny" if name == "tiny" else "s1"], (0, 16, 64, 256), 64
        if name != "tiny":
            budgets, cap, chains = (0, 16, 48), 16, min(chains, 16)
        markers = encode_markers(profile, tokenizer, "strict")
        some = [
            Chain(encode_prompt(profile, tokenizer, problem.question), ("t", problem.id, 0), cap)
            for problem in load_task("tiny")[:: 630 // chains][:chains]
        ]
        rules = Rules(markers, Sampling(0.6, 0.95))
        first = 0.0
        for engine, cut in (("hf", True), ("vllm", True), ("vllm", False)):
            options = EngineOptions(args={"enforce_eager": True}) if engine == "vllm" else None
            times, tokens = [], 0
            with opened(engine, folder, "cpu", len(tokenizer), options) as backend:
                force_budgets(backend, some[:2], budgets, rules)
                for seed in range(ROUNDS):
                    begin = time.process_time()
                    draws = force_budgets(backend, some, budgets, Rules(markers, rules.sampling, seed=seed), cut)
                    times.append(time.process_time() - begin)
                    tokens += counted(draws, cut)[1]
            gc.collect()
            speed = tokens / sum(times)
            first = first or speed
            label = engine if cut else f"{engine}, without reuse"
            print(
                f"| {name} | {label} | {ROUNDS} x {len(some)} | {tokens:,} | {sum(times):.1f} | {speed:.0f} |"
                f" {speed / first:.2f} |",
                flush=True,
            )


def formats(models: Sequence[str], threads: int, dtype: str) -> None:
    """Print tokens per second of prompts and of decoding, medians of rounds, and the peak of resident memory."""
    found: dict[str, list[dict[str, float]]] = {model: [] for model in models}
    for _ in range(ROUNDS):
        for model, measured in found.items():
            command = [sys.executable, __file__, "one", model, "--threads", str(threads), "--dtype", dtype]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            measured.append(json.loads(done.stdout.splitlines()[-1]))
    kinds = ("prompt", "decode", f"decode {BATCH}")
    print(f"| model | MB | {' | '.join(f'{kind}, tokens/s | ratio' for kind in kinds)} | peak MB |")
    print("|---" * (3 + 2 * len(kinds)) + "|")
    for model, measured in found.items():
        cells = [Path(model).name, f"{size(Path(model)) / 1e6:.0f}"]
        for kind in kinds:
            ratios = [own[kind] / first[kind] for own, first in zip(measured, found[models[0]], strict=True)]
            cells += [f"{median(own[kind] for own in measured):.1f}", f"{median(ratios):.2f}"]
        print(f"| {' | '.join(cells)} | {median(own['peak'] for own in measured):.0f} |")


def size(model: Path) -> int:
    """The bytes of a file, or of the weights in a folder."""
    return model.stat().st_size if model.is_file() else sum(f.stat().st_size for f in model.glob("*.safetensors"))


def one(model: Path, threads: int, dtype: str) -> None:
    """Print the speeds of one model as JSON: tokens per CPU second, or per second of wall time with more threads."""
    torch.set_num_threads(threads)
    if model.suffix == ".gguf":
        run = llama_cpp(model, threads)
    else:
        run = (vllm if importlib.util.find_spec("vllm") else transformers)(model, dtype)
    clock = time.process_time if threads == 1 else time.monotonic
    ids = [[random.Random(row).randrange(1000, 40_000) for _ in range(PROMPT)] for row in range(BATCH)]

    def speed(prompts: list[list[int]], tokens: int, counted: int) -> float:
        run([[7 + token for token in prompt] for prompt in prompts], min(tokens, 2))  # warm up, with other prompts
        begin = clock()
        run(prompts, tokens)
        return counted / (clock() - begin)

    short = [row[:16] for row in ids]
    found = {
        "prompt": speed(ids[:1], 1, PROMPT),
        "decode": speed(short[:1], DECODED, DECODED),
        f"decode {BATCH}": speed(short, DECODED, BATCH * DECODED),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    print(json.dumps(found), flush=True)
    os._exit(0)  # without waiting for an engine's threads


def llama_cpp(model: Path, threads: int) -> Run:
    """llama.cpp's server in this process."""
    import xllamacpp  # pyright: ignore[reportMissingImports]

    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx = str(model), BATCH, 2 * BATCH * PROMPT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    address = server.listening_address.removeprefix("http://")

    def complete(prompt: list[int], tokens: int) -> None:
        asked = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
        connection = http.client.HTTPConnection(address)
        connection.request("POST", "/completion", json.dumps(asked), {"Content-Type": "application/json"})
        assert json.loads(connection.getresponse().read())["tokens_predicted"] == tokens, server

    def run(prompts: list[list[int]], tokens: int) -> None:
        with ThreadPoolExecutor(BATCH) as pool:
            list(pool.map(complete, prompts, [tokens] * len(prompts)))

    return run


def vllm(model: Path, dtype: str) -> Run:
    """vLLM in this process, without its prefix cache."""
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    limits = {"max_model_len": 2 * PROMPT, "max_num_seqs": BATCH, "enable_prefix_caching": False}
    engine = LLM(str(model), dtype=dtype, enforce_eager=True, **limits)

    def run(prompts: list[list[int]], tokens: int) -> None:
        how = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], how, use_tqdm=False)

    return run


def transformers(model: Path, dtype: str) -> Run:
    """Plain transformers."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)

    def run(prompts: list[list[int]], tokens: int) -> None:
        loaded.generate(torch.tensor(prompts), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("reuse", "cell", "formats", "one"))
    parser.add_argument("models", nargs="*", help="model folders, or files for llama.cpp")
    parser.add_argument("--chains", type=int, default=64, help="cell: chains of the tiny reasoner")
    parser.add_argument("--threads", type=int, default=1, help="formats: with more than 1, wall time is measured")
    parser.add_argument("--dtype", default="bfloat16", help="formats: what folders compute in")
    asked = parser.parse_args()
    if asked.what == "reuse":
        reuse()
    elif asked.what == "formats":
        formats(asked.models, asked.threads, asked.dtype)
    elif asked.what == "one":
        one(Path(asked.models[0]), asked.threads, asked.dtype)
    else:
        cell(asked.chains)


if __name__ == "__main__":
    main()
