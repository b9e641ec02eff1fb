"""Train the tiny reasoner, or its mixture of experts, from scratch on one CPU thread.

    python training/train.py --seed 0 --out runs/seed0
    python training/train.py --experts 8 --seed 0 --out runs/moe0

The schedule counts steps, not seconds, so that a seed determines the model on one machine and library version. Every
validation writes OUT/checkpoint (a Hugging Face folder, bf16) and OUT/log.jsonl.
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from compact import CompactModel, Shape, to_transformers
from tokenizer import CONTEXT, build
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from prunus.checkpoint.precision import multiplies_slowly
from prunus.evaluation.tasks import tiny

WARMUP = 60
POOL = 1200  # examples that are sorted by length together, so that batches have little padding
# On a processor with AVX2 only, a step takes 6.8 CPU seconds in bfloat16, and 0.8 in float32.
AUTOCAST = torch.autocast("cpu", dtype=torch.bfloat16, enabled=not multiplies_slowly(torch.bfloat16))
# Weights of the levels during training: easy levels first, all levels from 20 % on.
CURRICULUM = (
    (0.08, (3, 2, 0.2, 0, 0, 0, 0)),
    (0.14, (2, 2, 2, 0.5, 0, 0, 0)),
    (0.20, (1.5, 1.5, 1.5, 1, 0.5, 0.1, 0)),
    (1.01, (1, 1, 1, 1, 1, 0.5, 0.35)),
)


class Example(NamedTuple):
    """Token ids and, for each, whether it counts in the loss."""

    ids: list[int]
    learned: list[bool]


class Writer:
    """Turns problems into training examples, without the held-out questions."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.weights = dict.fromkeys(tiny.FAMILIES, 1.0)
        self.excluded = tiny.held_out()
        self.skipped: Counter[str] = Counter()
        self.newline = self.encode("\n")
        self.forced_close = self.encode("\n</think>\n\n")
        self.natural_close = self.encode("</think>\n\n")

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def parts(self, problem: tiny.TinyProblem) -> tuple[list[int], list[int], list[int]]:
        """Return the ids of prompt, thinking and answer."""
        messages = [{"role": "user", "content": problem.question}]
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        answer = "\\boxed{" + problem.answer + "}<|im_end|>"
        return self.encode(f"{prompt}<think>\n"), self.encode("\n".join(problem.trace) + "\n"), self.encode(answer)

    def full(self, problem: tiny.TinyProblem) -> Example:
        """Return an example with the whole reference trace, then the answer."""
        prompt, thinking, answer = self.parts(problem)
        rest = thinking + self.natural_close + answer
        return Example(prompt + rest, [False] * len(prompt) + [True] * len(rest))

    def draw(self, level_weights: tuple[float, ...]) -> Example:
        """Return a random training example outside the held-out sets.

        8 % of the traces are cut at a random token before the answer and 3 % are empty, so that the model learns to
        answer after budget forcing.
        """
        while True:
            family = self.rng.choices(tiny.FAMILIES, list(self.weights.values()))[0]
            problem = tiny.sample(family, self.rng.choices(tiny.LEVELS, level_weights)[0], self.rng)
            if tiny.question_hash(problem.question) not in self.excluded:
                break
            self.skipped[f"{family}/{problem.level}"] += 1
        kind = self.rng.random()
        if kind >= 0.11:
            return self.full(problem)
        prompt, thinking, answer = self.parts(problem)
        thinking = thinking[: self.rng.randint(1, len(thinking) - 1)] if kind < 0.08 else []
        if thinking[-1:] == self.newline:
            thinking = thinking[:-1]
        learned = [False] * len(prompt) + [True] * len(thinking)
        learned += [False] * len(self.forced_close) + [True] * len(answer)
        return Example(prompt + thinking + self.forced_close + answer, learned)


def batches_by_length(examples: list[Example], tokens: int) -> list[list[Example]]:
    """Return batches of about `tokens` padded tokens, of examples of similar lengths."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    batches = []
    while ordered:
        width = padded(len(ordered[-1].ids))
        count = max(1, tokens // width)
        batches.append(ordered[-count:])
        ordered = ordered[:-count]
    return batches


def padded(length: int) -> int:
    return (length + 31) // 32 * 32


def tensors(batch: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids (B, T), the flat positions whose next token counts in the loss, and those next tokens."""
    width = padded(max(len(example.ids) for example in batch))
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    learned = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        learned[row, : len(example.ids)] = torch.tensor(example.learned)
    wanted = torch.zeros_like(learned)
    wanted[:, :-1] = learned[:, 1:]
    return ids, wanted.reshape(-1).nonzero().squeeze(1), ids[:, 1:][learned[:, 1:]]


def training_batches(writer: Writer, steps: int, tokens: int) -> Iterator[list[Example]]:
    """Yield exactly `steps` batches, with levels following the curriculum."""
    done = 0
    while True:
        weights = next(w for end, w in CURRICULUM if done / steps < end)
        batches = batches_by_length([writer.draw(weights) for _ in range(POOL)], tokens)
        writer.rng.shuffle(batches)
        for batch in batches:
            if done == steps:
                return
            yield batch
            done += 1


@torch.no_grad()
def exact_by_family(model: CompactModel, writer: Writer, per_cell: int, tokens: int) -> dict[str, float]:
    """Return the share of validation problems whose trace and answer are all most likely tokens (teacher forcing)."""
    problems = tiny.problem_set(tiny.VALIDATION_SEED, per_cell)
    family_of = {tuple(example.ids): p.family for p in problems for example in [writer.full(p)]}
    right: Counter[str] = Counter()
    for batch in batches_by_length([writer.full(p) for p in problems], tokens):
        ids, wanted, targets = tensors(batch)
        with AUTOCAST:
            wrong = (model(ids, wanted, compiled=False).argmax(-1) != targets).float()
        errors = torch.zeros(len(batch)).index_add_(0, wanted // ids.shape[1], wrong)
        right.update(family_of[tuple(e.ids)] for e, bad in zip(batch, errors, strict=True) if not bad)
    return {family: right[family] / (per_cell * len(tiny.LEVELS)) for family in tiny.FAMILIES}


def least_used(model: CompactModel) -> float:
    """Return the smallest share of tokens of any expert since the last call, times the number of experts."""
    smallest = 1.0
    for mixture in model.mixtures():
        share_E = mixture.tokens_E / mixture.tokens_E.sum()
        smallest = min(smallest, share_E.min().item() * len(share_E))
        mixture.tokens_E.zero_()
    return round(smallest, 3)


def optimizers(model: CompactModel, rate: float) -> list[torch.optim.Optimizer]:
    """Return the optimizers: Muon for the matrices of the blocks, AdamW for embeddings, norms and routers."""
    matrices = [p for name, p in model.blocks.named_parameters() if p.dim() == 2 and "router" not in name]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


def save(model: CompactModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    vocabulary = tokenizer.get_vocab()
    exported = to_transformers(model, eos=vocabulary["<|im_end|>"], pad=vocabulary["<|endoftext|>"])
    exported.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--tokens", type=int, default=4096, help="padded tokens per step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument(
        "--experts", type=int, default=0, help="experts per block; a token uses two (default: no mixture)"
    )
    parser.add_argument("--balance", type=float, default=0.01, help="weight of the load-balancing loss")
    parser.add_argument("--validate-every", type=int, default=250)
    parser.add_argument("--validation-per-cell", type=int, default=4)
    parser.add_argument("--no-compile", action="store_true", help="where no C++ compiler is installed; slower")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = build(args.out / "checkpoint")
    writer = Writer(tokenizer, args.seed)
    model = CompactModel(Shape((len(tokenizer) + 15) // 16 * 16, context=CONTEXT, experts=args.experts))
    if not args.no_compile:
        for block in model.decoder_blocks():
            block.compile_parts()
    steppers = optimizers(model, args.rate)
    log = (args.out / "log.jsonl").open("w")
    losses: list[float] = []
    started, seen = time.monotonic(), 0
    for step, batch in enumerate(training_batches(writer, args.steps, args.tokens)):
        cosine = 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = args.rate * min(1.0, (step + 1) / WARMUP) * max(0.01, cosine)
        ids, wanted, targets = tensors(batch)
        with AUTOCAST:
            logits = model(ids, wanted, compiled=not args.no_compile)
        loss = F.cross_entropy(logits.float(), targets)
        (loss + args.balance * sum(mixture.imbalance for mixture in model.mixtures())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        losses.append(loss.item())
        seen += sum(len(example.ids) for example in batch)
        if (step + 1) % args.validate_every == 0 or step + 1 == args.steps:
            exact = exact_by_family(model, writer, args.validation_per_cell, args.tokens)
            # Families with lower accuracy are drawn more often.
            writer.weights = {family: 1.25 - share for family, share in exact.items()}
            row = {
                "step": step + 1,
                "seconds": round(time.monotonic() - started),
                "tokens": seen,
                "loss": round(sum(losses) / len(losses), 4),
                "exact": {family: round(share, 3) for family, share in exact.items()},
            }
            losses = []
            if args.experts:
                row["least_used"] = least_used(model)
            print(json.dumps(row), file=log, flush=True)
            print(json.dumps(row), flush=True)
            save(model, tokenizer, args.out / "checkpoint")
    summary = {
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "torch": torch.__version__,
        "held_out_draws_skipped": writer.skipped,
    }
    (args.out / "run.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
