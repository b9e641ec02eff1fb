"""Seconds per token of one chain: `python benchmarks/latency.py MODEL ...`, some minutes on one thread.

Each MODEL is a folder, packed or not, or `tiny`. At each context a prompt of that length is read, and then TOKENS
tokens are decoded. The models take turns, so that a busy machine slows all of them alike, and the median round counts.
On one thread of a CPU these are CPU seconds, which equal wall-clock seconds on an idle machine.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.evaluation.backends.hf import HFBackend
from prunus.evaluation.requests import Request, Sampling

TOKENS = 12


def seconds(backend: HFBackend, context: int, tokens: int, clock: str) -> float:
    """Return the seconds to read a prompt of random tokens and to decode this many after it."""
    now = time.thread_time if clock == "cpu" else time.perf_counter
    ids = torch.randint(backend.vocabulary, (context,), generator=torch.Generator().manual_seed(0)).tolist()
    started = now()
    backend.generate([Request(ids, tokens, frozenset(), frozenset(), 0)], Sampling(0.0))
    return now() - started


def main() -> None:
    """Print a table: milliseconds per token of each model at each context, and how far its rounds lie apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--contexts", default="32,128,512", help="Tokens of the prompts.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    contexts = [int(text) for text in options.contexts.split(",")]
    clock = "cpu" if options.device == "cpu" and torch.get_num_threads() == 1 else "wall"
    backends = {
        model: HFBackend.load(resolve(model), options.device, len(load_tokenizer(resolve(model))))
        for model in options.models
    }
    found: dict[tuple[str, int], list[float]] = {(model, context): [] for model in backends for context in contexts}
    for turn in range(options.rounds + 1):
        for (model, context), times in found.items():
            first, all_of_them = (seconds(backends[model], context, tokens, clock) for tokens in (1, 1 + TOKENS))
            if turn:  # the first round is a warm-up
                times.append(1000 * (all_of_them - first) / TOKENS)
    print(f"Milliseconds per token ({clock} time), and by how much the slowest round took longer than the fastest\n")
    print(f"| | {' | '.join(f'context {context}' for context in contexts)} |\n|---|{'---|' * len(contexts)}")
    for model in backends:
        columns = [found[model, context] for context in contexts]
        cells = [f"{statistics.median(times):.2f} ({max(times) / min(times) - 1:.0%})" for times in columns]
        print(f"| {model} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
