"""How many rows are independent of their batch: `python benchmarks/company.py [MODEL]`, a few minutes.

Greedy chains of a model (default: the built-in reasoner), each decoded alone and in batches, in float32 and bfloat16.
A row counts as the same if all ids of its thinking and its answers are equal under all budgets. It also prints how much
the scores of equal ids differ. docs/protocol.md (Rounding) has the figures.
"""

import argparse
from collections.abc import Sequence

import torch

from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.evaluation.backends.hf import HFBackend, load_model
from prunus.evaluation.budget import Chain, Draw, Rules, force_budgets
from prunus.evaluation.profiles.detection import resolve_profile
from prunus.evaluation.profiles.markers import encode_markers, encode_prompt
from prunus.evaluation.requests import Sampling
from prunus.evaluation.tasks import load_task
from prunus.manifest import Manifest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def drawn(
    backend: HFBackend, chains: Sequence[Chain], budgets: Sequence[int], rules: Rules, size: int
) -> list[list[Draw]]:
    """Return the draws of each chain, decoded in batches of this size."""
    lots = (chains[start : start + size] for start in range(0, len(chains), size))
    return [draws for lot in lots for draws in force_budgets(backend, lot, budgets, rules)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--budgets", type=int, nargs="+", default=[64])
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    folder = resolve(options.model)
    tokenizer = load_tokenizer(folder)
    profile = resolve_profile("tiny" if options.model == "tiny" else "auto", tokenizer, Manifest())
    rules = Rules(encode_markers(profile, tokenizer, "strict"), Sampling(0.0))
    problems = load_task("tiny")
    chosen = problems[:: len(problems) // options.rows][: options.rows]
    chains = [
        Chain(
            encode_prompt(profile, tokenizer, problem.question),
            (problem.task, problem.id, 0),
            options.answer_tokens,
        )
        for problem in chosen
    ]
    for name, dtype in DTYPES.items():
        backend = HFBackend(load_model(folder, options.device, dtype), len(tokenizer))
        alone = drawn(backend, chains, options.budgets, rules, 1)
        for size in options.batch:
            beside = drawn(backend, chains, options.budgets, rules, size)
            same = [one == other for one, other in zip(alone, beside, strict=True)]
            apart = max(
                abs((one.logprob or 0.0) - (other.logprob or 0.0))
                for first, then, equal in zip(alone, beside, same, strict=True)
                if equal
                for one, other in zip(first, then, strict=True)
            )
            print(
                f"{name}, {size} at once: {sum(same)} of {len(same)} as alone, mean logprob within {apart:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
